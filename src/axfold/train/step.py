"""One step of training: passes that recycle, the losses of the last one, and the gradients of a batch.

The steps of a large network are as fast as its kernels. Those of a small one are as slow as Python starts kernels: the
step is recorded as CUDA graphs (`Recorded`), which compute the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from axfold import config, ops
from axfold.model.alphafold import AlphaFold, Features, Recycled
from axfold.model.atoms import atom14_of_frames, frames_of_torsions
from axfold.model.rigid import Rigid
from axfold.train.labels import Labels
from axfold.train.loss import Losses, head_logits, losses

Find = Callable[[Sequence[Features], Labels], Losses]
"""A function (passes, labels) -> losses of each sample that adds their mean's gradient to that of the parameters."""


def gradients(network: AlphaFold, passes: Sequence[Features], labels: Labels, weights: config.Loss) -> Losses:
    """The losses of the last of these passes; their mean's gradient is added to that of the parameters."""
    found = pass_losses(network, passes, labels, weights)
    found.total.mean().backward()
    return Losses(found.total.detach(), {name: term.detach() for name, term in found.terms.items()})


def pass_losses(
    network: AlphaFold, passes: Sequence[Features], labels: Labels, weights: config.Loss
) -> Losses:
    """The losses of the last pass; through the passes before it goes no gradient: Algorithm 31.

    passes: the features of each pass, of one sample or with a leading batch axis
    """
    recycled = None
    for features in passes[:-1]:
        recycled = recycle(network, features, recycled)
    return _last(network, passes[-1], recycled, labels, weights)


def _last(
    network: AlphaFold, features: Features, recycled: Recycled | None, labels: Labels, weights: config.Loss
) -> Losses:
    passed = network([features], recycled)
    return losses(passed, head_logits(network, passed), labels, network.sizes.heads, weights)


def recycle(network: AlphaFold, features: Features, recycled: Recycled | None) -> Recycled:
    """What a pass without gradients hands to the next."""
    trained = [p for p in network.parameters() if p.requires_grad]
    try:
        for parameter in trained:  # not under no_grad, where blocks write into what they are given: compiled
            parameter.requires_grad_(False)  # for training, they give new tensors
        return network([features], recycled).recycled()
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def recorded(network: AlphaFold, weights: config.Loss) -> Find:
    """The fast way for a small network on a CUDA device: its step recorded, by the kernels of `ops`.

    Where they can't take its blocks, which are in float32 for example, those are compiled.
    """
    if not has_kernels(network):
        compile_blocks(network)
    return Recorded(network, weights)


def has_kernels(network: AlphaFold) -> bool:
    """Whether kernels with gradients take what the blocks of the trunk do to a batch."""
    if "triton" not in ops.transition.backends:
        return False
    layers: Any = network.trunk.evoformer.blocks[0].get_submodule("pair.transition")
    norm, expand, output = layers.norm, layers.expand, layers.output
    z = norm.weight.new_zeros(2, 1, 1, len(norm.weight)).requires_grad_()
    weights = (p for layer in (norm, expand, output) for p in (layer.weight, layer.bias))
    return ops.transition.why_not("triton", z, *weights) is None


COMPILE: dict[str, Any] = {"dynamic": False}


def compile_blocks(network: AlphaFold) -> None:
    """Blocks of the trunk and layers of the structure module are compiled at their first call, one of each kind.

    For training, where shapes stay. It takes about a minute on a GPU; inference has kernels of its own.
    """
    weight = network.structure.project.weight
    residue = torch.zeros(1, dtype=torch.long, device=weight.device)
    frame = Rigid(torch.eye(3).to(weight)[None], weight.new_zeros(1, 3))
    groups = frames_of_torsions(
        frame, weight.new_zeros(1, 7, 2), residue
    )  # what is compiled finds its tables
    atom14_of_frames(groups, residue)
    for block in (*network.trunk.extra_stack.blocks, *network.trunk.evoformer.blocks):
        block.compile(**COMPILE)
    network.structure.layer = torch.compile(network.structure.layer, **COMPILE)  # type: ignore[method-assign]


class Recorded:
    """`gradients` of batches on a CUDA device, by two CUDA graphs for each shape: one that recycles, and the last.

    The first batch of a shape is computed at the speed of Python, and recorded. Batches may come from the host: from
    pinned memory they come while the device works. Parameters and their gradients must stay where they are: set
    gradients to zero, not to None.
    """

    def __init__(self, network: AlphaFold, weights: config.Loss, warm: int = 2):
        self.network, self.weights, self.warm = network, weights, warm
        self.recordings: dict[object, _Recording] = {}

    def __call__(self, passes: Sequence[Features], labels: Labels) -> Losses:
        key = (
            tuple((name, x.shape, x.dtype) for name, x in passes[0].items()),
            tuple((x.shape, x.dtype) for x in tensors(labels)),
            self.network.training,
        )
        if key not in self.recordings:
            pool = next((r.pool for r in self.recordings.values()), None)
            self.recordings[key] = _Recording(self.network, passes[0], labels, self.weights, self.warm, pool)
        return self.recordings[key](passes, labels)


class _Recording:
    """Of one shape: where the graphs read, and what they write."""

    def __init__(
        self,
        network: AlphaFold,
        features: Features,
        labels: Labels,
        weights: config.Loss,
        warm: int,
        pool: Any,
    ):
        device = network.trunk.single.weight.device
        self.features = {name: x.to(device, copy=True) for name, x in features.items()}
        self.labels = moved(labels, device)
        self.recycled = network._nothing(self.features)
        random = torch.cuda.get_rng_state(device)
        trained = [p for p in network.parameters() if p.requires_grad]
        kept = [None if p.grad is None else p.grad.clone() for p in trained]

        def run_recycle() -> None:
            recycled = recycle(network, self.features, self._copy())
            for mine, new in zip(_of(self.recycled), _of(recycled), strict=True):
                mine.copy_(new)

        def run_last() -> Losses:
            found = _last(network, self.features, self._copy(), self.labels, weights)
            found.total.mean().backward()
            return Losses(found.total.detach(), {name: term.detach() for name, term in found.terms.items()})

        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            for _ in range(
                warm
            ):  # compiles, makes tables and the gradients, and lets libraries set themselves up
                run_recycle()
                run_last()
        torch.cuda.current_stream(device).wait_stream(aside)
        torch.cuda.synchronize(device)
        self.graphs = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graphs[0], pool=pool):
            run_recycle()
        self.pool = pool or self.graphs[0].pool()
        with torch.cuda.graph(self.graphs[1], pool=self.pool):
            self.found = run_last()
        for parameter, gradient in zip(trained, kept, strict=True):
            if parameter.grad is not None:
                parameter.grad.zero_() if gradient is None else parameter.grad.copy_(gradient)
        torch.cuda.set_rng_state(random, device)

    def _copy(self) -> Recycled:
        """A pass may consume what it recycles."""
        return Recycled(*(x.clone() for x in _of(self.recycled)))

    def __call__(self, passes: Sequence[Features], labels: Labels) -> Losses:
        for mine in _of(self.recycled):
            mine.zero_()
        for mine, new in zip(tensors(self.labels), tensors(labels), strict=True):
            mine.copy_(new, non_blocking=True)
        for features, graph in zip(
            passes, [self.graphs[0]] * (len(passes) - 1) + [self.graphs[1]], strict=True
        ):
            for name, mine in self.features.items():
                mine.copy_(features[name], non_blocking=True)
            graph.replay()
        terms = {name: term.clone() for name, term in self.found.terms.items()}
        return Losses(self.found.total.clone(), terms)


def tensors(labels: Labels) -> Iterator[Tensor]:
    """All of them, in a fixed order."""
    for field in fields(labels):
        value = getattr(labels, field.name)
        if isinstance(value, Rigid):
            yield from (value.rotation, value.translation)
        else:
            yield value


def moved(labels: Labels, device: torch.device) -> Labels:
    """A copy on a device."""

    def copy(x: Any) -> Any:
        return (
            Rigid(copy(x.rotation), copy(x.translation)) if isinstance(x, Rigid) else x.to(device, copy=True)
        )

    return Labels(**{field.name: copy(getattr(labels, field.name)) for field in fields(labels)})


def _of(recycled: Recycled) -> tuple[Tensor, Tensor, Tensor]:
    return recycled.msa_first_row, recycled.pair, recycled.positions

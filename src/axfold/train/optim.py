"""From gradients to parameters: Adam on float32 masters, its learning rate, and the moving average (supplement 1.11).

All parameters lie side by side in one tensor, and so do their gradients: a norm, a sum over processes, an update are a
few kernels, however many parameters there are.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from axfold.config import Training
from axfold.model.alphafold import AlphaFold

ALIGN = 64  # numbers: every parameter begins where kernels read whole words


def learning_rate(samples: int, training: Training) -> float:
    """Of the step that brings the samples seen to so many: supplement 1.11.3."""
    risen = min(samples / training.warm_up, 1.0) if training.warm_up else 1.0
    return training.learning_rate * risen * (training.decay if samples > training.decay_after else 1.0)


def kept(step: int, training: Training) -> float:
    """The share of itself that the moving average keeps in a step, the first of which is 1.

    Supplement 1.11.7 has a constant one. A young average would be made of the initial parameters, and keeps less:
    from about ten times 1 / (1 - average) steps on the numbers are the supplement's.
    """
    return min(training.average, step / (step + 9))


class Masters:
    """A network's parameters in float32, side by side in one tensor.

    The network gets its parameters rounded to the precision in which it computes, and where that is float32 the
    masters themselves; `gradients` are in the network's types. Parameters and gradients of the network become views:
    whoever replaces them, instead of writing into them, is not trained.

    values: (n,) float32
    """

    def __init__(self, network: AlphaFold, precision: torch.dtype):
        """Puts the network in that precision."""
        exact = {name: p.detach().clone() for name, p in network.named_parameters()}
        network.to_precision(precision)
        named = sorted(network.named_parameters(), key=lambda item: item[1].dtype == torch.float32)
        self.places: dict[str, tuple[int, torch.Size]] = {}
        self._groups: list[tuple[slice, Tensor, Tensor]] = []  # the network's values and gradients of a type
        size = 0
        sections: dict[torch.dtype, int] = {}
        for name, p in named:
            sections.setdefault(p.dtype, size)
            self.places[name] = size, p.shape
            size += -(-p.numel() // ALIGN) * ALIGN
        self.values = exact[named[0][0]].new_zeros(size, dtype=torch.float32)
        for name, value in exact.items():
            self.view(self.values, name).copy_(value)
        for (dtype, start), end in zip(sections.items(), [*list(sections.values())[1:], size], strict=True):
            part = self.values[start:end]
            own = part if dtype == torch.float32 else part.to(dtype)
            self._groups.append((slice(start, end), own, torch.zeros_like(own)))
        for name, p in named:
            start, shape = self.places[name]
            section, own, gradient = next(group for group in self._groups if start < group[0].stop)
            at = slice(start - section.start, start - section.start + shape.numel())
            p.data = own[at].view(shape)
            p.grad = gradient[at].view(shape)

    @property
    def parameters(self) -> int:
        """Numbers in all of them."""
        return sum(shape.numel() for _, shape in self.places.values())

    def view(self, flat: Tensor, name: str) -> Tensor:
        """The part of a tensor laid out as `values` that belongs to a parameter."""
        start, shape = self.places[name]
        return flat[start : start + shape.numel()].view(shape)

    def views(self, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        """All parts, by name."""
        for name in self.places:
            yield name, self.view(flat, name)

    def publish(self) -> None:
        """The network computes with what the masters are now."""
        for section, own, _ in self._groups:
            if own.dtype != torch.float32:
                own.copy_(self.values[section])

    def clear(self) -> None:
        """No gradient yet."""
        for _, _, gradient in self._groups:
            gradient.zero_()

    def norm(self) -> Tensor:
        """Of the network's gradient as a whole, float32, ()."""
        norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for _, _, g in self._groups]
        return torch.linalg.vector_norm(torch.stack(norms))

    def add_gradient(self, total: Tensor, factor: Tensor) -> None:
        """Add the network's gradient times a factor () to a total in float32, laid out as `values`."""
        for section, _, gradient in self._groups:
            if gradient.dtype == torch.float32:
                total[section].addcmul_(gradient, factor)
            else:
                total[section].add_(gradient.float().mul_(factor))


class Optimizer:
    """Adam on the masters, and the moving average of what it makes of them: supplement 1.11.3 and 1.11.7.

    average: (n,) float32, laid out as the masters; failed: () 1 once a gradient wasn't finite; from then on no step
    changes anything, so that what went wrong can be looked for, however late it is noticed
    """

    def __init__(self, masters: Masters, training: Training):
        self.masters, self.training = masters, training
        self.average = masters.values.clone()
        self.failed = masters.values.new_zeros(())
        self.steps = 0
        self._adam = torch.optim.Adam(
            [masters.values],
            lr=training.learning_rate,
            betas=(training.beta_1, training.beta_2),
            eps=training.epsilon,
            fused=True,
        )
        self.moments = torch.zeros_like(masters.values), torch.zeros_like(masters.values)
        self._adopt()

    def _adopt(self) -> None:
        """Adam works on our moments, and counts our steps."""
        first, second = self.moments
        count = torch.full((), float(self.steps), device=first.device)
        self._adam.state[self.masters.values] = {"step": count, "exp_avg": first, "exp_avg_sq": second}

    def restore(self, steps: int) -> None:
        """After masters, moments and average were written into: so many steps have been done."""
        self.steps = steps
        self.failed.zero_()
        self._adopt()
        self.masters.publish()

    @torch.no_grad()
    def step(self, gradient: Tensor, failed: Tensor) -> None:
        """One step along the gradient, laid out as the masters, of a batch; failed: () not 0 where it isn't finite."""
        self.steps += 1
        self.failed.copy_(torch.maximum(self.failed, (failed != 0).float()))
        values = self.masters.values
        values.grad = gradient
        (group,) = self._adam.param_groups
        group["lr"] = learning_rate(self.steps * self.training.batch, self.training)
        # PyTorch's way to leave an update out without asking the device: the scaler of float16 uses it
        self._adam.found_inf, self._adam.grad_scale = self.failed, None  # type: ignore[attr-defined]
        self._adam.step()
        values.grad = None
        self.average.lerp_(values, (1 - kept(self.steps, self.training)) * (1 - self.failed))
        self.masters.publish()

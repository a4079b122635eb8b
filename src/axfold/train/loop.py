"""The steps of training: passes, losses, gradients, one update (supplement 1.11, Algorithm 31)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from axfold import config
from axfold.errors import AxfoldError
from axfold.model.alphafold import AlphaFold
from axfold.train.feed import places
from axfold.train.finite import first_bad
from axfold.train.loss import Losses
from axfold.train.optim import Masters, Optimizer, learning_rate
from axfold.train.ranks import Ranks
from axfold.train.step import Find, gradients, pass_losses


class DivergedError(AxfoldError):
    """A number that is not finite ended the training, in `step`."""

    def __init__(self, step: int, what: str = "a number is not finite"):
        super().__init__(f"Step {step}: {what}.")
        self.step = step


def _plain(network: AlphaFold, weights: config.Loss) -> Find:
    return lambda passes, labels: gradients(network, passes, labels, weights)


def seed_of(seed: int, index: int) -> int:
    """Of what is dropped in the micro-batch whose first sample is `index`: it depends on nothing else.

    So no generator has a state that a checkpoint would have to hold.
    """
    return (seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**63


@dataclass(frozen=True)
class Record:
    """What is known of a step: means over its samples, by name."""

    step: int
    values: dict[str, float]


class Trainer:
    """A network in training, step by step.

    find: how the gradient of a micro-batch is found, instead of by `gradients`; see `step.recorded`
    """

    def __init__(
        self,
        network: AlphaFold,
        training: config.Training,
        *,
        precision: torch.dtype = torch.float32,
        seed: int = 0,
        ranks: Ranks | None = None,
        find: Callable[[AlphaFold, config.Loss], Find] | None = None,
    ):
        self.network, self.training, self.seed = network.train().requires_grad_(True), training, seed
        self.ranks = ranks or Ranks(next(network.parameters()).device)
        self.masters = Masters(network, precision)
        self.optimizer = Optimizer(self.masters, training)
        self.find = (find or _plain)(self.network, training.loss)
        self._gradient = torch.zeros_like(self.masters.values)
        self._names: tuple[str, ...] = ()
        self._pending: list[tuple[int, Tensor, torch.cuda.Event | None]] = []

    @property
    def steps(self) -> int:
        """How many are done."""
        return self.optimizer.steps

    def micro_batches(self) -> list[list[int]]:
        """The samples that this process takes in the next step."""
        share = self.training.batch, self.training.at_once, self.ranks.rank, self.ranks.size
        return places(self.steps, *share)

    def step(self, examples: Iterator[Any], told: Mapping[str, float] | None = None) -> None:
        """One step on the next micro-batches of `examples`, which are those of `micro_batches`.

        Nothing waits for the device: what came of it is told by `records`.
        told: numbers of this process, whose means over all of them go into the record
        """
        self._gradient.zero_()
        rows, micro_batches = [], self.micro_batches()
        share = 1 / (len(micro_batches) * self.ranks.size)
        for indices in micro_batches:
            example = next(examples)
            torch.manual_seed(seed_of(self.seed, indices[0]))
            self.masters.clear()
            found = self.find(example.passes, example.labels)
            with torch.no_grad():
                norm = self.masters.norm()
                factor = (self.training.clip / norm).clamp(max=1)
                self.masters.add_gradient(self._gradient, factor * share)
                rows.append(self._row(found, norm, factor))
        values = torch.stack(rows).mean(0)
        # a sum that is not finite has a term that isn't: asked of every process before the numbers are added up
        failed = (~torch.stack([row.isfinite().all() for row in rows])).sum().to(values)
        self._names += tuple(told or ())
        of_host = torch.tensor(list((told or {}).values()), dtype=torch.float32, pin_memory=values.is_cuda)
        sums = [values, of_host.to(values.device, non_blocking=True), failed.unsqueeze(0)]
        means = self.ranks.sum(torch.cat(sums)) / self.ranks.size
        self.ranks.sum(self._gradient)
        self.optimizer.step(self._gradient, means[-1])
        self._tell(means)

    def _row(self, found: Losses, norm: Tensor, factor: Tensor) -> Tensor:
        self._names = ("loss", *found.terms, "gradient", "clipped")
        terms = torch.stack([found.total, *found.terms.values()]).float()  # each (), or one for each sample
        means = terms.reshape(len(terms), -1).mean(-1)
        return torch.cat([means, torch.stack([norm, (factor < 1).float()])]).detach()

    def _tell(self, means: Tensor) -> None:
        arrived = None
        if means.is_cuda:
            pinned = torch.empty(means.shape, pin_memory=True)
            means = pinned.copy_(means, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._pending.append((self.steps, means, arrived))

    def records(self, behind: int = 0) -> Iterator[Record]:
        """What came of the steps that weren't told of yet, but of the last `behind`; waits for the device.

        Raises DivergedError where a number was not finite. With one step behind the device always has work.
        """
        while len(self._pending) > behind:
            step, values, arrived = self._pending.pop(0)
            if arrived is not None:
                arrived.synchronize()
            *numbers, failed = values.tolist()
            if failed:
                raise DivergedError(step)
            samples = step * self.training.batch
            named = dict(zip(self._names, numbers, strict=True))
            rate = learning_rate(samples, self.training)
            yield Record(step, {"samples": float(samples), "learning_rate": rate} | named)

    def diagnose(self, step: int, example_at: Callable[[list[int]], Any]) -> str:
        """What was the first not to be finite in a step (from 1), in words.

        example_at(indices): these samples as a micro-batch, on the device. The parameters are still those before it.
        """
        share = self.training.batch, self.training.at_once, self.ranks.rank, self.ranks.size
        for indices in places(step - 1, *share):
            example = example_at(indices)
            torch.manual_seed(seed_of(self.seed, indices[0]))
            self.masters.clear()

            def again(example: Any = example) -> Losses:
                return pass_losses(self.network, example.passes, example.labels, self.training.loss)

            with torch.compiler.set_stance("force_eager"):  # what is compiled shows nothing of what is in it
                bad = first_bad(self.network, example, again)
            if bad:
                return f"{bad}, of the samples {', '.join(map(str, indices))}"
        return "it did not come again when the step was repeated"

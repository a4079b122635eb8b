"""How far a prediction is, and how long the rest will take."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, kw_only=True)
class FeaturesMade:
    """The features are there, and the network begins."""

    seconds: float


@dataclass(frozen=True, kw_only=True)
class Planned:
    """How the memory is used from now on, in a line: before the first pass, and when it ran out."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """The network has finished `block` of the `blocks` of a stage in pass `number` of `passes`; all count from 1.

    share: of the prediction's blocks that are done; remaining: seconds until the last pass ends (early stops
    come sooner), None while parts of the network that will run have not been timed.
    """

    number: int
    passes: int
    stage: str
    block: int
    blocks: int
    share: float
    remaining: float | None


@dataclass(frozen=True, kw_only=True)
class PassDone:
    """A pass has ended: its recycle (0 is the first pass), mean pLDDT, and Å of change since the pass before."""

    recycle: int
    plddt: float
    change: float | None


Event = FeaturesMade | Planned | Step | PassDone
Report = Callable[[Event], None]


class Clock:
    """Times the blocks of a prediction. Blocks of a stage cost the same, so what is left is foreseen from them.

    stages: name -> its blocks in a pass, in the order in which they run. One that has not run yet is not foreseen,
    but the last (the structure module), which is taken for a block of the stage before it.
    """

    def __init__(self, stages: Mapping[str, int], passes: int, now: Callable[[], float] = time.perf_counter):
        self._stages, self._passes, self._now = dict(stages), passes, now
        self._last = now()
        self._seconds: dict[str, list[float]] = {stage: [] for stage in stages}

    def step(self, stage: str) -> Step:
        """A block of `stage` has just ended."""
        now = self._now()
        seconds = self._seconds[stage]
        seconds.append(now - self._last)
        self._last = now
        blocks = self._stages[stage]
        done = sum(map(len, self._seconds.values()))
        return Step(
            number=(len(seconds) - 1) // blocks + 1,
            passes=self._passes,
            stage=stage,
            block=(len(seconds) - 1) % blocks + 1,
            blocks=blocks,
            share=done / (self._passes * sum(self._stages.values())),
            remaining=self._remaining(),
        )

    def _remaining(self) -> float | None:
        total = cost = 0.0
        *_, last = self._stages
        for stage, blocks in self._stages.items():
            seconds = self._seconds[stage]
            if seconds:
                cost = median(seconds)  # the first block of all also warms up
            elif stage != last:
                return None
            total += (self._passes * blocks - len(seconds)) * cost
        return total

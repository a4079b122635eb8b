"""How far a prediction is, and what is foreseen of it."""

from itertools import chain, repeat

import pytest

from axfold.progress import Clock


class Time:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


STAGES = {"extra MSA": 2, "Evoformer": 3, "structure": 1}
COST = {"extra MSA": 4.0, "Evoformer": 10.0, "structure": 1.0}
ONE_PASS = [*repeat("extra MSA", 2), *repeat("Evoformer", 3), "structure"]


def test_steps_count_blocks_and_passes():
    clock = Clock(STAGES, 2, Time())
    steps = [clock.step(stage) for stage in chain(ONE_PASS, ONE_PASS)]
    assert [(step.number, step.stage, step.block, step.blocks) for step in steps[:3]] == [
        (1, "extra MSA", 1, 2),
        (1, "extra MSA", 2, 2),
        (1, "Evoformer", 1, 3),
    ]
    assert (steps[6].number, steps[6].block, steps[6].passes) == (2, 1, 2)
    assert [step.share for step in steps] == pytest.approx([(i + 1) / 12 for i in range(12)])


def test_what_is_left_is_foreseen_from_what_was_timed():
    time = Time()
    clock = Clock(STAGES, 2, time)
    remaining = []
    for stage in chain(ONE_PASS, ONE_PASS):
        time.now += COST[stage]
        remaining.append(clock.step(stage).remaining)
    whole = 2 * sum(COST[stage] for stage in ONE_PASS)
    assert remaining[:2] == [None, None]  # no Evoformer block has run
    assert remaining[2] == pytest.approx(
        whole - 18 + 2 * 9
    )  # the structure module is taken for a block so far
    assert remaining[5:] == pytest.approx([39, 35, 31, 21, 11, 1, 0])


def test_a_slow_first_block_misleads_nobody():
    time = Time()
    clock = Clock({"Evoformer": 4}, 1, time)
    for seconds in (100.0, 1.0, 1.0):
        time.now += seconds
        remaining = clock.step("Evoformer").remaining
    assert remaining == pytest.approx(1.0)

"""Memory that runs out anywhere costs the pass under way, not the result."""

import copy

import pytest
import torch
from small import make_features, small_model

from axfold.memory.rows import Rows
from axfold.model.layers import RowUpdate
from axfold.network import passes

MODEL = small_model()


def places() -> list[str]:
    """Every module that updates rows, and what surrounds them."""
    model = MODEL
    names = [name for name, module in model.named_modules() if isinstance(module, RowUpdate)]
    return [*names, "trunk", "trunk.evoformer.blocks.1", "structure", "structure.angles"]


def fold(model, features, leaner=None, count=2):
    return [
        (result.pair.clone(), result.structure.atom37.clone())
        for result in passes(model, [[features]] * count, leaner)
    ]


@pytest.fixture(scope="module")
def expected():
    return fold(copy.deepcopy(MODEL), make_features(9))


@pytest.mark.parametrize("place", [p for p in places() if not p.startswith("heads")])
@pytest.mark.parametrize("at", [0, 1])
def test_the_pass_is_done_again_with_a_leaner_plan(place, at, expected):
    """The memory runs out in pass `at`, before the module has changed anything or after it has."""
    model, left, asked = copy.deepcopy(MODEL), [1], []
    module = model.get_submodule(place)

    def fail(*_):
        if len(done) == at and left:
            left.pop()
            raise torch.OutOfMemoryError("injected")

    def leaner():
        asked.append(place)
        for other in model.modules():
            if isinstance(other, RowUpdate):
                other.rows = Rows(2)
        return True

    hook = module.register_forward_hook if at else module.register_forward_pre_hook
    hook(fail)
    done = []
    for result in passes(model, [[make_features(9)]] * 2, leaner):
        done.append((result.pair.clone(), result.structure.atom37.clone()))
    assert asked == [place]
    for found, wanted in zip(done, expected, strict=True):
        torch.testing.assert_close(found[0], wanted[0], atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(found[1], wanted[1], atol=1e-9, rtol=1e-9)


def test_without_a_leaner_plan_it_is_an_error():
    model = copy.deepcopy(MODEL)

    def fail(*_):
        raise torch.OutOfMemoryError("injected")

    model.structure.register_forward_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        fold(model, make_features(5), lambda: False)
    with pytest.raises(torch.OutOfMemoryError):
        fold(model, make_features(5))

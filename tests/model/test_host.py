"""The pair representation in host memory: what streams through the device is what would lie on it."""

import copy
from functools import partial

import pytest
import torch
from small import make_features, small_model
from test_alphafold import assert_same, run

from axfold.memory.host import Bus, HostRows
from axfold.memory.rows import Rows
from axfold.model.alphafold import AlphaFold


def offloaded(model: AlphaFold, size: int | None, device: str) -> tuple[AlphaFold, Bus]:
    model = copy.deepcopy(model).to(device)
    bus = Bus(torch.device(device))
    for module in model.modules():
        if isinstance(getattr(module, "rows", None), Rows):
            module.rows = HostRows(size, bus)
        if hasattr(module, "idle"):
            module.idle = bus.resting
    return model, bus


@pytest.mark.parametrize("size", [1, 3, 4, None])
def test_offload_changes_nothing(size):
    model, features = small_model(), make_features(11)
    away, bus = offloaded(model, size, "cpu")
    result = run(away, features)
    assert_same(result, run(model, features))
    assert (
        result.pair.untyped_storage().data_ptr()
        == bus.host("pair", (1,), torch.uint8).untyped_storage().data_ptr()
    )


def test_host_memory_is_used_again():
    away, bus = offloaded(small_model(), 4, "cpu")
    run(away, make_features(11))
    before = {slot: kept.data_ptr() for slot, kept in bus._host.items()}
    run(away, make_features(9, seed=2))
    assert {slot: kept.data_ptr() for slot, kept in bus._host.items()} == before
    assert set(before) == {"pair", "extra MSA", "template", "attention to templates"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("size", [1, 4, 50, None])
def test_offload_on_a_gpu(size):
    """Columns and rows through the copy engine, with MSA tensors that rest on the host."""
    model, features = small_model(), make_features(67)
    expected = run(model, features)
    away, _ = offloaded(model, size, "cuda")
    result = run(away, {name: x.cuda() for name, x in features.items()})
    assert not result.pair.is_cuda
    torch.cuda.synchronize()
    close = partial(torch.testing.assert_close, atol=1e-8, rtol=1e-8)
    close(result.pair, expected.pair)
    close(result.structure.atom37.cpu(), expected.structure.atom37)

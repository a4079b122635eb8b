"""Samples on their way to the device."""

from itertools import islice

import pytest
import torch
from samples import Examples, make, stack

from axfold.train.feed import Feed, order, pack, places, unpack
from axfold.train.finite import tensors


@pytest.mark.parametrize(("at_once", "ranks"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 3)])
def test_ranks_share_a_step(at_once, ranks):
    batch = 24
    taken = [places(3, batch, at_once, rank, ranks) for rank in range(ranks)]
    assert len({len(rank) for rank in taken}) == 1
    assert all(len(some) == at_once for rank in taken for some in rank)
    assert sorted(i for rank in taken for some in rank for i in some) == list(range(72, 96))


def test_an_order_can_begin_anywhere():
    assert list(islice(order(2, 4, 2), 4)) == list(islice(order(0, 4, 2), 8))[4:]


def test_packed_tensors_come_out_as_they_were():
    example = stack([make(seed, 7, 9, 2) for seed in range(3)])
    packed = pack(example)
    found = dict(tensors(unpack(packed)))
    for name, x in tensors(example):
        assert found[name].equal(x), name
        assert found[name].dtype == x.dtype, name
    assert unpack(packed).name == example.name
    assert unpack(packed).labels.frames.rotation.equal(example.labels.frames.rotation)


def test_tensors_that_passes_share_are_packed_once():
    one = torch.rand(100)
    assert len(pack([{"a": one}, {"a": one}]).buffer) == len(pack([{"a": one}]).buffer)
    empty = unpack(pack({"a": torch.zeros(0, 3), "b": torch.tensor(2.5), "c": one[::3]}))
    assert empty["a"].shape == (0, 3)
    assert empty["b"] == 2.5
    assert empty["c"].equal(one[::3])


def test_a_mask_that_hides_nothing_is_one_number():
    whole, padded = (unpack(pack(make(0, 9, crop, 1))).passes[0] for crop in (9, 12))
    for name in ("seq_mask", "msa_mask", "extra_msa_mask"):
        assert not any(whole[name].stride())
        assert any(padded[name].stride())


@pytest.mark.parametrize(("workers", "shared"), [(0, 0), (2, 1 << 40), (1, 0)])
def test_micro_batches_come_in_order(workers, shared, monkeypatch, tmp_path):
    examples = Examples()
    monkeypatch.setattr("axfold.train.feed.shared_memory", lambda: shared)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Feed(examples, order(1, 4, 2), stack, torch.device("cpu"), workers=workers) as feed:
        found = list(islice(feed, 4))
    for micro_batch, indices in zip(found, islice(order(1, 4, 2), 4), strict=True):
        expected = dict(tensors(stack([examples[i] for i in indices])))
        assert all(x.equal(expected[name]) for name, x in tensors(micro_batch))
    assert feed.waited > 0
    assert not list(tmp_path.glob("axfold-samples-*"))


def test_one_sample_has_no_batch_axis():
    with Feed(Examples(), order(0, 4, 1), stack, torch.device("cpu")) as feed:
        assert next(feed).labels.mask.shape == (12,)
        assert next(feed).passes[0]["msa_feat"].shape == (4, 12, 49)


class _Broken(Examples):
    def __getitem__(self, i):
        raise ValueError("the store is damaged")


def test_an_error_of_the_data_arrives():
    with (
        Feed(_Broken(), order(0, 4, 2), stack, torch.device("cpu")) as feed,
        pytest.raises(ValueError, match="the store is damaged"),
    ):
        next(feed)

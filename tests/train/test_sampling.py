"""Chances of chains, and their order."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from chains import make_chain, make_store

from axfold.config import Sampling
from axfold.errors import InputError
from axfold.train import sampling
from axfold.train.store import Store


def rows(tmp_path, *chains):
    return Store(make_store(tmp_path / "s", *chains)).rows


def test_weights_are_those_of_the_supplement(tmp_path):
    made = rows(
        tmp_path,
        make_chain("short", 40, rows=0, cluster="1"),
        make_chain("middle", 384, rows=0, cluster="2"),
        make_chain("long", 700, rows=0, cluster="3"),
        make_chain("twin", 600, rows=0, cluster="4"),
        make_chain("other twin", 100, rows=0, cluster="4"),
        make_chain("alone", 100, rows=0),
        make_chain("alone too", 100, rows=0),
        make_chain("held out", 100, rows=0, cluster="1", split="valid"),
    )
    wanted = np.array([256, 384, 512, 512 / 2, 256 / 2, 256, 256, 0])
    np.testing.assert_allclose(sampling.weights(made), wanted / wanted.sum())
    np.testing.assert_allclose(sampling.weights(made, "valid"), np.eye(8)[7])


def test_filters(tmp_path):
    same = make_chain("same", 100, rows=0)
    same.aatype[:81] = 3
    edge = make_chain("edge", 100, rows=0)
    edge.aatype[:80], edge.aatype[80:] = 3, np.arange(20) % 3
    made = rows(
        tmp_path,
        make_chain("good", 100, rows=0, resolution=8.99),
        make_chain("coarse", 100, rows=0, resolution=9.0),
        make_chain("NMR", 100, rows=0, resolution=0.0),
        same,
        edge,
    )
    told = [sampling.refused(row, Sampling()) for row in made]
    assert told == [
        None,
        "its resolution is 9 Å or coarser",
        None,
        "one residue type is more than 80% of it",
        None,
    ]
    assert (sampling.weights(made) > 0).tolist() == [x is None for x in told]


def test_sets_have_their_shares(tmp_path):
    made = rows(
        tmp_path,
        *(make_chain(f"e{i}", 100, rows=0) for i in range(7)),
        *(make_chain(f"p{i}", 300, rows=0, set="predicted") for i in range(3)),
    )
    np.testing.assert_allclose(sampling.weights(made), [0.25 / 7] * 7 + [0.75 / 3] * 3)
    told = sampling.weights(made, shares={"experimental": 1.0, "predicted": 1.0})
    np.testing.assert_allclose(told, [0.5 / 7] * 7 + [0.5 / 3] * 3)
    np.testing.assert_allclose(sampling.weights(made[:7]), [1 / 7] * 7)
    np.testing.assert_allclose(sampling.weights(made[7:]), [1 / 3] * 3)
    with pytest.raises(InputError, match="split train has no set dreamt; it has experimental, predicted"):
        sampling.weights(made, shares={"dreamt": 1.0})


def test_a_split_without_chains(tmp_path):
    with pytest.raises(InputError, match="no chain of the split test that passes the filters"):
        sampling.weights(rows(tmp_path, make_chain("a", 9)), "test")


def test_every_epoch_has_each_chain_as_often_as_its_weight_says():
    weights = np.array([0.5, 0, 0.125, 0.3, 0.075])
    order = sampling.Order(weights, 7)
    assert len(order) == 4
    for epoch in range(50):
        counts = Counter(order[4 * epoch + i] for i in range(4))
        for chain, weight in enumerate(weights):
            assert np.floor(4 * weight) <= counts[chain] <= np.ceil(4 * weight)
    counts = Counter(order[i] for i in range(20_000))
    np.testing.assert_allclose([counts[chain] / 20_000 for chain in range(5)], weights, atol=0.01)


def test_the_order_depends_on_seed_and_position_alone():
    weights = np.random.default_rng(0).random(50)
    whole = [sampling.Order(weights, 3)[i] for i in range(200)]
    resumed = sampling.Order(weights, 3)
    assert [resumed[i] for i in range(199, -1, -1)] == whole[::-1]
    assert [sampling.Order(weights, 4)[i] for i in range(200)] != whole
    assert whole[:50] != whole[50:100]


def test_recycles_are_drawn_evenly_and_again_alike():
    drawn = [sampling.recycles(0, batch, 3) for batch in range(4000)]
    np.testing.assert_allclose(np.bincount(drawn) / 4000, 0.25, atol=0.03)
    assert drawn == [sampling.recycles(0, batch, 3) for batch in range(4000)]
    assert sampling.recycles(0, 5, 0) == 0


def test_other_limits(tmp_path):
    made = rows(tmp_path, make_chain("a", 10, rows=0), make_chain("b", 20, rows=0))
    found = sampling.weights(made, sampling=replace(Sampling(), shortest=1, longest=20))
    np.testing.assert_allclose(found, [1 / 3, 2 / 3])

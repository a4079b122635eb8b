"""Examples: what the network reads and what losses compare it with."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from chains import make_chain, make_store
from torch.utils.data import DataLoader

from axfold import residues
from axfold.config import Data, Sampling
from axfold.data import pipelines, steps
from axfold.data.features import FEATURES
from axfold.data.templates import Template
from axfold.model.rigid import Rigid
from axfold.train import sampling
from axfold.train.examples import Examples, HeldOut, chain_features, pass_steps, stack, with_beta
from axfold.train.labels import Labels
from axfold.train.store import Store

DATA = Data(msa_clusters=8, extra_msa=12)
CROP = 24


@pytest.fixture
def store(tmp_path):
    profile = np.random.default_rng(1).integers(0, 40, (31, 20)).astype(np.uint8) + np.uint8(1)
    return Store(
        make_store(
            tmp_path / "s",
            make_chain("long", 60, rows=40, seed=1, resolution=2.0),
            make_chain("short", 13, rows=5, seed=2, resolution=2.5),
            make_chain("profile", 31, rows=0, seed=3, profile=profile, backbone_only=True, resolution=1.5),
            make_chain("alone", 20, rows=0, seed=4),
            make_chain("predicted", 40, rows=2000, seed=5, set="predicted", resolution=1.0),
            make_chain("held out", 24, rows=30, seed=6, split="valid", resolution=1.0),
            make_chain("held out, long", 25, rows=30, seed=7, split="valid"),
        )
    )


def examples(store, **changes):
    return Examples(store, **{"data": DATA, "crop": CROP, "recycles": 3, "batch": 2, "seed": 0, **changes})


def tensors(example):
    """All of an example, by name."""
    found = {f"{i}/{name}": value for i, one in enumerate(example.passes) for name, value in one.items()}
    for field in fields(Labels):
        value = getattr(example.labels, field.name)
        if isinstance(value, Rigid):
            found |= {f"{field.name}/r": value.rotation, f"{field.name}/t": value.translation}
        else:
            found[field.name] = value
    return found


def same(one, other):
    one, other = tensors(one), tensors(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_an_example_depends_on_seed_and_position_alone(store):
    first = examples(store)
    made = [first[i] for i in range(12)]
    again = examples(store)
    assert all(same(again[i], made[i]) for i in (11, 3, 0, 7))
    assert not all(same(examples(store, seed=1)[i], made[i]) for i in range(12))
    assert not same(made[0], first[len(first)])  # another epoch


def test_workers_make_the_same(store):
    made = examples(store)
    loader = DataLoader(
        made,
        batch_size=2,
        sampler=range(4, 12),
        num_workers=1,
        collate_fn=stack,
        multiprocessing_context="spawn",
    )
    for i, batch in enumerate(loader):
        assert same(batch, stack([made[4 + 2 * i], made[5 + 2 * i]]))
    assert i == 3


def test_a_batch_shares_its_passes_and_batches_differ(store):
    made = examples(store)
    passes = [len(made[i].passes) for i in range(40)]
    assert passes[::2] == passes[1::2]
    assert set(passes) == {1, 2, 3, 4}
    assert {len(made[i].passes) for i in (0, 1)} == {1 + sampling.recycles(0, 0, 3)}
    batch = stack([made[0], made[1]])
    assert len(batch) == 2
    assert batch.names == (made[0].name, made[1].name)
    for name, value in tensors(batch).items():
        torch.testing.assert_close(value[1], tensors(made[1])[name], rtol=0, atol=0)
    assert batch.passes[0]["aatype"] is batch.passes[-1]["aatype"]
    moved = batch.to("cpu")
    assert same(moved, batch)
    assert moved.passes[0]["aatype"] is moved.passes[-1]["aatype"]


def test_shapes_and_padding(store):
    made = examples(store)
    for i in range(len(made)):
        example = made[i]
        n = int(example.passes[0]["seq_mask"].sum())
        chain = store[store.places[example.name]]
        assert n == min(len(chain.aatype), CROP)
        for one in example.passes:
            assert one["msa_feat"].shape == (8, CROP, 49)
            assert one["extra_msa"].shape == (12, CROP)
            assert not any(one[name][..., n:].any() for name in ("msa_mask", "extra_msa_mask", "seq_mask"))
            assert one["msa_mask"][0, :n].all()
        labels = example.labels
        assert not labels.mask[n:].any()
        assert not labels.atom37_mask[n:].any()
        assert not labels.msa_masked[:, n:].any()
        assert torch.equal(labels.aatype, example.passes[0]["aatype"])
        assert labels.true_msa.shape == (8, CROP)
        masked = labels.msa_masked[:, :n].bool()
        centres = example.passes[-1]["msa_feat"][:, :n, :23].argmax(-1)
        rows = example.passes[-1]["msa_mask"][:, :n].bool()
        assert torch.equal(centres[rows & ~masked], labels.true_msa[:, :n][rows & ~masked].long())


def test_labels_are_of_the_residues_of_the_features(store):
    made = examples(store)
    starts = set()
    for i in range(60):
        example = made[i]
        chain = store[store.places[example.name]]
        n = int(example.labels.mask.sum())
        start = int(np.flatnonzero(chain.residue_index == int(example.labels.residue_index[0]))[0])
        part = slice(start, start + n)
        starts.add((example.name, start))
        np.testing.assert_array_equal(example.labels.aatype[:n], chain.aatype[part])
        np.testing.assert_array_equal(example.passes[0]["residue_index"][:n], chain.residue_index[part])
        if not chain.backbone_only:
            np.testing.assert_array_equal(example.labels.atom37_mask[:n], chain.mask[part])
            seen = chain.mask[part] > 0
            np.testing.assert_array_equal(
                example.labels.atom37[:n].numpy()[seen], chain.positions[part][seen]
            )
    assert len({start for name, start in starts if name == "long"}) > 3


def test_a_held_out_chain_has_the_features_of_a_prediction(store):
    held = HeldOut(store, data=DATA, crop=CROP, recycles=1, seed=3)
    assert len(held) == 1
    assert held.longer == ("held out, long",)
    example = held[0]
    chain = store[store.places["held out"]]
    rng = sampling.example(3, 0)
    once = steps.run(pipelines.MONOMER, chain_features(chain), rng)
    assert len(example.passes) == 2
    for one in example.passes:
        wanted = steps.run(pipelines.sampling(DATA), once, rng)
        for name in one:
            np.testing.assert_array_equal(one[name], wanted[name], name)
    assert example.labels.clamped == 1
    with pytest.raises(IndexError):
        held[1]


@pytest.mark.parametrize("kept", [np.arange(60), np.arange(20, 44), np.array([0, 7, 8, 30, 59])])
def test_a_piece_has_the_features_of_the_whole_chain_there(store, kept):
    chain, rng = store[0], np.random.default_rng(0)
    once = steps.run(pipelines.MONOMER, chain_features(chain), rng)
    whole = steps.run(pipelines.sampling(DATA), once, np.random.default_rng(1))
    piece = steps.run(pass_steps(chain, kept, DATA, Sampling()), once, np.random.default_rng(1))
    assert piece.keys() == whole.keys()
    for name, value in piece.items():
        shape = FEATURES[name].shape
        wanted = whole[name].take(kept, axis=shape.index("N")) if "N" in shape else whole[name]
        np.testing.assert_array_equal(value, wanted, name)


def test_blocks_of_rows_are_deleted_once_an_example(store):
    made = examples(store, weights=np.eye(len(store))[0], data=Data(msa_clusters=20, extra_msa=40))
    depths = {}
    for i in range(20):
        for one in made[i].passes:
            depths.setdefault(i, set()).add(
                int(one["msa_mask"][:, 0].sum() + one["extra_msa_mask"][:, 0].sum())
            )
    assert all(len(depth) == 1 for depth in depths.values())
    assert len(set.union(*depths.values())) > 3
    assert max(set.union(*depths.values())) <= 28  # at least one block of 30 % of 40 rows goes


def test_alignments_of_predictions_are_thinned_and_their_resolution_is_unknown(store):
    weights = np.eye(len(store))[store.places["predicted"]]
    data = Data(msa_clusters=8, extra_msa=3000)
    changes = Sampling(distillation_rows=100, deleted_blocks=0)
    made = examples(store, weights=weights, data=data, sampling=changes)[0]
    assert made.passes[0]["msa_mask"][:, 0].sum() + made.passes[0]["extra_msa_mask"][:, 0].sum() == 100
    assert made.labels.resolution == 0
    assert examples(store, weights=np.eye(len(store))[0])[0].labels.resolution == 2


def test_a_tenth_is_not_clamped(store):
    made = examples(store, weights=np.eye(len(store))[1], recycles=0)
    clamped = [float(made[i].labels.clamped) for i in range(200)]
    assert set(clamped) == {0, 1}
    assert 0.04 < 1 - np.mean(clamped) < 0.16


def test_a_profile_becomes_rows(store):
    weights = np.eye(len(store))[store.places["profile"]]
    data = Data(msa_clusters=16, extra_msa=100)
    made = examples(store, weights=weights, data=data, sampling=Sampling(profile_rows=60), recycles=2)
    chain = store[store.places["profile"]]
    shares = chain.profile / chain.profile.sum(-1, keepdims=True)
    counts, drawn = np.zeros((31, 20)), 0
    for i in range(60):
        one = made[i].passes[-1]
        rows = int(one["msa_mask"][:, 0].sum()), int(one["extra_msa_mask"][:, 0].sum())
        assert rows == (16, 44)
        start = int(np.flatnonzero(chain.residue_index == int(made[i].labels.residue_index[0]))[0])
        for row in one["extra_msa"][:44].numpy():
            counts[np.arange(start, start + CROP), row[:CROP]] += 1
        drawn += 44
    common = counts.sum(-1) > 1000
    np.testing.assert_allclose(
        counts[common] / counts[common].sum(-1, keepdims=True), shares[common], atol=0.035
    )
    assert not torch.equal(made[0].passes[0]["msa_feat"], made[1].passes[0]["msa_feat"])


def test_backbones_get_their_beta_and_say_what_they_are(store):
    weights = np.eye(len(store))[store.places["profile"]]
    labels = examples(store, weights=weights)[0].labels
    assert labels.backbone_only == 1
    assert labels.atom37_mask[:, residues.ATOM_INDEX["CB"]].any()
    assert examples(store, weights=np.eye(len(store))[0])[0].labels.backbone_only == 0


def test_beta_is_at_its_ideal_place():
    aatype = np.arange(21)
    positions = np.zeros((21, 37, 3), np.float32)
    index = residues.ATOM14_TO_ATOM37[aatype]
    # the backbone's group has its atoms in its own frame already
    types, columns = np.nonzero((residues.ATOM14_GROUP == 0) * residues.ATOM14_MASK)
    positions[types, index[types, columns]] = residues.ATOM14_POSITIONS[types, columns]
    wanted = positions.copy()
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    rotation *= np.linalg.det(rotation)
    mask = np.zeros((21, 37), np.float32)
    mask[:20, [0, 1, 2]] = 1
    beta = residues.ATOM_INDEX["CB"]
    given = positions @ rotation.T.astype(np.float32) + 5
    given[:, beta] = 0
    found, seen = with_beta(given, mask, aatype)
    glycine = residues.RESTYPE_INDEX["G"]
    assert not seen[[glycine, 20], beta].any()
    assert seen[:, beta].sum() == 19
    kept = seen[:, beta] > 0
    np.testing.assert_allclose(found[kept, beta], (wanted @ rotation.T + 5)[kept, beta], atol=1e-3)
    assert not mask[:, beta].any()


def test_templates_are_drawn_and_padded(tmp_path):
    n = 30

    def template(seed):
        rng = np.random.default_rng(seed)
        ones = np.ones((n, 37), np.float32)
        return Template(
            "t", np.full(n, seed, np.int32), rng.normal(size=(n, 37, 3)).astype(np.float32), ones, 1.0
        )

    chain = make_chain("t", n, templates=tuple(template(i) for i in range(6)))
    store = Store(make_store(tmp_path / "s", chain, make_chain("v", 20, split="valid")))
    data = replace(DATA, templates=4)
    made = examples(store, data=data, recycles=0)
    counts, first = set(), set()
    for i in range(60):
        one = made[i].passes[0]
        assert one["template_all_atom_positions"].shape == (4, CROP, 37, 3)
        assert one["msa_feat"].shape[0] == 4
        used = int(one["template_mask"].sum())
        counts.add(used)
        assert not one["template_all_atom_masks"][used:].any()
        first.add(int(one["template_aatype"][0, 0]))
    assert counts == {0, 1, 2, 3, 4}
    assert len(first) == 6
    held = HeldOut(store, data=data, crop=CROP, recycles=0, seed=0)[0].passes[0]
    assert not held["template_mask"].any()
    assert held["template_pseudo_beta"].shape == (4, CROP, 3)

import time
from dataclasses import replace

import numpy as np
import pytest

from axfold.config import PRESETS, Config, Data
from axfold.data import features as table
from axfold.data import pipelines
from axfold.data.query import Alignment, Query
from axfold.data.templates import Template, TemplateFeatures

SEQUENCE = "GSTIQPGTGYNNGYFYSYWNDGHGGVTYTNGPGGQFSVNWSNSGEFVGGKGWQ"
SMALL = Config(name="small", data=Data(msa_clusters=36, extra_msa=64, templates=4), recycles=3)
UNREAD = {"random_crop_to_size_seed"}  # a seed of DeepMind's pipeline that its network does not read


def query(rows=160, sequence=SEQUENCE, seed=0):
    rng = np.random.default_rng(seed)
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWY-"))
    msa = np.where(
        rng.random((rows, len(sequence))) < 0.6, list(sequence), rng.choice(letters, (rows, len(sequence)))
    )
    msa[0] = list(sequence)
    deletions = rng.integers(0, 5, msa.shape, dtype=np.int32) * (rng.random(msa.shape) < 0.1)
    sequences = tuple("".join(row) for row in msa)
    return Query("q", sequence, (Alignment(sequences, deletions, tuple("r" * rows)),))


def some_templates(n):
    rng, n_res = np.random.default_rng(n), len(SEQUENCE)
    return TemplateFeatures.stack(
        [
            Template(
                f"{i}abc_A",
                rng.integers(0, 22, n_res),
                rng.normal(size=(n_res, 37, 3)),
                rng.integers(0, 2, (n_res, 37)),
                float(n - i),
            )
            for i in range(n)
        ],
        n_res,
    )


def test_names_shapes_and_types_are_deepminds(parity):
    recorded = np.load(parity / "cases/mono_small/inputs.npz", allow_pickle=False)
    features = pipelines.monomer(query(), SMALL, 0, templates=some_templates(4))
    assert set(features) == set(recorded) - UNREAD
    for name, value in features.items():
        assert (value.shape, value.dtype) == (recorded[name].shape, recorded[name].dtype), name
        if not {"S", "E", "T"} & set(table.FEATURES[name].shape):
            np.testing.assert_array_equal(value, recorded[name], err_msg=name)


def test_without_templates_names_are_deepminds(parity):
    recorded = np.load(parity / "cases/mono_notemplate/inputs.npz", allow_pickle=False)
    config = replace(SMALL, data=Data(msa_clusters=32, extra_msa=80))
    features = pipelines.monomer(query(106), config, 0, templates=some_templates(2))
    assert set(features) == set(recorded) - UNREAD
    assert features["extra_msa"].shape[:2] == (4, 74)  # the real depth; DeepMind pads to 80


@pytest.mark.parametrize("preset", PRESETS)
def test_features_of_every_preset_pass_the_check(preset):
    config = PRESETS[preset]
    features = pipelines.monomer(query(700), config, 1)
    table.check(features, templates=config.model.templates is not None)
    assert features["msa_feat"].shape[1] == config.data.msa_clusters - config.data.templates
    assert set(features) <= set(table.FEATURES)


def test_same_seed_same_bytes():
    one, two = (pipelines.monomer(query(), SMALL, 7, templates=some_templates(2)) for _ in range(2))
    for name in one:
        assert one[name].tobytes() == two[name].tobytes(), name
    other = pipelines.monomer(query(), SMALL, 8, templates=some_templates(2))
    assert (one["msa_feat"] != other["msa_feat"]).any()


def test_every_pass_and_ensemble_is_a_sample_of_its_own():
    features = pipelines.monomer(query(), replace(SMALL, ensembles=2), 7)
    assert len(features["msa_feat"]) == 8
    assert len({sample.tobytes() for sample in features["true_msa"]}) == 8
    assert len({sample.tobytes() for sample in features["bert_mask"]}) == 8


def test_more_passes_change_no_earlier_one():
    short = pipelines.monomer(query(), SMALL, 7, passes=1)
    long = pipelines.monomer(query(), SMALL, 7, passes=3)
    assert len(short["aatype"]) == 1
    for name in short:
        np.testing.assert_array_equal(short[name][0], long[name][0], err_msg=name)


def test_features_that_do_not_vary_take_no_memory():
    features = pipelines.monomer(query(), SMALL, 0, templates=some_templates(4))
    for name, value in features.items():
        assert (value.strides[0] == 0) == {"S", "E"}.isdisjoint(table.FEATURES[name].shape), name


@pytest.mark.parametrize("sequence", ["M", "X", "MKV"])
def test_a_single_sequence(sequence):
    features = pipelines.monomer(Query("q", sequence), PRESETS["model_1"], 0)
    table.check(features, templates=True)
    n = len(sequence)
    assert features["msa_feat"].shape == (4, 1, n, 49)
    assert features["extra_msa"].shape == (4, 1, n)
    assert not features["extra_msa_mask"].any()
    assert not features["extra_msa_row_mask"].any()
    assert features["template_aatype"].shape == (4, 0, n)
    np.testing.assert_allclose(features["msa_feat"][..., 25:48].sum(axis=-1), 1, atol=1e-5)


def test_depth_can_be_lowered():
    config = replace(SMALL, data=replace(SMALL.data, msa_clusters=3, extra_msa=5))
    features = pipelines.monomer(query(), config, 0)
    assert features["msa_feat"].shape[1] == 1  # the query stays, whatever templates may take
    assert features["extra_msa"].shape[1] == 5
    assert features["extra_msa_mask"].all()
    features = pipelines.monomer(query(), replace(config, data=replace(config.data, extra_msa=0)), 0)
    table.check(features, templates=True)
    assert not features["extra_msa_mask"].any()


def test_templates_beyond_the_limit_are_left_out():
    features = pipelines.monomer(query(), SMALL, 0, templates=some_templates(6))
    np.testing.assert_array_equal(features["template_sum_probs"][0, :, 0], [6, 5, 4, 3])


def test_the_query_is_the_first_cluster():
    features = pipelines.monomer(query(), SMALL, 0)
    np.testing.assert_array_equal(features["true_msa"][:, 0], features["aatype"])


def test_order_of_the_rows_changes_no_feature_of_the_whole_msa():
    original = query()
    (alignment,) = original.alignments
    order = np.concatenate([[0], 1 + np.random.default_rng(0).permutation(159)])
    shuffled = Alignment(
        tuple(alignment.sequences[i] for i in order), alignment.deletions[order], alignment.descriptions
    )
    # With all rows as centres and nothing masked the features are a permutation of each other.
    config = replace(SMALL, data=Data(msa_clusters=512, masked_fraction=0))
    one = pipelines.monomer(original, config, 0, passes=1)
    two = pipelines.monomer(replace(original, alignments=(shuffled,)), config, 0, passes=1)
    assert one["msa_feat"].shape == (1, 160, 53, 49)
    rows = [sorted(row.tobytes() for row in features["msa_feat"][0]) for features in (one, two)]
    assert rows[0] == rows[1]


def test_a_deep_alignment_takes_seconds():
    rng = np.random.default_rng(0)
    sequence = "".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 250))
    start = time.perf_counter()
    pipelines.monomer(query(5000, sequence), PRESETS["model_1"], 0)
    assert time.perf_counter() - start < 30  # 1 s on a free core

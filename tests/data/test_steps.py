import json
from pathlib import Path

import numpy as np
import pytest

from axfold.config import Data
from axfold.data import steps
from axfold.data.formats import a3m, stockholm
from axfold.data.query import Alignment, Query
from axfold.errors import InputError
from axfold.residues import MSA_INDEX, RESTYPES_WITH_X

RNG = np.random.default_rng(0)  # for steps that draw nothing
GROUPS = ("2q2k_A", "2q2k_A_uniprot", "6A5J", "6KWC_1", "query73")
TRANSFORMED = ("2q2k_A", "query73")
HERE = Path(__file__).parent


def cases(names):
    """A fixture's parameters: the case that is copied here, and those beside the checkout."""
    return [("copied", "2q2k_A"), *(("parity", name) for name in names)]


def load(request, kind):
    """The query of a case, and DeepMind's `kind` of its features."""
    where, name = request.param
    if where == "copied":
        folder, inputs = HERE / "cases", HERE / "formats/cases/data_parsers/input"
    else:
        folder = request.getfixturevalue("parity") / "cases"
        inputs = folder / "data_parsers/input"
    files = json.loads((folder / "data_msa_features/groups.json").read_text())["groups"][name]
    parsers = {".a3m": a3m.parse, ".sto": stockholm.parse}
    paths = [inputs / file for file in files]
    raw = np.load(folder / f"data_msa_features/{name}.npz", allow_pickle=False)
    alignments = tuple(parsers[path.suffix](path.read_text(), path.name) for path in paths)
    query = Query(name, str(raw["sequence"][0]), alignments)
    return query, np.load(folder / f"{kind}/{name}.npz", allow_pickle=False)


@pytest.fixture(params=cases(GROUPS), ids="-".join)
def raw(request):
    return load(request, "data_msa_features")


@pytest.fixture(params=cases(TRANSFORMED), ids="-".join)
def transformed(request):
    return load(request, "data_transforms")


def test_raw_features_are_deepminds(raw):
    query, recorded = raw
    constants = np.load(HERE / "cases/data_constants/residue_constants.npz", allow_pickle=False)
    features = steps.query_features(query)
    own_order = constants["MAP_HHBLITS_AATYPE_TO_OUR_AATYPE"]
    np.testing.assert_array_equal(features["msa"], own_order[recorded["msa"]])
    np.testing.assert_array_equal(features["deletion_matrix"], recorded["deletion_matrix_int"])
    np.testing.assert_array_equal(features["aatype"], recorded["aatype"].argmax(-1))
    np.testing.assert_array_equal(features["residue_index"], recorded["residue_index"])
    assert features["seq_length"] == recorded["seq_length"][0]


def test_features_of_the_whole_msa_are_deepminds(transformed):
    query, recorded = transformed
    features = steps.query_features(query)
    np.testing.assert_array_equal(features["msa"], recorded["correct_msa_restypes/msa"])
    features = steps.run((steps.make_profile, steps.make_atom_maps, steps.make_target_feat), features, RNG)
    np.testing.assert_allclose(features["hhblits_profile"], recorded["hhblits_profile"], atol=1e-6)
    for key in (
        "atom14_atom_exists",
        "atom37_atom_exists",
        "residx_atom14_to_atom37",
        "residx_atom37_to_atom14",
        "seq_mask",
        "target_feat",
    ):
        np.testing.assert_array_equal(features[key], recorded[key], err_msg=key)


def test_consequences_of_recorded_choices_are_deepminds(transformed):
    query, recorded = transformed
    features = steps.query_features(query)
    features = steps.split_rows(features, recorded["in/selected_rows"], recorded["in/extra_rows"])
    features = {**features, "msa": recorded["in/msa"].astype(np.uint8)}
    features = steps.run(
        (steps.assign_clusters, steps.summarize_clusters, steps.make_msa_feat), features, RNG
    )
    assignment = recorded["extra_cluster_assignment_gap0"]
    np.testing.assert_array_equal(features["extra_cluster_assignment"], assignment)
    for key in (
        "cluster_profile",
        "cluster_deletion_mean",
        "extra_has_deletion",
        "extra_deletion_value",
        "msa_feat",
    ):
        np.testing.assert_allclose(features[key], recorded[key], atol=1e-6, err_msg=key)


def alignment(*rows, deletions=None):
    deletions = np.zeros((len(rows), len(rows[0])), np.int32) if deletions is None else np.array(deletions)
    return Alignment(rows, deletions, tuple(f"row {i}" for i in range(len(rows))))


def test_rows_that_occur_twice_are_dropped_with_their_deletions():
    first = alignment("MKV", "MRV", "MKV", deletions=[[0, 0, 0], [1, 0, 0], [9, 9, 9]])
    second = alignment("MKV", "M-V", "MRV", "WWW", deletions=[[8, 8, 8], [0, 2, 0], [7, 7, 7], [0, 0, 3]])
    features = steps.query_features(Query("q", "MKV", (first, second)))
    letters = {index: letter for letter, index in MSA_INDEX.items() if letter not in "BJOUZ"}
    assert ["".join(letters[i] for i in row) for row in features["msa"]] == ["MKV", "MRV", "M-V", "WWW"]
    assert features["deletion_matrix"].tolist() == [[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]]


@pytest.mark.parametrize("alignments", [(), (Alignment((), np.zeros((0, 0), np.int32), ()),)])
def test_without_rows_the_sequence_is_the_msa(alignments):
    features = steps.query_features(Query("q", "MXV", alignments))
    assert features["msa"].tolist() == [[12, 20, 19]]
    assert features["deletion_matrix"].tolist() == [[0, 0, 0]]


def test_a_row_of_another_length_is_named():
    with pytest.raises(
        InputError, match="q: row 2 of alignment 2 has 4 columns, but the sequence has 3 residues"
    ):
        steps.query_features(Query("q", "MKV", (alignment("MKV"), alignment("MKV", "MKVV"))))


@pytest.mark.parametrize("letter", ["a", "*", "é", "."])
def test_a_row_with_an_illegal_letter_is_named(letter):
    with pytest.raises(InputError, match="row 2 of alignment 1 holds other characters"):
        steps.query_features(Query("q", "MKV", (alignment("MKV", f"M{letter}V"),)))


def random_features(rows, n_res, seed=0):
    rng = np.random.default_rng(seed)
    msa = rng.integers(0, 22, (rows, n_res), dtype=np.uint8)
    msa[0] = rng.integers(0, 20, n_res)
    deletions = rng.integers(0, 9, (rows, n_res)) * (rng.random((rows, n_res)) < 0.3)
    features = {"msa": msa, "deletion_matrix": deletions.astype(np.int32)}
    return steps.make_profile(features, rng)


def test_profile_is_that_of_the_rows_in_any_order():
    features = random_features(40, 17)
    shuffled = {"msa": features["msa"][np.random.default_rng(1).permutation(40)]}
    profile = steps.make_profile(shuffled, RNG)["hhblits_profile"]
    np.testing.assert_array_equal(profile, features["hhblits_profile"])
    np.testing.assert_allclose(profile.sum(axis=-1), 1, rtol=1e-6)


def test_sampled_rows_are_all_rows_once_and_the_query_leads():
    features = random_features(50, 9)
    seen = set()
    for seed in range(20):
        sample = steps.sample_rows(12)(features, np.random.default_rng(seed))
        np.testing.assert_array_equal(sample["msa"][0], features["msa"][0])
        assert (len(sample["msa"]), len(sample["extra_msa"])) == (12, 38)
        rows = np.concatenate([sample["msa"], sample["extra_msa"]])
        assert sorted(map(bytes, rows)) == sorted(map(bytes, features["msa"]))
        seen.update(map(bytes, sample["msa"]))
    assert len(seen) == 50  # every row can be a centre


def test_deletions_stay_with_their_rows():
    features = random_features(50, 9)
    deletions = dict(zip(map(bytes, features["msa"]), features["deletion_matrix"], strict=True))
    sample = steps.sample_rows(12)(features, np.random.default_rng(3))
    for prefix in ("", "extra_"):
        for row, count in zip(sample[f"{prefix}msa"], sample[f"{prefix}deletion_matrix"], strict=True):
            np.testing.assert_array_equal(count, deletions[bytes(row)])


def test_masking_replaces_in_the_wanted_shares():
    msa = np.full((400, 500), 3, np.uint8)
    msa[:, 250:] = 21  # gaps are masked too
    profile = np.zeros((500, 22), np.float32)
    profile[:, 7] = 1
    features = {"msa": msa, "hhblits_profile": profile}
    masked = steps.mask_msa(Data())(features, np.random.default_rng(0))
    chosen = masked["bert_mask"] == 1
    assert chosen.mean() == pytest.approx(0.15, abs=0.005)
    np.testing.assert_array_equal(masked["true_msa"], msa)
    np.testing.assert_array_equal(masked["msa"][~chosen], msa[~chosen])
    for half, same in ((slice(250), 3), (slice(250, 500), 21)):
        values = masked["msa"][:, half][chosen[:, half]]
        shares = np.bincount(values, minlength=23) / len(values)
        assert shares[22] == pytest.approx(0.7, abs=0.015)
        assert shares[7] == pytest.approx(0.1 + 0.005, abs=0.01)
        assert shares[same] == pytest.approx(0.1 + (0.005 if same < 20 else 0), abs=0.01)
        others = [i for i in range(20) if i not in (7, same)]
        np.testing.assert_allclose(shares[others], 0.005, atol=0.003)
        assert shares[20] == 0


def test_masking_draws_from_the_columns_profile():
    features = random_features(3000, 2)
    only_profile = Data(masked_fraction=1, masked_uniform=0, masked_profile=1, masked_same=0)
    masked = steps.mask_msa(only_profile)(features, np.random.default_rng(0))["msa"]
    drawn = steps.make_profile({"msa": masked}, RNG)["hhblits_profile"]
    np.testing.assert_allclose(drawn, features["hhblits_profile"], atol=0.03)


def test_nothing_is_masked_without_a_share():
    features = random_features(30, 20)
    masked = steps.mask_msa(Data(masked_fraction=0))(features, np.random.default_rng(0))
    np.testing.assert_array_equal(masked["msa"], features["msa"])
    assert not masked["bert_mask"].any()


@pytest.mark.parametrize(
    ("clusters", "rows", "n_res"), [(7, 40, 19), (3, 1200, 3), (5, 30, 600), (1, 9, 4), (4, 4, 5)]
)
def test_nearest_centre_is_that_of_the_definition(clusters, rows, n_res):
    sample = steps.split_rows(random_features(rows, n_res), np.arange(clusters), np.arange(clusters, rows))
    msa = sample["msa"].copy()
    msa[np.random.default_rng(1).random(msa.shape) < 0.15] = steps.MASKED
    assigned = steps.assign_clusters({**sample, "msa": msa}, RNG)["extra_cluster_assignment"]
    equal = (sample["extra_msa"][:, None] == msa) & (msa < steps.GAP)
    np.testing.assert_array_equal(assigned, equal.sum(axis=-1).argmax(axis=-1))
    assert assigned.dtype == np.int32


def test_clusters_are_summed_up():
    sample = {
        "msa": np.array([[1, 22], [2, 3]], np.uint8),
        "deletion_matrix": np.array([[0, 3], [0, 0]], np.int32),
        "extra_msa": np.array([[1, 5], [1, 6], [1, 21]], np.uint8),
        "extra_deletion_matrix": np.array([[0, 0], [0, 3], [4, 0]], np.int32),
        "extra_cluster_assignment": np.array([0, 0, 0], np.int32),
    }
    result = steps.summarize_clusters(sample, RNG)
    profile = np.zeros((2, 2, 23))
    profile[0, 0, 1] = profile[1, 0, 2] = profile[1, 1, 3] = 1
    profile[0, 1, [5, 6, 21, 22]] = 0.25
    np.testing.assert_allclose(result["cluster_profile"], profile, atol=2e-6)
    np.testing.assert_allclose(result["cluster_deletion_mean"], [[1, 1.5], [0, 0]], atol=3e-6)


def test_summary_does_not_depend_on_the_order_of_extra_rows():
    sample = steps.split_rows(random_features(60, 30), np.arange(6), np.arange(6, 60))
    order = np.random.default_rng(0).permutation(54)
    turned = {**sample} | {k: sample[k][order] for k in ("extra_msa", "extra_deletion_matrix")}
    both = [steps.run((steps.assign_clusters, steps.summarize_clusters), x, RNG) for x in (sample, turned)]
    for key in ("cluster_profile", "cluster_deletion_mean"):
        np.testing.assert_array_equal(both[0][key], both[1][key])


def test_deletion_features():
    sample = steps.split_rows(random_features(5, 4), np.arange(2), np.arange(2, 5))
    sample = {**sample, "extra_deletion_matrix": np.array([[0, 1, 3, 10**6]] * 3, np.int32)}
    result = steps.run((steps.assign_clusters, steps.summarize_clusters, steps.make_msa_feat), sample, RNG)
    np.testing.assert_array_equal(result["extra_has_deletion"][0], [0, 1, 1, 1])
    np.testing.assert_allclose(result["extra_deletion_value"][0], [0, 0.2048328, 0.5, 1], atol=3e-6)


def test_pseudo_beta_is_the_alpha_of_glycine():
    positions = np.random.default_rng(0).normal(size=(1, 3, 37, 3)).astype(np.float32)
    masks = np.zeros((1, 3, 37), np.float32)
    masks[0, 0, 1] = masks[0, 1, 3] = 1
    aatype = np.array([[RESTYPES_WITH_X.index(letter) for letter in "GAG"]], np.int32)
    features = {
        "template_aatype": aatype,
        "template_all_atom_positions": positions,
        "template_all_atom_masks": masks,
    }
    features = steps.make_template_pseudo_beta(features, RNG)
    np.testing.assert_array_equal(features["template_pseudo_beta"][0], positions[0, [0, 1, 2], [1, 3, 1]])
    np.testing.assert_array_equal(features["template_pseudo_beta_mask"], [[1, 1, 0]])


@pytest.mark.parametrize("case", ["mono_small"])
def test_pseudo_beta_is_deepminds(parity, case):
    inputs = dict(np.load(parity / f"cases/{case}/inputs.npz", allow_pickle=False))
    computed = steps.make_template_pseudo_beta(inputs, RNG)
    real = inputs["template_mask"] == 1  # padding says alanine
    for key in ("template_pseudo_beta", "template_pseudo_beta_mask"):
        np.testing.assert_array_equal(computed[key][real], inputs[key][real])


def numbered(rows, n_res=3):
    """An MSA whose rows say where they stood."""
    return {"msa": np.tile(np.arange(rows)[:, None], (1, n_res)), "deletion_matrix": np.zeros((rows, n_res))}


@pytest.mark.parametrize("rows", [1, 2, 3, 10, 101])
def test_blocks_are_those_of_algorithm_1(rows):
    step = steps.delete_blocks(5, 0.3)
    for seed in range(20):
        found = step(numbered(rows), np.random.default_rng(seed))
        starts = np.random.default_rng(seed).integers(rows, size=5)
        deleted = {row for start in starts for row in range(start, start + rows * 3 // 10)}
        kept = [row for row in range(rows) if row == 0 or row not in deleted]
        assert found["msa"][:, 0].tolist() == kept
        assert len(found["deletion_matrix"]) == len(kept)


def test_rows_are_thinned_evenly_and_in_order():
    counts = np.zeros(50)
    for seed in range(2000):
        kept = steps.thin_rows(10)(numbered(50), np.random.default_rng(seed))["msa"][:, 0]
        assert len(kept) == 10
        assert kept[0] == 0
        assert (np.diff(kept) > 0).all()
        counts[kept] += 1
    np.testing.assert_allclose(counts[1:] / 2000, 9 / 49, atol=0.04)
    for rows in (1, 10):
        np.testing.assert_array_equal(steps.thin_rows(10)(numbered(rows), RNG)["msa"], numbered(rows)["msa"])
    assert steps.thin_rows(1)(numbered(4), RNG)["msa"].tolist() == [[0, 0, 0]]


def test_rows_are_drawn_from_the_profile():
    profile = np.array([[0, 0, 3, 1] + [0] * 16, [0] * 19 + [7], [1] * 20], np.uint8)
    query = {"msa": np.array([[5, 6, 7]], np.uint8), "deletion_matrix": np.zeros((1, 3), np.uint8)}
    found = steps.draw_rows(profile, 20_001)(query, np.random.default_rng(0))
    assert found["msa"].shape == found["deletion_matrix"].shape == (20_001, 3)
    assert found["msa"][0].tolist() == [5, 6, 7]
    shares = np.stack([np.bincount(column, minlength=22) for column in found["msa"][1:].T]) / 20_000
    wanted = np.pad(profile / profile.sum(-1, keepdims=True), ((0, 0), (0, 2)))
    np.testing.assert_allclose(shares, wanted, atol=0.015)
    assert not shares[wanted == 0].any()
    np.testing.assert_allclose(found["hhblits_profile"], wanted, rtol=1e-6)


def test_residues_are_cropped_in_every_feature_that_has_them():
    features = {
        "aatype": np.arange(5),
        "msa": np.arange(10).reshape(2, 5),
        "template_aatype": np.arange(10).reshape(2, 5),
        "extra_cluster_assignment": np.arange(7),
        "hhblits_profile": np.arange(110).reshape(5, 22),
        "extra_deletion_matrix": np.arange(35).reshape(7, 5),
    }
    found = steps.crop_residues(np.array([1, 2, 4]))(features, RNG)
    np.testing.assert_array_equal(found["aatype"], [1, 2, 4])
    np.testing.assert_array_equal(found["msa"], features["msa"][:, [1, 2, 4]])
    np.testing.assert_array_equal(found["template_aatype"], features["template_aatype"][:, [1, 2, 4]])
    np.testing.assert_array_equal(found["hhblits_profile"], features["hhblits_profile"][[1, 2, 4]])
    np.testing.assert_array_equal(
        found["extra_deletion_matrix"], features["extra_deletion_matrix"][:, [1, 2, 4]]
    )
    np.testing.assert_array_equal(found["extra_cluster_assignment"], np.arange(7))


def test_steps_change_nothing_they_are_given():
    features = random_features(30, 8)
    before = {name: value.copy() for name, value in features.items()}
    steps.run(
        (
            steps.delete_blocks(2, 0.1),
            steps.thin_rows(7),
            steps.sample_rows(5),
            steps.mask_msa(Data()),
            steps.assign_clusters,
            steps.crop_residues(np.arange(4)),
            steps.summarize_clusters,
            steps.crop_extra(9),
            steps.make_msa_feat,
            steps.finish,
        ),
        features,
        np.random.default_rng(0),
    )
    assert features.keys() == before.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(features[name], value)

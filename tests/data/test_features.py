import numpy as np
import pytest

from axfold.data.features import AXES, FEATURES, check
from axfold.errors import InputError

SIZES = {"N": 5, "S": 3, "E": 4, "T": 2}


@pytest.fixture
def features():
    return {
        name: np.zeros((2, *(SIZES.get(axis, axis) for axis in feature.shape)), feature.dtype)
        for name, feature in FEATURES.items()
    }


@pytest.mark.parametrize(
    ("case", "templates"), [("mono_small", True), ("mono_notemplate", False), ("losses", False)]
)
def test_deepminds_features_pass(parity, case, templates):
    check(dict(np.load(parity / f"cases/{case}/inputs.npz", allow_pickle=False)), templates=templates)


@pytest.mark.parametrize("name", ["mono_small", "mono_notemplate"])
def test_every_feature_of_deepminds_files_is_in_the_table(parity, name):
    recorded = np.load(parity / f"cases/{name}/inputs.npz", allow_pickle=False)
    assert set(recorded) - set(FEATURES) == {"random_crop_to_size_seed"}
    assert all(recorded[name].dtype == FEATURES[name].dtype for name in set(recorded) & set(FEATURES))


def test_axes_have_names():
    assert {axis for feature in FEATURES.values() for axis in feature.shape if isinstance(axis, str)} < set(
        AXES
    )


def test_templates_may_lack_where_the_model_takes_none(features):
    few = {name: value for name, value in features.items() if not name.startswith("template_")}
    check(few, templates=False)
    with pytest.raises(InputError, match=r"lack template_mask, of the shape \(sample, T\)"):
        check(few, templates=True)


def test_what_the_network_does_not_read_is_ignored(features):
    del features["bert_mask"]
    features["true_msa"] = np.zeros(3)
    check({**features, "other": np.zeros(3)}, templates=True)


def test_no_templates_are_allowed(features):
    for name, feature in FEATURES.items():
        if feature.shape and feature.shape[0] == "T":
            features[name] = features[name][:, :0]
    check(features, templates=True)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "msa_feat",
            lambda x: x[0],
            r"msa_feat has the shape \(3, 5, 49\), but its axes are \(sample, S, N, 49\)",
        ),
        ("msa_feat", lambda x: x[..., 1:], r"msa_feat has the shape \(2, 3, 5, 48\)"),
        ("msa_feat", lambda x: x.astype(np.float64), "msa_feat has the type float64, but float32 is needed"),
        (
            "seq_mask",
            lambda x: x[:, 1:],
            r"seq_mask has the shape \(2, 4\).*the features before it have N = 5",
        ),
        ("extra_msa_mask", lambda x: x[:1], "the features before it have sample = 2"),
        (
            "msa_feat",
            lambda x: x[:, :0],
            r"msa_feat has the shape .*: there are no clusters of the MSA \(S\)",
        ),
        ("target_feat", lambda x: x + np.float32(np.nan), "target_feat holds values that are not finite"),
        ("aatype", lambda x: x + np.int32(21), "aatype has values from 21 to 21, but 0 to 20 are possible"),
        (
            "residue_index",
            lambda x: x - np.int32(1),
            "residue_index has values from -1 to -1, but 0 and up are possible",
        ),
    ],
)
def test_the_first_wrong_feature_is_named(features, name, change, message):
    features[name] = change(features[name])
    with pytest.raises(InputError, match=message):
        check(features, templates=True)


def test_a_feature_that_lacks_is_named_with_its_meaning(features):
    del features["extra_msa"]
    with pytest.raises(
        InputError, match=r"lack extra_msa, of the shape \(sample, E, N\): rows that are no cluster centre"
    ):
        check(features, templates=True)

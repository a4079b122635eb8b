"""Features in a file -> outputs in a file."""

import numpy as np
import pytest

from axfold.config import PRESETS
from axfold.data import pipelines
from axfold.data.query import Query
from axfold.errors import InputError
from axfold.forward import forward

N_RES = 9
NAMES = {
    "final_atom_positions": (N_RES, 37, 3),
    "final_atom_mask": (N_RES, 37),
    "predicted_lddt_logits": (N_RES, 50),
    "distogram_logits": (N_RES, N_RES, 64),
    "masked_msa_logits": (1, N_RES, 23),
    "experimentally_resolved_logits": (N_RES, 37),
    "predicted_aligned_error_logits": (N_RES, N_RES, 64),
    "single": (N_RES, 20),
    "msa_first_row": (N_RES, 16),
    "pair": (N_RES, N_RES, 12),
}


@pytest.fixture
def features(small, tmp_path):
    """Writes the features of a short protein for a model and as many samples; the file's path."""

    def write(model: str = "model_1_ptm", samples: int = 4, **changed) -> str:
        made = pipelines.monomer(Query(name="q", sequence="MKTAYIAKQ"), PRESETS[model], 0, passes=samples)
        path = tmp_path / "inputs.npz"
        np.savez(path, **{name: value for name, value in {**made, **changed}.items() if value is not None})
        return path

    return write


def load(path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def test_outputs_have_the_recorded_names(features, tmp_path):
    out = tmp_path / "new" / "outputs.npz"
    forward(features(), "synthetic", "model_1_ptm", out, recycles=3, device="cpu")
    found = load(out)
    assert {name: value.shape for name, value in found.items()} == NAMES
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}
    assert [path.name for path in out.parent.iterdir()] == ["outputs.npz"]  # nothing temporary


def test_models_without_aligned_error_have_none(features, tmp_path):
    out = tmp_path / "outputs.npz"
    forward(features("model_3"), "synthetic:1", "model_3", out, recycles=0, device="cpu")
    assert set(load(out)) == set(NAMES) - {"predicted_aligned_error_logits"}


def test_pass_r_reads_sample_r(features, tmp_path):
    """The same samples in another order end elsewhere; samples beyond the last pass are not read."""
    made = load(features())
    outputs = []
    for order in ([0, 1], [1, 0], [0, 1, 3, 2]):
        out = tmp_path / f"{len(outputs)}.npz"
        path = features(**{name: value[order] for name, value in made.items()})
        # without an alignment all samples are equal but for their masking
        forward(path, "synthetic", "model_1_ptm", out, recycles=1, device="cpu")
        outputs.append(load(out)["pair"])
    assert not np.array_equal(outputs[0], outputs[1])
    assert np.array_equal(outputs[0], outputs[2])


def test_bf16_differs_by_rounding(features, tmp_path):
    pairs = []
    for precision in ("fp32", "bf16"):
        out = tmp_path / f"{precision}.npz"
        forward(features(), "synthetic", "model_1_ptm", out, recycles=0, precision=precision, device="cpu")
        pairs.append(load(out)["pair"])
    difference = np.linalg.norm(pairs[0] - pairs[1]) / np.linalg.norm(pairs[0])
    assert 1e-5 < difference < 0.1


def test_too_few_samples(features, tmp_path):
    path = features(samples=4)
    out = tmp_path / "outputs.npz"
    with pytest.raises(InputError, match=r"inputs\.npz: the features hold 4 samples, and 4 recycles need 5"):
        forward(path, "synthetic", "model_1_ptm", out, recycles=4, device="cpu")
    with pytest.raises(InputError, match="hold 4 samples, and 1 recycles need 6: 2 passes of 3"):
        forward(path, "synthetic", "model_1_ptm", out, recycles=1, ensembles=3, device="cpu")
    assert not out.exists()


def test_features_are_checked(features, tmp_path):
    path = features(aatype=None)
    with pytest.raises(InputError, match=r"inputs\.npz: The features lack aatype"):
        forward(path, "synthetic", "model_1_ptm", tmp_path / "outputs.npz", device="cpu")


def test_features_of_a_model_without_templates_do_not_fit_one_with(features, tmp_path):
    path = features("model_3_ptm")
    with pytest.raises(InputError, match="The features lack template_mask"):
        forward(path, "synthetic", "model_1_ptm", tmp_path / "outputs.npz", device="cpu")


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 and more", b"\x93NUMPY\x01\x00"])
def test_what_is_no_npz(small, tmp_path, content):
    path = tmp_path / "inputs.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"inputs\.npz: can't be read"):
        forward(path, "synthetic", "model_1_ptm", tmp_path / "outputs.npz", device="cpu")


def test_one_array_is_no_npz(small, tmp_path):
    path = tmp_path / "inputs.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InputError, match=r"inputs\.npz: can't be read"):
        forward(path, "synthetic", "model_1_ptm", tmp_path / "outputs.npz", device="cpu")


def test_pickled_features_are_refused(small, tmp_path):
    path = tmp_path / "inputs.npz"
    np.savez(path, aatype=np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(InputError, match=r"inputs\.npz: can't be read"):
        forward(path, "synthetic", "model_1_ptm", tmp_path / "outputs.npz", device="cpu")


def test_no_such_file(small, tmp_path):
    with pytest.raises(InputError, match="No such file"):
        forward(tmp_path / "none.npz", "synthetic", "model_1_ptm", tmp_path / "outputs.npz")

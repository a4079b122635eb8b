import json

import numpy as np
import pytest

from axfold.weights.download import CHECKSUMS, sha256
from axfold.weights.verify import verify


@pytest.fixture
def folder(tmp_path, tiny, released):
    """A cache with one model, as a download leaves it."""
    folder = tmp_path / "params"
    folder.mkdir()
    np.savez(folder / "params_model_1_ptm.npz", **released)
    (folder / "params_model_1_multimer_v3.npz").write_bytes(b"not for us")
    record(folder)
    return folder


def record(folder):
    digests = {path.name: sha256(path) for path in folder.glob("*.npz")}
    (folder / CHECKSUMS).write_text(json.dumps(digests))


def test_whole_files(folder, tmp_path):
    verdicts = {verdict.model: verdict for verdict in verify(tmp_path)}
    assert verdicts.keys() == {"model_1_ptm", "model_1_multimer_v3"}
    assert all(verdict.problem is None and verdict.recorded for verdict in verdicts.values())
    assert verdicts["model_1_ptm"].sha256 == sha256(folder / "params_model_1_ptm.npz")


def test_a_changed_file(folder, tmp_path):
    for path in folder.glob("*.npz"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    for verdict in verify(tmp_path):
        assert (
            "has changed since it was unpacked: remove it and run `axfold weights download`"
            in verdict.problem
        )
        assert str(verdict.path) in verdict.problem


def test_without_a_record_the_tensors_are_checked(folder, tmp_path, released):
    (folder / CHECKSUMS).unlink()
    verdict = next(verify(tmp_path))
    assert (verdict.recorded, verdict.problem) == (False, None)
    released["alphafold/alphafold_iteration/evoformer/left_single//bias"][0] = np.nan
    np.savez(folder / "params_model_1_ptm.npz", **released)
    assert "left_single//bias holds NaN" in next(verify(tmp_path)).problem


def test_wrong_tensors_are_found_although_the_checksum_is_right(folder, tmp_path, released):
    released.popitem()
    np.savez(folder / "params_model_1_ptm.npz", **released)
    record(folder)
    assert "is missing" in next(verify(tmp_path)).problem


def test_an_empty_cache(tmp_path):
    assert list(verify(tmp_path)) == []

import gzip
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from axfold.config import Config
from axfold.errors import AxfoldError, WeightsError
from axfold.weights import files, fit
from axfold.weights.names import ROOT

A_TENSOR = f"{ROOT}/evoformer/left_single//weights"


@pytest.fixture
def npz(tmp_path, released):
    path = tmp_path / "params_model_1_ptm.npz"
    np.savez(path, **released)
    return path


def same(path, config, expected):
    with files.opened(path, config) as tensors:
        assert tensors.keys() == expected.keys()
        for name, array in expected.items():
            assert tensors[name].dtype == np.float32
            np.testing.assert_array_equal(tensors[name], array)


def refused(path, config):
    """The message for a file, read to its last tensor."""
    with pytest.raises(WeightsError) as caught, files.opened(path, config) as tensors:  # noqa: PT012
        for name in tensors:
            tensors[name]
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.endswith(".")
    assert "\n" not in message
    return message


def test_npz(npz, tiny, released):
    same(npz, tiny, released)


def test_a_compressed_npz_of_any_name(tmp_path, tiny, released):
    np.savez_compressed(tmp_path / "mine.npz", **released)
    (tmp_path / "mine.npz").rename(tmp_path / "mine")
    same(tmp_path / "mine", tiny, released)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("folder", ["", "./", "params/"])
def test_tar_as_released(mode, folder, tmp_path, npz, tiny, released):
    path = tmp_path / "alphafold_params_2022-12-06.tar"
    with tarfile.open(path, mode) as tar:
        for name in ("params_model_1.npz", "LICENSE"):
            tar.addfile(tarfile.TarInfo(folder + name))
        tar.add(npz, folder + npz.name)
    same(path, tiny, released)


def test_a_tar_without_the_model(tmp_path, tiny):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("params_model_3.npz"))
    assert "has no params_model_1_ptm.npz; it holds 'params_model_3.npz'." in refused(path, tiny)


def test_a_link_in_a_tar_is_not_followed(tmp_path, npz, tiny):
    path = tmp_path / "a.tar"
    link = tarfile.TarInfo(npz.name)
    link.type, link.linkname = tarfile.SYMTYPE, str(npz)
    with tarfile.open(path, "w") as tar:
        tar.addfile(link)
    assert "has no params_model_1_ptm.npz" in refused(path, tiny)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {
            "ema": {"params": state, "decay": 0.999},
            "module": {n: t * 0 for n, t in state.items()},
        },
        lambda state: {"state_dict": {f"model.{n}": t for n, t in state.items()}, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {"module": {f"module.{n}": t for n, t in state.items()}},
    ],
    ids=["bare", "ema", "lightning", "model", "deepspeed"],
)
def test_openfold_checkpoints(wrap, to_openfold, tmp_path, tiny, released):
    path = tmp_path / "finetuning_ptm.pt"
    torch.save(wrap(to_openfold(released, tiny.model)), path)
    same(path, tiny, released)


def test_safetensors_come_back_as_written(tmp_path, tiny):
    path = tmp_path / "new" / "a.safetensors"
    rng = np.random.default_rng(0)
    state = {n: rng.normal(size=s).astype(np.float32) for n, s in fit.state_shapes(tiny.model).items()}
    files.write(path, state, {"model": tiny.name, "source": "test", "licence": "none"})
    same(path, tiny, state)
    with files.opened(path, tiny) as tensors:
        assert tensors.naming == "axfold"
    assert list(path.parent.iterdir()) == [path]


def test_an_array_that_is_not_contiguous_is_written_as_it_reads(tmp_path):
    from safetensors.numpy import load_file

    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    files.write(tmp_path / "a.safetensors", {"x": array}, {"model": "m"})
    np.testing.assert_array_equal(load_file(tmp_path / "a.safetensors")["x"], array)


# What is refused, and with which words


def test_a_missing_file(tmp_path, tiny):
    assert "there is no such file" in refused(tmp_path / "params_model_1_ptm.npz", tiny)


def test_a_file_that_is_empty(tmp_path, tiny):
    (tmp_path / "a.npz").touch()
    assert "is empty" in refused(tmp_path / "a.npz", tiny)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_a_truncated_npz(share, npz, tiny):
    content = npz.read_bytes()
    npz.write_bytes(content[: max(600, int(share * len(content)))])
    assert "damaged or incomplete; download or copy it again" in refused(npz, tiny)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_tar(mode, share, tmp_path, npz, tiny):
    path = tmp_path / "a.tar"
    with tarfile.open(path, mode) as tar:
        tar.add(npz, npz.name)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * npz.stat().st_size if mode == "w" else share * len(content))])
    assert "damaged or incomplete" in refused(path, tiny)


def test_one_flipped_bit(npz, tiny, released):
    content = bytearray(npz.read_bytes())
    content[content.index(released[A_TENSOR].tobytes()) + 2] ^= 1
    npz.write_bytes(content)
    message = refused(npz, tiny)
    assert A_TENSOR in message
    assert "damaged" in message


def test_a_missing_tensor(npz, tiny, released):
    del released[A_TENSOR]
    np.savez(npz, **released)
    assert f"tensor {A_TENSOR} is missing (shape wanted: (22, 4))" in refused(npz, tiny)


def test_a_wrong_shape(npz, tiny, released):
    released[A_TENSOR] = released[A_TENSOR].T
    np.savez(npz, **released)
    assert f"tensor {A_TENSOR} has shape (4, 22), and (22, 4) is wanted" in refused(npz, tiny)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite(bad, npz, tiny, released):
    released[A_TENSOR][3, 1] = bad
    np.savez(npz, **released)
    assert f"tensor {A_TENSOR} holds NaN or infinite values" in refused(npz, tiny)


@pytest.mark.parametrize("dtype", [np.float64, np.int32, ">f4", object])
def test_another_dtype(dtype, npz, tiny, released):
    released[A_TENSOR] = released[A_TENSOR].astype(dtype)
    np.savez(npz, **released)
    assert f"tensor {A_TENSOR} has dtype {np.dtype(dtype)}, and float32 is wanted" in refused(npz, tiny)


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_is_unpickled(tmp_path, npz, tiny, released):
    trap = tmp_path / "trap"
    released[A_TENSOR] = np.full(released[A_TENSOR].shape, Bomb(trap), dtype=object)
    np.savez(npz, **released)
    assert "has dtype object" in refused(npz, tiny)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Bomb(trap)))
    assert "is a Python pickle" in refused(tmp_path / "a.pkl", tiny)
    torch.save({"state_dict": {"x": torch.zeros(2)}, "hyper": Bomb(trap)}, tmp_path / "a.pt")
    assert "holds Python objects beside tensors" in refused(tmp_path / "a.pt", tiny)
    torch.save({"x": torch.zeros(2)}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    assert "is a Python pickle" in refused(tmp_path / "b.pt", tiny)
    assert not trap.exists()


def test_a_web_page(tmp_path, tiny):
    (tmp_path / "params_model_1_ptm.npz").write_text("\n<!DOCTYPE html><title>Sign in</title>")
    assert "is a web page" in refused(tmp_path / "params_model_1_ptm.npz", tiny)


@pytest.mark.parametrize("content", [b"ATOM      1  N   MET A   1\n", b"\x00" * 2000, b"\x93NUMPY\x01\x00"])
def test_another_sort_of_file(content, tmp_path, tiny):
    (tmp_path / "a.npz").write_bytes(content)
    assert "is no parameter file: .npz, .tar, .pt or .safetensors are read" in refused(
        tmp_path / "a.npz", tiny
    )


def test_a_zip_of_other_things(tmp_path, tiny):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("notes.txt", "hello")
    assert "is a zip archive, but holds neither" in refused(tmp_path / "a.npz", tiny)


def test_a_gzip_of_other_things(tmp_path, tiny):
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(b"hello" * 1000))
    assert "can't be read" in refused(tmp_path / "a.tar.gz", tiny)


def test_a_checkpoint_without_a_state_dict(tmp_path, tiny):
    torch.save([torch.zeros(3)], tmp_path / "a.pt")
    assert "holds no state dict" in refused(tmp_path / "a.pt", tiny)


def test_a_truncated_checkpoint(to_openfold, tmp_path, tiny, released):
    path = tmp_path / "a.pt"
    torch.save(to_openfold(released, tiny.model), path)
    path.write_bytes(path.read_bytes()[:-300])
    assert "damaged or incomplete" in refused(path, tiny)


def test_released_files_of_one_shape_are_told_apart_by_name(npz, tiny):
    twin = Config(name="model_2_ptm", model=tiny.model)
    message = refused(npz, twin)
    assert (
        "by its name it holds model_1_ptm, and model_2_ptm is wanted. Choose --model model_1_ptm" in message
    )


def save_own(path, about):
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3, np.float32)}, path, about)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        (None, "is not axfold's: convert the original file"),
        ({"format": "pt"}, "is not axfold's"),
        ({"format": "axfold", "format_version": "99"}, "has format version 99, and 1 is read"),
        (
            {"format": "axfold", "format_version": "1", "model": "model_5"},
            "holds model_5, and model_1_ptm is wanted",
        ),
        ({"format": "axfold", "format_version": "1", "model": "model_1_ptm"}, "is missing (shape wanted"),
    ],
)
def test_other_safetensors(about, words, tmp_path, tiny):
    save_own(tmp_path / "a.safetensors", about)
    assert words in refused(tmp_path / "a.safetensors", tiny)


def test_a_truncated_safetensors(tmp_path, tiny):
    path = tmp_path / "a.safetensors"
    save_own(path, {"format": "axfold"})
    path.write_bytes(path.read_bytes()[:-4])
    assert "damaged or incomplete" in refused(path, tiny)


def test_a_folder_is_no_file(tmp_path, tiny):
    assert "can't be read" in refused(tmp_path, tiny)


# Writing


def test_a_failed_write_leaves_the_former_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("former")
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "former"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_can_not_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AxfoldError, match=r"file/a\.safetensors: can't be written"):
        files.write(tmp_path / "file" / "a.safetensors", {"x": np.zeros(1, np.float32)}, {})


def test_values_are_read_one_tensor_at_a_time(tmp_path, npz, tiny, released):
    """A file whose later tensors are bad serves the earlier ones."""
    released[A_TENSOR][:] = np.nan
    np.savez(npz, **released)
    with files.opened(npz, tiny) as tensors:
        for name in set(tensors) - {A_TENSOR}:
            tensors[name]
        with pytest.raises(WeightsError):
            tensors[A_TENSOR]

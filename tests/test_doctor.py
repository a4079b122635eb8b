"""What of a machine works."""

import builtins
import os

import pytest
import torch

from axfold import doctor, ops
from axfold.doctor import Finding


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of parameters."""
    monkeypatch.setenv("AXFOLD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def by_subject(tmp_path) -> dict[str, Finding]:
    return {finding.subject: finding for finding in doctor.examine(tmp_path)}


def test_what_is_found(tmp_path, cache):
    found = by_subject(tmp_path)
    assert {"axfold", "packages", "PyTorch", "CPU", "parameters", "results", *doctor.PROGRAMS} <= set(found)
    assert torch.__version__ in found["PyTorch"].detail
    assert found["results"].state == "works"


def test_parameters_are_the_thing_to_fetch(tmp_path, cache):
    found = by_subject(tmp_path)
    assert found["parameters"].prevents
    assert "axfold weights download" in doctor.advice(list(found.values()))


def test_with_parameters_one_may_begin(tmp_path, cache):
    (cache / "params").mkdir(parents=True)
    (cache / "params" / "params_model_1_ptm.npz").write_bytes(b"PK")
    found = by_subject(tmp_path)
    assert found["parameters"].detail.startswith("1 of 10 models")
    assert not any(finding.prevents for finding in found.values())
    if found["CUDA" if "CUDA" in found else "cuda:0"].state != "broken":
        assert doctor.advice(list(found.values())).startswith("Fold a protein: axfold predict")


def test_every_backend_of_every_op_is_tried():
    findings = list(doctor.kernels(torch.device("cpu")))
    known = [op for name in ops.__all__ if isinstance(op := getattr(ops, name), ops.Op)]
    assert [finding.subject for finding in findings] == [
        f"{op.name}, {b}" for op in known for b in op.backends
    ]
    assert all(finding.state == "works" for finding in findings if finding.subject.endswith(", reference"))
    assert {op.name for op in known} == set(doctor.EXAMPLES)


@pytest.fixture
def backend():
    """Registers a backend of gated_attention while a test runs."""

    def register(run, why_not=lambda *args: None):
        ops.gated_attention.backend("test", why_not=why_not)(run)
        (finding,) = [item for item in doctor.kernels(torch.device("cpu")) if item.subject.endswith(", test")]
        return finding

    yield register
    ops.gated_attention.backends.pop("test", None)


def test_a_kernel_with_wrong_numbers_is_found(backend):
    reference, _ = ops.gated_attention.backends["reference"]
    finding = backend(lambda *args: reference(*args) * 1.001)
    assert finding.state == "broken"
    assert "relative error 1e-03" in finding.detail
    assert finding.todo


def test_a_kernel_that_gives_no_numbers_is_found(backend):
    finding = backend(lambda q, *args: torch.full((3, 7, 16), float("nan")))
    assert finding.state == "broken"


def test_a_kernel_that_fails_is_found(backend):
    def run(*args):
        raise ValueError("no such instruction")

    finding = backend(run)
    assert (finding.state, finding.detail) == ("broken", "ValueError: no such instruction")
    assert not finding.prevents


def test_a_kernel_that_is_not_for_this_device_says_why(backend):
    finding = backend(lambda *args: None, lambda *args: "it needs CUDA tensors")
    assert finding.state == "absent"
    assert "it needs CUDA tensors" in finding.detail


def test_without_pytorch(tmp_path, monkeypatch):
    real = builtins.__import__

    def fake(name, *args, **kwargs):
        if name == "torch":
            raise OSError("libcudart.so.13: cannot open shared object file")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fake)
    found = by_subject(tmp_path)
    assert found["PyTorch"].prevents
    assert "libcudart" in found["PyTorch"].detail
    assert "pytorch.org" in doctor.advice(list(found.values()))


def test_a_driver_that_pytorch_cannot_use(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda program: f"/usr/bin/{program}")
    found = by_subject(tmp_path)
    assert found["CUDA"].state == "broken"
    assert "driver" in found["CUDA"].detail
    assert not found["CUDA"].prevents
    assert found["kalign"].detail == "/usr/bin/kalign"


def test_a_missing_package(tmp_path, monkeypatch):
    def version(name):
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    found = by_subject(tmp_path)["packages"]
    assert found.prevents
    assert "pip install gemmi" in found.todo


def test_a_folder_that_cannot_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    finding = {item.subject: item for item in doctor.examine(blocked)}["results"]
    assert finding.prevents
    assert str(blocked) in finding.detail


def test_what_prevents_comes_first():
    findings = [
        Finding(subject="a", state="broken", detail="", todo="mend a"),
        Finding(subject="b", state="absent", detail="", needed=True, todo="fetch b"),
    ]
    assert doctor.advice(findings) == "fetch b"
    assert doctor.advice(findings[:1]) == "mend a"
    assert doctor.advice([Finding(subject="c", state="absent", detail="")]).startswith("Fold a protein")


def test_memory_is_counted(tmp_path):
    assert f"{os.cpu_count()} cores" in by_subject(tmp_path)["CPU"].detail

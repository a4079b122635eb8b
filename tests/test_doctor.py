"""What of a machine works."""

import builtins
import os
import re

import pytest
import torch

from axfold import doctor, network, ops
from axfold.doctor import Finding

CPU = torch.device("cpu")


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


def test_every_op_is_tried():
    findings = list(doctor.kernels(CPU))
    known = {op.name for name in ops.__all__ if isinstance(op := getattr(ops, name), ops.Op)}
    known.remove("attention_update")  # of three others, with their kernels
    assert sorted(finding.subject for finding in findings) == sorted(f"{name}, fp32" for name in known)
    assert all(finding.state == "works" for finding in findings)
    by_name = {finding.subject: finding.detail for finding in findings}
    assert re.match(r"sdpa, error \de-0\d \(PyTorch's \de-0\d\), [\d.]+ s", by_name["gated_attention, fp32"])
    assert by_name["add, fp32"] == "reference"


def test_a_gpu_is_tried_in_its_precision_and_in_float32(monkeypatch):
    """On the CPU here, as if it had bfloat16."""
    monkeypatch.setattr(network, "find_precision", lambda name, device: "bf16")
    subjects = [finding.subject for finding in doctor.kernels(CPU)]
    assert subjects[0].endswith(", bf16")
    assert subjects[-1].endswith(", fp32")
    assert len(set(subjects)) == len(subjects) == 2 * len({subject.split(",")[0] for subject in subjects})


@pytest.fixture
def backend(cache):
    """Registers a backend of gated_attention while a test runs."""

    def register(run, why_not=lambda *args: None):
        ops.gated_attention.backend("test", why_not=why_not)(run)
        (finding,) = [item for item in doctor.kernels(CPU) if item.subject.startswith("gated_attention")]
        return finding

    yield register
    ops.gated_attention.backends.pop("test", None)
    ops.gated_attention.forget()


def test_a_kernel_with_wrong_numbers_is_found(backend):
    reference, _ = ops.gated_attention.backends["reference"]
    finding = backend(lambda *args: reference(*args) * 1.001)
    assert finding.state == "broken"
    assert finding.detail.startswith("sdpa, error")
    assert "test: its results are wrong by 1.0e-03" in finding.detail
    assert finding.todo
    assert not finding.prevents


def test_a_kernel_that_works_is_shown(backend):
    reference, _ = ops.gated_attention.backends["reference"]
    finding = backend(reference)
    assert finding.state == "works"
    assert finding.detail.startswith("test, error")


def test_a_kernel_that_takes_some_calls_is_shown_with_the_next(backend):
    reference, _ = ops.gated_attention.backends["reference"]
    finding = backend(reference, lambda q, *args: "heads of 8" if q.shape[-1] == 8 else None)
    assert finding.state == "works"
    assert re.match(r"test in 4 of 5 calls, error .*; sdpa, error .*; test: heads of 8", finding.detail)


def test_a_kernel_that_gives_no_numbers_is_found(backend):
    finding = backend(lambda q, *args: torch.full((3, 63, q.shape[-2] * q.shape[-1]), float("nan")))
    assert finding.state == "broken"


def test_a_kernel_that_fails_is_found(backend):
    def run(*args):
        raise ValueError("no such instruction")

    finding = backend(run)
    assert finding.state == "broken"
    assert "test: ValueError: no such instruction" in finding.detail
    assert not finding.prevents


def test_a_kernel_that_is_not_for_this_device_says_why(backend):
    finding = backend(lambda *args: None, lambda *args: "it needs CUDA tensors")
    assert finding.state == "works"
    assert "test: it needs CUDA tensors" in finding.detail


def test_a_device_on_which_pytorch_itself_fails_prevents_predictions(cache, monkeypatch):
    def broken(*args):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(ops.add, "backends", {"reference": (broken, lambda *args: None)})
    (finding,) = [item for item in doctor.kernels(CPU) if item.subject.startswith("add")]
    assert finding.prevents
    assert finding.detail == "RuntimeError: no kernel image is available"


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

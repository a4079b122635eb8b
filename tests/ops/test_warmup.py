"""Kernels that are made ready beside other work."""

import threading

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from axfold.ops import cases, health, warmup
from axfold.ops.cases import Call
from axfold.ops.health import DeviceLost
from axfold.ops.op import Op
from axfold.ops.small import Small
from axfold.ops.warmup import Warmup

CPU = torch.device("cpu")


def doubled(x: Tensor) -> Tensor:
    return 2 * x


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch):
    """An op with a backend `fast` that does `work` beforehand; a Warmup makes a call of each of them ready."""
    calls: list[Call] = []
    monkeypatch.setattr(cases, "calls", lambda *_, **sizes: iter(calls))
    monkeypatch.setattr(health.HEALTH, "devices", ("cpu",))
    monkeypatch.setattr(health.HEALTH, "_verdicts", {CPU: {}})
    monkeypatch.setattr(health, "_write", lambda *_: None)

    def make(work, **about) -> Op:
        op = Op(doubled)
        op.name = f"op {len(calls)}"
        op.like(lambda x: (Small((3, 5), x.dtype),))

        @op.backend("fast", why_not=lambda x: None)
        def fast(x: Tensor) -> Tensor:
            work()
            return 2 * x

        calls.append(Call(op, "call", (torch.empty(2, 3, device="meta"),), **about))
        return op

    return make


def warm() -> Warmup:
    return Warmup(CPU, torch.float32, residues=100, clusters=10)


def test_kernels_are_built_at_the_same_time_and_checked(make):
    barrier = threading.Barrier(2, timeout=20)
    built = []

    def work():
        if threading.current_thread() not in built:  # a check makes the call once more
            built.append(threading.current_thread())
            if len(built) <= 2:
                barrier.wait()

    ops = [make(work), make(work)]
    warm().wait()
    assert not barrier.broken
    assert len(health.HEALTH._verdicts[CPU]) == 2
    used = len(built)
    for op in ops:
        assert op.backend_for(torch.ones(2, 3)) == "fast"
    assert len(built) == used  # nothing is checked again


def test_a_kernel_that_fails_is_left_out(make):
    def work():
        raise ValueError("no such instruction")

    op = make(work)
    with pytest.warns(health.KernelWarning, match="no such instruction"):
        warm().wait()
    assert op.backend_for(torch.ones(2, 3)) == "reference"


def test_a_device_that_is_lost_is_told(make, monkeypatch):
    def work():
        raise RuntimeError("illegal address")

    make(work)
    monkeypatch.setattr(health, "_works", lambda device: False)
    with pytest.raises(DeviceLost):
        warm().wait()


def test_what_no_network_calls_is_not_built(make):
    built = []
    make(lambda: built.append(1), of_network=False)
    warm().wait()
    assert not built


def test_backends_are_those_of_the_protein(make, monkeypatch):
    """Which one takes a call may depend on the numbers of residues and sequences."""
    asked = []
    monkeypatch.setattr(cases, "calls", lambda dtype, **sizes: asked.append((dtype, sizes)) or iter(()))
    Warmup(CPU, torch.bfloat16, residues=4000, clusters=10).wait()
    assert asked == [(torch.bfloat16, {"length": warmup.MOST, "clusters": 10})]


def test_backends_of_long_proteins_are_among_those_made_ready(monkeypatch):
    """On Hopper, without the memory of a long protein."""
    hopper = pytest.importorskip("axfold.ops.triton.attention_hopper")
    monkeypatch.setattr(hopper.tiles, "gpu", lambda device: (90, 132))

    def taken(residues: int) -> set[tuple[str, str]]:
        found = set()
        with FakeTensorMode():
            for call in cases.calls(torch.bfloat16, length=residues, clusters=512):
                arguments = [
                    x if x is None else torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")
                    for x in call.arguments
                ]
                if call.of_network:
                    memory = sum(x.untyped_storage().nbytes() for x in arguments if x is not None)
                    assert memory < 64 << 20, call
                backends = call.op.backends
                name = next(name for name in reversed(backends) if not backends[name][1](*arguments))
                found.add((call.op.name, name))
        return found

    long = {("gated_attention", "hopper_long"), ("gated_attention", "hopper"), ("normed_linear", "parts")}
    assert taken(warmup.MOST) >= long
    assert ("gated_attention", "hopper_long") not in taken(512)
    assert ("normed_linear", "parts") not in taken(100)
    assert taken(warmup.MOST) == taken(2 * warmup.MOST)


@pytest.mark.gpu
def test_all_kernels_of_a_network_are_ready(monkeypatch, tmp_path):
    """None is checked when the network calls it; prints what making them ready takes."""
    import sys
    import time

    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    device = torch.device("cuda", 0)
    monkeypatch.setenv("AXFOLD_CACHE", str(tmp_path))
    monkeypatch.setattr(health.HEALTH, "_verdicts", {})
    start = time.perf_counter()
    Warmup(device, torch.bfloat16, residues=512, clusters=512, templates=True).wait()
    print(f"ready in {time.perf_counter() - start:.2f} s", file=sys.stderr)
    known = health.HEALTH._verdicts[device]
    assert {verdict.reason for verdict in known.values()} == {None}
    ready = set(known)
    for call in cases.calls(torch.bfloat16):
        if call.of_network:
            with torch.no_grad():
                taken = call.op.backend_for(
                    *(
                        x
                        if x is None
                        else torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)
                        for x in call.arguments
                    )
                )
            assert taken in ("triton", "hopper") or call.op.name == "add", call
    # few queries or positions have other backends
    assert {name.partition(",")[0] for name in set(known) - ready} <= {"gated_attention", "normed_linear"}

"""Kernels are checked before their first use, and what was found is remembered."""

import json
import subprocess
import sys

import pytest
import torch
from kernels import DTYPES, INTERPRETED, kernel, on_a_gpu

from axfold import ops, planning
from axfold.config import PRESETS
from axfold.model.alphafold import AlphaFold
from axfold.ops import cases, health, small
from axfold.ops import op as op_module
from axfold.ops.health import DeviceLost, Health, KernelWarning, check
from axfold.ops.op import BackendError, Op

CPU = torch.device("cpu")
OPS = [value for name in ops.__all__ if isinstance(value := getattr(ops, name), Op) and value.checked]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty cache of verdicts; a process begins."""
    monkeypatch.setenv("AXFOLD_CACHE", str(tmp_path))
    restart(monkeypatch)
    return tmp_path / "kernels"


def restart(monkeypatch):
    """A new process, where tensors on the CPU need checks."""
    monkeypatch.setattr(op_module, "HEALTH", Health(devices=("cpu", "cuda")))
    for op in OPS:
        op.forget()


class Kernel:
    """An op, doubled(x) = 2 x, with a backend that counts its calls and computes what it is told to."""

    def __init__(self, monkeypatch):
        self.calls, self.run, self.monkeypatch = [], lambda x: 2 * x, monkeypatch

        def doubled(x):
            return 2 * x

        self.op = Op(doubled)
        self.op.like(lambda x: (small.normal(x, small.ROWS, small.POSITIONS, x.shape[-1]),))

        @self.op.backend("kernel", why_not=lambda x: None if x.dim() == 3 else "it takes three axes")
        def counted(x):
            self.calls.append(tuple(x.shape))
            return self.run(x)

    def __call__(self, *shape, **named):
        return self.op(torch.ones(shape), **named)

    def restart(self):
        restart(self.monkeypatch)
        self.op.forget()
        self.calls.clear()


@pytest.fixture
def kernel_of_two(monkeypatch):
    return Kernel(monkeypatch)


def verdicts(folder):
    (path,) = folder.iterdir()
    return json.loads(path.read_text("utf-8"))["checks"]


CHECK = (3, 63, 8)


def test_the_first_call_is_checked(kernel_of_two, folder):
    assert (kernel_of_two(2, 5, 8) == 2).all()
    assert kernel_of_two.calls == [CHECK, (2, 5, 8)]
    kernel_of_two(2, 5, 8)
    kernel_of_two(7, 9, 8)  # other rows are the same kernel
    assert kernel_of_two.calls == [CHECK, (2, 5, 8), (2, 5, 8), (7, 9, 8)]
    kernel_of_two(2, 5, 16)  # other channels are not
    assert kernel_of_two.calls[4:] == [(3, 63, 16), (2, 5, 16)]
    assert len(verdicts(folder)) == 2


def test_later_processes_know(kernel_of_two):
    kernel_of_two(2, 5, 8)
    kernel_of_two.restart()
    kernel_of_two(2, 5, 8)
    assert kernel_of_two.calls == [(2, 5, 8)]


def test_a_call_that_is_not_taken_is_not_checked(kernel_of_two):
    assert (kernel_of_two(5, 8) == 2).all()
    assert not kernel_of_two.calls


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: 2.001 * x,
        lambda x: x * float("nan"),
        lambda x: 2 * x[..., :-1],
        lambda x: 2 * x.double(),
        lambda x: torch.cat([2 * x, x[..., :1]], -1),
    ],
    ids=["numbers", "NaN", "shape", "dtype", "beyond the end"],
)
def test_wrong_results_are_left_to_pytorch_with_one_warning(kernel_of_two, wrong, folder):
    kernel_of_two.run = wrong
    with pytest.warns(KernelWarning) as warned:
        assert (kernel_of_two(2, 5, 8) == 2).all()
    assert len(warned) == 1
    assert (kernel_of_two(2, 5, 16) == 2).all()  # a failure as well; a second warning would be an error
    kernel_of_two(2, 5, 8)
    text = str(warned[0].message)
    assert text.startswith(
        "doubled in float32 is left to PyTorch, which is slower: the kernel kernel does not"
    )
    assert "its results are wrong by" in text
    assert "Update the GPU's driver" in text
    assert kernel_of_two.calls == [CHECK, (3, 63, 16)]
    kernel_of_two.restart()
    with pytest.warns(KernelWarning, match="its results are wrong by"):
        kernel_of_two(2, 5, 8)
    assert not kernel_of_two.calls


def test_zeros_beyond_the_end_are_right(kernel_of_two):
    kernel_of_two.run = lambda x: torch.nn.functional.pad(2 * x, (0, 1))
    assert kernel_of_two(2, 5, 8).shape == (2, 5, 9)


def failing(error):
    def run(x):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "says", "lasts"),
    [
        (
            RuntimeError("PTXAS error: no such\ninstruction"),
            "RuntimeError: PTXAS error: no such instruction",
            1,
        ),
        (AssertionError(), "AssertionError:", 1),
        (RuntimeError("Failed to find C compiler. Please specify"), "Install a C compiler", 0),
        (subprocess.CalledProcessError(1, ["gcc"]), "Install a C compiler", 0),
        (PermissionError(13, "Permission denied", "cache"), "PermissionError", 0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_kernel_that_fails_is_left_to_pytorch(kernel_of_two, error, says, lasts, folder):
    """What lacks on this machine may be there the next time."""
    kernel_of_two.run = failing(error)
    with pytest.warns(KernelWarning, match=says):
        assert (kernel_of_two(2, 5, 8) == 2).all()
    assert folder.exists() == bool(lasts)
    kernel_of_two.restart()
    with pytest.warns(KernelWarning):
        kernel_of_two(2, 5, 8)
    assert len(kernel_of_two.calls) == 1 - lasts


def test_by_name_it_is_an_error(kernel_of_two):
    kernel_of_two.run = failing(ValueError("no such instruction"))
    for _ in range(2):
        with pytest.raises(BackendError, match=r"does not work on .*: ValueError: no such instruction"):
            kernel_of_two(2, 5, 8, backend="kernel")
    assert (kernel_of_two(2, 5, 8, backend="reference") == 2).all()


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("Triton Error [CUDA]: out of memory")],
    ids=["PyTorch", "driver"],
)
def test_running_out_of_memory_is_no_fault_of_the_kernel(kernel_of_two, error, folder):
    kernel_of_two.run = failing(error)
    with pytest.raises(torch.OutOfMemoryError):
        kernel_of_two(2, 5, 8)
    assert not folder.exists()
    kernel_of_two.run = lambda x: 2 * x
    kernel_of_two(2, 5, 8)
    assert kernel_of_two.calls == [CHECK, CHECK, (2, 5, 8)]


def test_errors_of_the_call_itself_are_not_touched(kernel_of_two):
    kernel_of_two(2, 5, 8)
    kernel_of_two.run = failing(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        kernel_of_two(2, 5, 8)


@pytest.mark.parametrize("what", list(health.about(CPU)))
def test_other_versions_are_tried_again(kernel_of_two, what, monkeypatch):
    kernel_of_two.run = failing(ValueError("no such instruction"))
    with pytest.warns(KernelWarning):
        kernel_of_two(2, 5, 8)
    known = health.about(CPU)
    monkeypatch.setattr(health, "about", lambda device: {**known, what: "another"})
    kernel_of_two.restart()
    kernel_of_two.run = lambda x: 2 * x
    kernel_of_two(2, 5, 8)
    assert kernel_of_two.calls == [CHECK, (2, 5, 8)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: "[]",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"reason": null', '"reason": 3'),
        lambda text: text.replace('"error"', '"erroneous"'),
        lambda text: text.replace('"seconds"', '"sec"'),
        lambda text: text.replace('"device"', '"devise"'),
        lambda text: "\xff",
    ],
)
def test_a_damaged_cache_is_none(kernel_of_two, damage, folder):
    kernel_of_two(2, 5, 8)
    (path,) = folder.iterdir()
    path.write_text(damage(path.read_text("utf-8")), "latin-1")
    kernel_of_two.restart()
    kernel_of_two(2, 5, 8)
    assert kernel_of_two.calls == [CHECK, (2, 5, 8)]
    assert len(verdicts(folder)) == 1


def test_a_cache_that_cannot_be_written(kernel_of_two, folder):
    folder.write_text("a file")
    kernel_of_two(2, 5, 8)
    assert kernel_of_two.calls == [CHECK, (2, 5, 8)]


def test_two_processes_keep_what_both_found(kernel_of_two, folder, monkeypatch):
    kernel_of_two(2, 5, 8)
    (path,) = folder.iterdir()
    first = path.read_text("utf-8")
    path.unlink()
    kernel_of_two.restart()
    kernel_of_two(2, 5, 16)
    path.write_text(first, "utf-8")  # while this process goes on
    kernel_of_two(2, 5, 32)
    assert len(verdicts(folder)) == 3


def test_random_numbers_and_gradients_stay(kernel_of_two):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    recording = []
    kernel_of_two.run = lambda x: recording.append(torch.is_grad_enabled()) or 2 * x
    kernel_of_two(2, 5, 8)
    assert torch.equal(torch.rand(3), expected)
    assert recording == [False, True]


def test_nothing_is_checked_while_a_graph_is_captured(kernel_of_two, monkeypatch):
    with monkeypatch.context() as patch:
        for module in (health, op_module):
            patch.setattr(module, "capturing", lambda: True)
        kernel_of_two(2, 5, 8)
    assert kernel_of_two.calls == [(2, 5, 8)]
    kernel_of_two(2, 5, 8)
    assert kernel_of_two.calls == [(2, 5, 8), CHECK, (2, 5, 8)]


def test_a_device_that_is_lost_ends_the_command_and_the_next_does_without(kernel_of_two, monkeypatch):
    kernel_of_two.run = failing(RuntimeError("CUDA error: an illegal instruction was encountered"))
    with monkeypatch.context() as patch:
        patch.setattr(health, "_works", lambda device: False)
        with pytest.raises(DeviceLost, match=r"kernel of doubled has stopped .*illegal.* same command again"):
            kernel_of_two(2, 5, 8)
    kernel_of_two.restart()
    with pytest.warns(KernelWarning, match="illegal instruction"):
        assert (kernel_of_two(2, 5, 8) == 2).all()
    assert not kernel_of_two.calls


def test_the_choice_follows_all_that_why_not_may_see():
    op = Op(lambda_named("op"))
    seen = []

    def why_not(x):
        seen.append(1)
        told = torch.is_grad_enabled(), torch.get_float32_matmul_precision(), x.requires_grad, x.dtype
        told += tuple(x.shape), x.stride()
        return None if told == (False, "highest", False, torch.float32, (2, 3), (3, 1)) else "no"

    op.backend("picky", why_not=why_not, checked=False)(lambda x: "picky")
    x = torch.ones(2, 3)
    with torch.no_grad():
        for _ in range(2):
            assert op(x) == "picky"
            assert op(x.double()) == "reference"
            assert op(torch.ones(3, 2).mT) == "reference"
            assert op(torch.ones(3, 3)) == "reference"
            assert op(torch.ones(2, 3, requires_grad=True)) == "reference"
        assert len(seen) == 5  # once each
        torch.set_float32_matmul_precision("high")
        try:
            assert op(x) == "reference"
        finally:
            torch.set_float32_matmul_precision("highest")
        with torch.enable_grad():
            assert op(x) == "reference"
        with pytest.raises(BackendError, match="can't take this call: no"):
            op(x.double(), backend="picky")
        assert op(x) == "picky"


def lambda_named(name):
    def op(x):
        return "reference"

    op.__name__ = name
    return op


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_op_says_what_checks_it(op):
    assert op.small is not None
    assert op.name in {call.op.name for call in cases.calls(torch.float32)}


@pytest.mark.parametrize("masked", [False, True])
def test_the_references_take_what_checks_them(masked):
    """In both dtypes, without hiding all keys of a row, which float16 can't."""
    for dtype in (torch.float32, torch.bfloat16):
        for call in cases.calls(dtype, masked):
            verdict = check(call.op, "reference", call.op.small(*call.arguments), CPU)
            assert verdict.reason is None, call
            assert verdict.error > 0
            assert verdict.error < 0.03


def test_trunk_and_structure_module_have_their_dtypes():
    (call,) = (c for c in cases.calls(torch.bfloat16) if c.op is ops.invariant_point_attention)
    assert {x.dtype for i, x in enumerate(call.arguments) if i != 7} == {torch.float32}
    assert call.arguments[7].dtype == torch.bfloat16


def test_the_plan_asks_for_kernels_as_the_network_calls_them(monkeypatch):
    """Otherwise kernels would be compiled that nothing uses."""
    asked = set()
    for op in OPS:

        def backend_for(*args, op=op):
            asked.add((op.name, op.small(*args)))
            return "reference"

        monkeypatch.setattr(op, "backend_for", backend_for)
    with torch.device("meta"):
        network = AlphaFold(PRESETS["model_3"].model).to_precision(torch.bfloat16)
        planning.kernels_of(network)
    assert len(asked) == 9
    assert asked <= {(call.op.name, call.op.small(*call.arguments)) for call in cases.calls(torch.bfloat16)}


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernels_pass(dtype):
    for call in cases.calls(dtype, masked=True):
        arguments = small.draw(call.op.small(*call.arguments), DEVICE)
        backends = call.op.backends
        if "triton" in backends and backends["triton"][1](*arguments) is None:
            verdict = check(call.op, "triton", call.op.small(*call.arguments), DEVICE)
            assert verdict.reason is None, f"{call.op.name}, {call.name}: {verdict}"


@kernel
@pytest.mark.parametrize("name", [op.name for op in OPS if op is not ops.add])
def test_kernel_with_an_error_does_not_pass(name, monkeypatch):
    call = next(c for c in cases.calls(torch.float16) if c.op.name == name)
    run, why_not = call.op.backends["triton"]

    def wrong(*args):
        found = run(*args)
        first = found[0] if isinstance(found, tuple) else found
        first[(0,) * min(first.dim(), 2)] *= 1.3  # one of 189 positions, or of 3 residues
        return found

    monkeypatch.setitem(call.op.backends, "triton", (wrong, why_not))
    assert "wrong by" in check(call.op, "triton", call.op.small(*call.arguments), DEVICE).reason


@on_a_gpu
def test_kernels_are_checked_once_on_this_gpu(folder, monkeypatch):
    """Prints what the first use of all kernels costs, and the next process's."""
    import time

    for process in ("first", "next"):
        restart(monkeypatch)
        torch.cuda.synchronize()
        start = time.perf_counter()
        memory = torch.cuda.memory_allocated()
        for call in cases.calls(torch.bfloat16):
            arguments = small.draw(call.op.small(*call.arguments), DEVICE)
            with torch.no_grad():
                assert call.op.backend_for(*arguments) == ("reference" if call.op is ops.add else "triton"), (
                    call
                )
        del arguments
        assert torch.cuda.memory_allocated() <= memory
        print(f"{process} process: {time.perf_counter() - start:.2f} s", file=sys.stderr)
    found = verdicts(folder)
    assert len(found) >= 20
    print(f"checks: {sum(v['seconds'] for v in found.values()):.2f} s", file=sys.stderr)


@on_a_gpu
@torch.no_grad()
def test_a_graph_is_captured_with_kernels_that_were_checked():
    x = torch.randn(3, 64, 128, device=DEVICE, dtype=torch.bfloat16)
    norm = torch.ones(128, device=DEVICE, dtype=x.dtype)
    weight = torch.randn(64, 128, device=DEVICE, dtype=x.dtype)
    expected = ops.normed_linear(x, norm, norm, weight)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = ops.normed_linear(x, norm, norm, weight)
    graph.replay()
    assert torch.equal(found, expected)


def test_the_interpreter_is_not_checked_by_itself():
    """It runs kernels on the CPU to test them, and would be slow."""
    assert Health().devices == ("cuda",)
    assert INTERPRETED or not torch.cuda.is_initialized() or DEVICE.type == "cuda"

"""Compiles every kernel for GPUs that need not be here: do the tiles fit, and stay in registers?

    python benchmarks/compile.py                                # minutes; a table, and exit code 1 where one doesn't
    python benchmarks/compile.py --gpus 86 120 --only transition --precision bf16

Each call of `axfold.ops.cases.calls` is made with small tensors on the CPU, as if a GPU of that generation were here.
What it would launch is compiled instead: so the kernels, their tiles and constants are whatever the backends take.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from axfold.ops import cases, small
from axfold.ops.triton import tiles

SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB that a program may have, by compute capability: the CUDA C++ programming guide's table of capabilities."""

PRECISIONS = {
    "bf16": (torch.bfloat16, "highest"),
    "fp16": (torch.float16, "highest"),
    "fp32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
}


@dataclass(frozen=True)
class Compiled:
    """A kernel for a generation of GPUs. `stack` and `spills` (instructions) are what didn't fit into registers."""

    op: str
    case: str
    precision: str
    kernel: str
    gpu: int
    warps: int
    registers: int
    stack: int
    spills: int
    products: str
    shared: int
    failed: str = ""

    @property
    def wrong(self) -> str:
        """Why it won't do; empty if it does."""
        if self.failed:
            return self.failed
        if self.shared > 1024 * SHARED[self.gpu]:
            return f"more than {SHARED[self.gpu]} KiB of shared memory"
        return "spills" if self.spills else ""


Launch = tuple[JITFunction, tuple[Any, ...], dict[str, Any]]


def launches(call: cases.Call, gpu: int) -> list[Launch]:
    """The kernels that the call's backend in Triton would launch on such a GPU, with their arguments.

    With those for its gradients, where it has them.
    """
    found: list[Launch] = []

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        found.append((kernel, args, options))

    assert call.op.small is not None
    arguments = small.draw(call.op.small(*call.arguments), torch.device("cpu"))
    with mock.patch.object(tiles, "gpu", return_value=(gpu, 132)), mock.patch.object(JITFunction, "run", run):
        if not why_not(call, gpu):
            with torch.no_grad():
                call.op.backends["triton"][0](*arguments)
        if not why_not(call, gpu, gradients=True):
            leaves = [x if x is None else x.requires_grad_() for x in arguments]
            result = call.op.backends["triton"][0](*leaves)
            result.backward(torch.zeros_like(result))
    return found


def why_not(call: cases.Call, gpu: int, gradients: bool = False) -> str | None:
    """Why the backend in Triton would not take the call on such a GPU."""
    with (
        FakeTensorMode(),
        torch.set_grad_enabled(gradients),
        mock.patch.object(tiles, "gpu", return_value=(gpu, 132)),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=divmod(gpu, 10)),
    ):
        arguments = [
            x
            if x is None
            else torch.empty_strided(
                x.shape, x.stride(), dtype=x.dtype, device="cuda", requires_grad=gradients
            )
            for x in call.arguments
        ]
        return call.op.backends["triton"][1](*arguments)


def compiled(
    kernel: JITFunction, args: tuple[Any, ...], options: dict[str, Any], gpu: int, **about: str
) -> Compiled:
    """The kernel as a launch with these arguments compiles it."""
    target = GPUTarget("cuda", gpu, 32)
    backend = make_backend(target)
    bound, specialization, rest = create_function_from_signature(kernel.signature, kernel.params, backend)(
        *args, **options
    )
    packed, signature, constants, attributes = kernel._pack_args(
        backend, options, bound, specialization, rest
    )
    numbers = {"gpu": gpu, "kernel": kernel.__name__, "warps": packed.num_warps, **about}
    nothing = {"registers": 0, "stack": 0, "spills": 0, "products": "", "shared": 0}
    try:
        source = ASTSource(kernel, signature, constants, attributes)
        result = triton.compile(source, target=target, options=packed.__dict__)
    except Exception as error:  # whatever a compiler raises: it is what is looked for
        return Compiled(**numbers, **nothing, failed=f"{type(error).__name__}: {error}".splitlines()[0])
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        usage, code = (_dump(flag, file.name) for flag in ("-res-usage", "-sass"))
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", usage)[-1]
    count = {
        word: len(re.findall(rf"\b{word}\b", code)) for word in ("LDL", "STL", "HGMMA", "HMMA", "UTCHMMA")
    }
    products = max(("HGMMA", "UTCHMMA", "HMMA"), key=count.__getitem__)
    return Compiled(
        **numbers,
        registers=int(registers),
        stack=int(stack),
        spills=count["LDL"] + count["STL"],
        products=products if count[products] else "",
        shared=result.metadata.shared,
    )


def _dump(flag: str, path: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, flag, path], capture_output=True, text=True, check=True).stdout


def wanted(precisions: list[str], only: str) -> Iterator[tuple[str, bool, int]]:
    """(precision, masked, number of the call) of the calls with a kernel."""
    for precision in precisions:
        dtype, _ = PRECISIONS[precision]
        both = zip(cases.calls(dtype), cases.calls(dtype, masked=True), strict=True)
        for i, (call, masked) in enumerate(both):
            if only in f"{call.op.name}, {call.name}" and "triton" in call.op.backends:
                yield precision, False, i
                assert call.op.small is not None
                if call.op.small(*call.arguments) != call.op.small(*masked.arguments):
                    yield precision, True, i


def work(job: tuple[str, bool, int, int]) -> list[Compiled]:
    """All kernels of one call for one GPU."""
    precision, masked, i, gpu = job
    dtype, products = PRECISIONS[precision]
    torch.set_float32_matmul_precision(products)
    call = list(cases.calls(dtype, masked))[i]
    about = {"op": call.op.name, "case": call.name + ", masked" * masked, "precision": precision}
    return [compiled(*launch, gpu, **about) for launch in launches(call, gpu)]


def line(row: Compiled) -> str:
    name = f"{row.op}, {row.case}"
    numbers = f"{row.warps:6}{row.registers:6}{row.stack:7}{row.spills:7}{row.shared / 1024:8.1f}"
    return f"{row.gpu:4} {row.precision:5}{name:60}{row.kernel:18}{numbers} {row.products:8}{row.wrong}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, nargs="+", choices=list(SHARED), default=list(SHARED))
    parser.add_argument("--precision", nargs="+", choices=list(PRECISIONS), default=["bf16", "fp32", "tf32"])
    parser.add_argument("--only", default="", help="calls whose op and name contain this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    args = parser.parse_args()
    print(f"triton {triton.__version__}; shared memory in KiB")
    columns = f"{'warps':>6}{'regs':>6}{'stack':>7}{'spills':>7}{'shared':>8}"
    print(f"{'gpu':4} {'':5}{'call':60}{'kernel':18}{columns}")
    jobs = [(*call, gpu) for call in wanted(args.precision, args.only) for gpu in args.gpus]
    rows: list[Compiled] = []
    with ProcessPoolExecutor(args.jobs) as pool:
        for some in pool.map(work, jobs):
            for row in some:
                rows.append(row)
                print(line(row), flush=True)
    wrong = [row for row in rows if row.wrong]
    print(f"\n{len(rows)} kernels, {len(wrong)} of them wrong")
    for row in wrong:
        print(line(row))
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", "utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

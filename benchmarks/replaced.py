"""Times OpenFold's blocks as they are and with axfold's kernels in them; writes docs/kernels.md's table.

python benchmarks/replaced.py                          # on the GPU, where OpenFold is installed
python benchmarks/replaced.py --source openfold/       # or from a checkout of it, of which only the blocks are imported
python benchmarks/replaced.py --device cpu --precision fp32 --lengths 16 --dry-run
python benchmarks/replaced.py --page                   # only the page, from the results there are
"""

import argparse
import importlib
import importlib.util
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

import axfold
from machine import commit, device_name, file_name, write

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "replaced"
PAGE = ROOT / "docs" / "kernels.md"
BEGIN, END = "<!-- gain: by benchmarks/replaced.py -->\n", "<!-- end of gain -->"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
EXTENSION = "attn_core_inplace_cuda"

SIZES: dict[str, Any] = {
    "c_z": 128,
    "c_hidden_opm": 32,
    "c_hidden_mul": 128,
    "c_hidden_pair_att": 32,
    "no_heads_msa": 8,
    "no_heads_pair": 4,
    "transition_n": 4,
    "msa_dropout": 0.15,
    "pair_dropout": 0.25,
    "opm_first": False,
    "fuse_projection_weights": False,
    "inf": 1e9,
    "eps": 1e-10,
}
BLOCKS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "Evoformer": (
        "EvoformerBlock",
        512,
        {**SIZES, "c_m": 256, "c_hidden_msa_att": 32, "no_column_attention": False},
    ),
    "extra MSA": (
        "ExtraMSABlock",
        5120,
        {**SIZES, "c_m": 64, "c_hidden_msa_att": 8, "ckpt": False},
    ),
}
"""OpenFold's name of each block, the sequences of its MSA, and the sizes of AlphaFold's model 3."""


def openfold(source: Path | None) -> tuple[Any, str]:
    """Its module of blocks, and what its softmax is; from a checkout nothing else of the package is imported."""
    if source is not None:
        package = ModuleType("openfold")
        package.__path__ = [str(source / "openfold")]
        sys.modules["openfold"] = package
    softmax = "its own extension"
    if importlib.util.find_spec(EXTENSION) is None:
        extension = ModuleType(EXTENSION)
        extension.forward_ = lambda x, rows, columns: torch.softmax(x, -1, out=x)  # type: ignore[attr-defined]
        sys.modules[EXTENSION] = extension
        softmax = "PyTorch's in place of its extension, which is not built here"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("openfold.model.evoformer"), softmax


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "openfold_kernels", ROOT / "examples" / "openfold_kernels.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def built(blocks: Any, name: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A block with random weights: those that OpenFold starts with are zeros in places, and hide errors."""
    cls, _, sizes = BLOCKS[name]
    block = getattr(blocks, cls)(**sizes).eval().to(device, dtype)
    torch.manual_seed(0)
    for parameter in block.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
        else:
            parameter.normal_(std=0.1).add_(1)
    return block


def measure(run: Callable[[], Any], device: torch.device, repeats: int) -> tuple[float, int | None]:
    """Median seconds of the runs after the first, and the most memory that one needs beside what there was."""
    run()
    peak = None
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken), peak


def rows(
    args: argparse.Namespace, blocks: Any, device: torch.device, dtype: torch.dtype
) -> list[dict[str, Any]]:
    """One for each block, length and way; those that fail say why, and the others go on."""
    measured: list[dict[str, Any]] = []
    for name in BLOCKS:
        ours = example()
        ways = {
            "OpenFold": built(blocks, name, device, dtype),
            "replaced": built(blocks, name, device, dtype),
        }
        assert ours.replace(ways["replaced"]) == 2
        for n in args.lengths:
            sequences = args.sequences or BLOCKS[name][1]
            width = BLOCKS[name][2]["c_m"]
            generator = torch.Generator(device).manual_seed(0)
            m = torch.randn(sequences, n, width, generator=generator, device=device, dtype=dtype)
            z = torch.randn(n, n, SIZES["c_z"], generator=generator, device=device, dtype=dtype)
            masks = m.new_ones(sequences, n), z.new_ones(n, n)
            results: dict[str, torch.Tensor] = {}
            for way, block in ways.items():
                row: dict[str, Any] = {"block": name, "residues": n, "way": way}
                options = {"inplace_safe": True, "_mask_trans": False}
                try:
                    results[way] = block(m.clone(), z.clone(), *masks, **options)[1]
                    scratch = m.clone(), z.clone()
                    seconds, peak = measure(partial(block, *scratch, *masks, **options), device, args.repeats)
                    row |= {"seconds": seconds, "peak_bytes": peak}
                except (RuntimeError, torch.OutOfMemoryError) as error:
                    row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                measured.append(row)
                print(row, flush=True)
            if len(results) == 2:
                theirs, found = (results[way].double() - z.double() for way in ways)
                measured[-1]["difference"] = ((found - theirs).norm() / theirs.norm()).item()
                print("difference of the pairs' updates:", measured[-1]["difference"])
            results.clear()
    return measured


def table(folder: Path = RESULTS) -> str:
    """The newest result of each device and precision as Markdown."""
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text("utf-8"))
        newest[result["device"], result["precision"]] = result
    lines = []
    for (device, precision), result in sorted(newest.items()):
        versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        lines += [
            f"\n{device}, {precision}, {result['date']}; {versions}. Milliseconds a block, no chunks, in place; memory "
            f"beside the representations in GiB. Softmax of OpenFold's extra MSA: {result['softmax']}.\n",
            "| block | residues | OpenFold, ms | replaced, ms | times faster | OpenFold, GiB | replaced, GiB |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        cells = {(row["block"], row["residues"], row["way"]): row for row in result["measured"]}
        for name, n in dict.fromkeys((row["block"], row["residues"]) for row in result["measured"]):
            theirs, ours = cells[name, n, "OpenFold"], cells[name, n, "replaced"]
            gain = (
                f"{theirs['seconds'] / ours['seconds']:.1f}"
                if "seconds" in theirs and "seconds" in ours
                else ""
            )
            values = [milliseconds(theirs), milliseconds(ours), gain, gibibytes(theirs), gibibytes(ours)]
            lines.append("| " + " | ".join([name, f"{n:,}", *values]) + " |")
    return "\n".join(lines or ["\nNot measured yet on a GPU."]) + "\n\n"


def milliseconds(row: dict[str, Any]) -> str:
    return f"{1000 * row['seconds']:.1f}" if "seconds" in row else "fails"


def gibibytes(row: dict[str, Any]) -> str:
    return "" if row.get("peak_bytes") is None else f"{row['peak_bytes'] / 2**30:.2f}"


def page(text: str, folder: Path = RESULTS) -> str:
    """The page with its table renewed."""
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + table(folder) + END + rest.partition(END)[2]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="bf16")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--sequences", type=int, help="of the MSAs, instead of 512 and 5,120")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--source", type=Path, help="a checkout of OpenFold, where it is not installed")
    parser.add_argument("--dry-run", action="store_true", help="print alone, write nothing")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    args = arguments()
    if not args.page:
        device, dtype = torch.device(args.device), PRECISIONS[args.precision]
        blocks, softmax = openfold(args.source)
        try:
            release = version("openfold")
        except PackageNotFoundError:
            release = "from a checkout"
        versions = {
            "axfold": f"{axfold.__version__} ({commit()})",
            "OpenFold": release,
            "torch": torch.__version__,
        }
        print(f"{device_name(device)}, {args.precision}; {versions}")
        date = f"{datetime.now(UTC):%Y-%m-%d}"
        result = {
            "date": date,
            "device": device_name(device),
            "precision": args.precision,
            "versions": versions,
            "softmax": softmax,
            "measured": rows(args, blocks, device, dtype),
        }
        if args.dry_run:
            return
        path = RESULTS / file_name(date, device, args.precision)
        write(path, result)
        print(f"written: {path}")
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()

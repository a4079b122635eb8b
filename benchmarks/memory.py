"""Measures the memory of a pass against its plan, and writes docs/memory.md.

    python benchmarks/memory.py                                       # short proteins on the CPU
    python benchmarks/memory.py --device cuda --lengths 256 1200 2048 3072 4096 \\
        --tiers resident lean offload --precision bf16 fp32
    python benchmarks/memory.py --device cuda --lengths 10000 --tiers resident offload --precision bf16 --blocks 1
    python benchmarks/memory.py --device cuda --targets               # what is promised (targets.py); names choose some
    python benchmarks/memory.py --device cuda --picture 1200:fp32 3072:bf16   # what is alive when
    python benchmarks/memory.py --report                              # page and pictures alone, from the results

With --blocks, so many blocks of each stack run; the weights of all of them are on the device, and the seconds of a
whole pass are extrapolated from each stage's. A setting that takes more than --seconds is given up, and its row says
so.
"""

import argparse
import gc
import json
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from axfold.config import PRESETS, Config
from axfold.forecast import ITEMSIZE, sizes_for
from axfold.memory.allocator import without_gaps
from axfold.memory.apply import apply
from axfold.memory.budget import parse_bytes
from axfold.memory.costs import Sizes
from axfold.memory.host import Bus
from axfold.memory.meter import Meter
from axfold.memory.plan import TIERS, DoesNotFit, max_length, plan
from axfold.model.alphafold import AlphaFold
from axfold.network import in_precision
from machine import commit, device_name, file_name, write
from report import table
from targets import TARGETS

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "memory"
COMMANDS = HERE / "results" / "predict"  # of predict.py
PAGE = HERE.parent / "docs" / "memory.md"
STAYS_ON_THE_HOST = ("msa_feat", "extra_msa", "extra_has_deletion", "extra_deletion_value")

GROUPS = {
    "weights": "weights",
    "features": "features",
    "pair": "pair",
    "MSA": "MSA",
    "extra MSA": "MSA",
    "template": "templates",
    "context": "context",
    "empty": "blocks that come and go",
}
"""Names of tensors in a profile, and the colours that they have in the picture; the rest is workspace."""

HEAD = """# Memory: what is alive when

Made by `python benchmarks/memory.py` from `benchmarks/results/memory`; no number here is typed by hand.

U is one pair representation, 128 N² numbers. Every update of it is done row by row in place: what is alive is the
representation, the context that all rows share, and the workspace of one block of rows.

| stage | context | for one row of a block |
| --- | --- | --- |
| triangle multiplication | the other edges of the triangles, 1 U | input, gated projection, product |
| triangle attention | bias, 4/128 U | input, q, k, v, gate, result |
| MSA row attention | bias, 8/128 U | the same |
| transition | none | input, four times as wide hidden layer |
| outer product mean | a projection of the MSA, 128 MiB of it at once | 32 x 32 products of each pair of residues |
| invariant point attention | keys and points, O(N) | the pair in float32, logits of 12 heads |

`axfold plan` adds these up (`src/axfold/memory/costs.py` has a line for each) and chooses blocks and one of the tiers:
**resident**, everything is on the device; **lean**, the MSA representations rest on the host while the pair is worked
on, and if need be the extra MSA passes through the device block by block; **offload**, the pair does so too.

In the tier offload only as many rows of the pair leave the device as must: the first ones stay, as far as there is
room, and blocks are put together from both. Below the pair is wholly on the host (`--kept 0`). What crosses the bus for
an update is its rows, once each way: the context of the next one is made from the very rows that it has just updated,
where the memory holds both contexts. `axfold plan --json` lists these under `handovers`. The transition, which has no
context and acts on each element by itself, always passes with the attention before it. The structure module, each of
whose layers reads the pair, has as many of its rows on the device meanwhile as there is room for (`lent_rows`).
"""


def features(n: int, clusters: int, extra: int, templates: int) -> dict[str, torch.Tensor]:
    """Random features that hide nothing."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    aatype = torch.randint(0, 20, (n,), generator=generator, dtype=torch.int32)
    made = {
        "aatype": aatype,
        "residue_index": torch.arange(n, dtype=torch.int32),
        "seq_mask": torch.ones(n),
        "target_feat": torch.nn.functional.one_hot(aatype.long() + 1, 22).float(),
        "msa_feat": rand(clusters, n, 49),
        "msa_mask": torch.ones(clusters, n),
        "extra_msa": torch.randint(0, 22, (extra, n), generator=generator, dtype=torch.int32),
        "extra_has_deletion": torch.zeros(extra, n),
        "extra_deletion_value": torch.zeros(extra, n),
        "extra_msa_mask": torch.ones(extra, n),
    }
    return made | {
        "template_aatype": aatype.expand(templates, n).contiguous(),
        "template_all_atom_positions": 20 * rand(templates, n, 37, 3),
        "template_all_atom_masks": torch.ones(templates, n, 37),
        "template_pseudo_beta": 20 * rand(templates, n, 3),
        "template_pseudo_beta_mask": torch.ones(templates, n),
        "template_mask": torch.ones(templates),
    }


def build(config: Config, blocks: int | None, precision: str, device: torch.device) -> AlphaFold:
    """The network with so many blocks in each stack."""
    sizes = config.model
    if blocks is not None:
        sizes = replace(
            sizes,
            extra_stack=replace(sizes.extra_stack, blocks=min(blocks, sizes.extra_stack.blocks)),
            evoformer=replace(sizes.evoformer, blocks=min(blocks, sizes.evoformer.blocks)),
        )
    torch.manual_seed(0)
    return in_precision(AlphaFold(sizes), precision).to(device).eval().requires_grad_(False)


def whole_pass(stages: Mapping[str, Any], config: Config, network: AlphaFold) -> float:
    """Seconds of a pass with all blocks from those of the stages that ran."""
    run = {"Evoformer": network.sizes.evoformer.blocks, "extra MSA stack": network.sizes.extra_stack.blocks}
    of = {"Evoformer": config.model.evoformer.blocks, "extra MSA stack": config.model.extra_stack.blocks}
    return sum(
        reading["seconds"] * of.get(stage.partition(":")[0], 1) / run.get(stage.partition(":")[0], 1)
        for stage, reading in stages.items()
    )


def measure(
    n: int, tier: str | None, precision: str, config: Config, args: argparse.Namespace, tensors: bool = False
) -> dict[str, Any]:
    """One setting: its plan, and what it took; or the error that ended it."""
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    sizes: Sizes = sizes_for(config, n, precision, templates=args.templates, on_gpu=on_gpu)
    name = torch.cuda.get_device_name(device) if on_gpu else "cpu"
    row: dict[str, Any] = {
        "residues": n,
        "tier": tier,
        "precision": precision,
        "blocks": args.blocks,
        "model": config.name,
        "templates": args.templates,
        "budget": args.budget,
    }
    network = build(config, args.blocks, precision, device)
    held = sum(p.nbytes for p in network.parameters())
    ballast = torch.empty(max(sizes.weights - held, 0), dtype=torch.uint8, device=device)
    if args.budget:
        budget = parse_bytes(args.budget, "--budget")
    elif on_gpu:
        budget = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    else:
        budget = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        chosen = plan(
            sizes,
            budget,
            tier=tier,
            device=name,
            cores=torch.get_num_threads(),
            kept=args.kept,
            full=args.full,
        )
    except DoesNotFit as error:
        return row | {"error": str(error)}
    row |= {
        "tier": tier or chosen.tier,
        "predicted_bytes": chosen.peak_device_bytes,
        "predicted_seconds": chosen.seconds,
        "predicted_host_bytes": chosen.peak_host_bytes,
        "stage": chosen.stage,
        "rows": dict(chosen.blocks),
        "on_host": sorted(chosen.host),
        "rests": chosen.rest,
        "kept_rows": chosen.kept,
        "lent_rows": chosen.lent,
        "handovers": sorted(chosen.handovers),
        "pair_bytes": n * n * config.model.c_z * ITEMSIZE[precision],
        "beside_bytes": sum(
            chosen.parts.get(name, 0) for name in ("weights", "features", "MSA", "extra MSA")
        ),
    }
    bus, passes = (
        Bus(device),
        max(args.passes, 1 + tensors),
    )  # from the second on the pair is known by its name
    apply(network, chosen, bus)
    sample = {
        key: x if on_gpu and key in STAYS_ON_THE_HOST else x.to(device)
        for key, x in features(n, sizes.clusters, sizes.extra, args.templates).items()
    }
    try:
        with Meter(network, device, bus=bus, tensors=tensors) as meter, torch.inference_mode():
            recycled = None
            for _ in range(passes):
                result = network([sample], recycled)
                recycled = result.recycled()
                del result
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)
        return row | {"error": str(error).partition(". GPU")[0]}
    measured = meter.as_dict()
    row |= {
        "measured_bytes": measured["peak_bytes"] + (0 if on_gpu else ballast.nbytes),
        "run_seconds": measured["seconds"] / passes,
        "seconds": whole_pass(measured["stages"], config, network) / passes,
        "process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "stages": {
            stage: {"seconds": reading["seconds"], "peak_bytes": reading["peak_bytes"]}
            for stage, reading in measured["stages"].items()
        },
    }
    if on_gpu:
        row["reserved_bytes"] = torch.cuda.max_memory_reserved(device)
    for call in first_blocks(measured["sequence"]) if tensors else ():
        call["alive"]["weights"] = call["alive"].get("weights", 0) + ballast.nbytes
        call["peak_bytes"] += 0 if on_gpu else ballast.nbytes
        row.setdefault("sequence", []).append(call)
    return row


def target(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The row of a target."""
    wanted = TARGETS[name]
    overridden = {key: getattr(wanted, key) for key in ("blocks", "budget", "templates", "kept", "full")}
    if args.device == "cpu":  # whose memory is not to be filled
        overridden |= {"budget": None, "full": False}
    settings = argparse.Namespace(**{**vars(args), **overridden})
    config = with_rows(PRESETS[wanted.model], args)
    n = wanted.residues
    row: dict[str, Any] = {"target": name, "tier": wanted.tier or "", "precision": wanted.precision}
    row |= {"residues": n or 0, "blocks": wanted.blocks, "templates": wanted.templates}
    row |= {"budget": wanted.budget}

    def found() -> dict[str, Any]:
        length = n
        if length is None:
            sizes = sizes_for(config, 1, wanted.precision, templates=wanted.templates)
            length = max_length(sizes, parse_bytes(wanted.budget or "", "the budget"), tier=wanted.tier)
            length = row["residues"] = length // 16 * 16  # whose rows are aligned
        return measure(length, wanted.tier, wanted.precision, config, settings)

    return attempt(row, found, args.seconds)


def attempt(row: dict[str, Any], found: Callable[[], dict[str, Any]], seconds: float) -> dict[str, Any]:
    """The row with what is found. What ends it is its error, so that those after it are measured all the same."""
    try:
        with limited(seconds):
            row |= found()
    except TooSlow as error:
        clear(error)
        row |= {"error": str(error), "late": True}
    except Exception as error:  # its row says so, and the others are measured
        traceback.print_exc()
        clear(error)
        row["error"] = f"{type(error).__name__}: {error}"
    return row


class TooSlow(BaseException):
    """A setting takes longer than it may. No Exception: the checks of kernels would take one for a kernel's."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises TooSlow inside, between two operations, after so many seconds."""

    def over(*_: Any) -> None:
        raise TooSlow(f"not done within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def clear(error: BaseException) -> None:
    """Let go of the tensors in the frames of an error, and of those that it came from."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__


def first_blocks(sequence: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What a picture shows of the calls of a pass: the first block of each stack."""
    seen = set()
    for call in sequence:
        stack = call["stage"].partition(":")[0]
        if not call["alive"] or "rest" in call["stage"] or (stack, "done") in seen:
            continue
        if call["stage"] == f"{stack}: MSA row attention":
            if (stack, "first") in seen:
                seen.add((stack, "done"))
                continue
            seen.add((stack, "first"))
        if stack == "structure":
            seen.add((stack, "done"))
        yield call


def draw(folder: Path, pictures: Path) -> None:
    """The pictures of the results: the newest of each number of residues and precision."""
    newest: dict[str, tuple[dict[str, Any], str]] = {}
    for path in sorted(folder.glob("*.json")):  # names begin with the date
        result = json.loads(path.read_text("utf-8"))
        for row in result.get("pictures", ()):
            if "sequence" in row:
                newest[f"memory-{row['residues']}-{row['precision']}.png"] = row, result["device"]
    for name, (row, device) in newest.items():
        pictures.mkdir(parents=True, exist_ok=True)
        picture(row, device, pictures / name)
        print(f"written: {pictures / name}")


def picture(row: Mapping[str, Any], device: str, path: Path) -> None:
    """Bytes over the stages of a pass, as bars of what is alive."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    calls = row["sequence"]
    names = list(dict.fromkeys([*GROUPS.values(), "workspace", "inside of kernels"]))
    bars: dict[str, list[float]] = {name: [] for name in names}
    for call in calls:
        found = dict.fromkeys(names, 0.0)
        for tensor, size in call["alive"].items():
            found[GROUPS.get(tensor, "workspace")] += size
        found["inside of kernels"] = max(call["peak_bytes"] - sum(found.values()), 0)
        for name in names:
            bars[name].append(found[name] / 2**30)
    figure, axes = pyplot.subplots(figsize=(11, 5), layout="constrained")
    below = [0.0] * len(calls)
    for name, color in zip(names, pyplot.get_cmap("tab10").colors, strict=False):
        if any(bars[name]):
            axes.bar(range(len(calls)), bars[name], bottom=below, label=name, color=color, width=0.9)
            below = [low + high for low, high in zip(below, bars[name], strict=True)]
    axes.axhline(row["predicted_bytes"] / 2**30, color="black", linestyle=":", label="predicted peak")
    axes.set_xticks(range(len(calls)), [call["stage"] for call in calls], rotation=90, fontsize=7)
    axes.set_ylabel("GiB")
    axes.set_title(f"{row['residues']} residues, {row['precision']}, {row['tier']}; {device}")
    axes.legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def page(folder: Path, pictures: Path, commands: Path = COMMANDS) -> Iterator[str]:
    """The text of docs/memory.md, with the pictures that lie beside it."""
    yield HEAD
    for path in sorted(pictures.glob("memory-*.png")):
        yield f"![{path.stem.replace('-', ' ')}]({path.name})\n"
    newest: dict[tuple[Any, ...], tuple[dict[str, Any], dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):  # names begin with the date
        result = json.loads(path.read_text("utf-8"))
        for row in result["measured"]:
            if row["tier"] in TIERS:  # else it ended before there was a plan
                key = result["device"], row["precision"], row["residues"], TIERS.index(row["tier"])
                key = *key, row.get("budget") or "", row.get("templates", result["templates"])
                if "late" not in row or key not in newest:
                    newest[key] = result, row
    yield from kept_promises(folder)
    yield "## Predicted and measured\n"
    yield (
        "GiB at the peak of a pass; U: what lies above the weights and the MSA's tensors then, in pair\n"
        "representations. Seconds are of a whole pass; with * extrapolated from fewer blocks.\n"
    )
    for device in dict.fromkeys(key[0] for key in sorted(newest)):
        result = next(found for key, (found, _) in newest.items() if key[0] == device)
        yield f"### {device}\n"
        yield (
            f"{result['date']}, torch {result['torch']}, axfold {result['axfold']}; {result['model']}, "
            f"{result['clusters']} clusters, {result['extra']:,} extra sequences, {result['templates']} templates.\n"
        )
        head = [
            "residues",
            "precision",
            "tier",
            "budget",
            "predicted",
            "measured",
            "ratio",
            "U",
            "seconds",
            "predicted seconds",
        ]
        rows = sorted((key[1:], row) for key, (_, row) in newest.items() if key[0] == device)
        yield from table(head, [cells(row) for _, row in rows])
        yield ""
    yield from whole_commands(commands)


def kept_promises(folder: Path) -> Iterator[str]:
    """The table of the targets: the newest measurement of each on each device beside its limit."""
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):  # names begin with the date
        result = json.loads(path.read_text("utf-8"))
        for row in result["measured"]:
            key = result["device"], row.get("target")
            if row.get("target") in TARGETS and ("late" not in row or key not in newest):
                newest[key] = row
    if not newest:
        return
    yield "## Limits\n"
    yield (
        "What a pass is held to (`benchmarks/targets.py`) and what was measured: GiB at the peak, U as below, seconds\n"
        "of a whole pass in those of another setting.\n"
    )
    rows = []
    for device, name in sorted(newest, key=lambda key: (key[0], list(TARGETS).index(key[1]))):
        row, wanted = newest[device, name], TARGETS[name]
        start = [device, name, str(row["residues"]), row["tier"], row["budget"] or ""]
        if "error" in row:
            rows.append([*start, "", row["error"].partition(";")[0].replace("|", " "), "no"])
            continue
        other = newest.get((device, wanted.against or ""), {})
        found = [
            (wanted.gib, row["measured_bytes"] / 2**30, "GiB"),
            (wanted.units, units(row), "U"),
            (wanted.times, row["seconds"] / other["seconds"] if "seconds" in other else None, "times"),
        ]
        checked = [(limit, x, unit) for limit, x, unit in found if limit is not None and x is not None]
        rows += [
            [*start, f"{limit:.3g} {unit}", f"{x:.2f}", "yes" if x <= limit else "no"]
            for limit, x, unit in checked
        ]
    yield from table(["device", "setting", "residues", "tier", "budget", "limit", "measured", "kept"], rows)
    yield ""


def units(row: Mapping[str, Any]) -> float:
    """What lies above the weights and the MSA's tensors at the peak, in pair representations."""
    return (row["measured_bytes"] - row["beside_bytes"]) / row["pair_bytes"]


def whole_commands(folder: Path) -> Iterator[str]:
    """The table of what predict.py measured: the newest of each setting."""
    newest: dict[tuple[Any, ...], list[str]] = {}
    for path in sorted(folder.glob("*.json")):  # names begin with the date
        result = json.loads(path.read_text("utf-8"))
        for row in result["measured"]:
            setting = (
                row["residues"],
                row["rows"],
                row["max_msa"] or "",
                row["model"],
                row["precision"],
                row["recycles"],
            )
            other = row["seconds"] - row["network_seconds"] - row["features_seconds"]
            peak = f"{row['device_bytes'] / 2**30:.2f}" if "device_bytes" in row else ""
            newest[(result["device"], *setting, row["budget"])] = [
                result["device"],
                *map(str, setting),
                row["budget"] or "",
                peak,
                f"{row['host_bytes'] / 2**30:.2f}",
                *(
                    f"{x:.1f}"
                    for x in (row["seconds"], row["features_seconds"], row["network_seconds"], other)
                ),
            ]
    if not newest:
        return
    yield "## The whole command\n"
    yield (
        "`axfold predict` with synthetic parameters, by `benchmarks/predict.py`: GiB at the peak of the device (of\n"
        'PyTorch\'s allocator) and of the process on the host, seconds from start to end; "other" is start, loading\n'
        "the model, and writing.\n"
    )
    head = "device, residues, rows, max MSA, model, precision, recycles, budget, device GiB, host GiB"
    parts = "seconds, features, network, other"
    yield from table(f"{head}, {parts}".split(", "), list(newest.values()))
    yield ""


def cells(row: Mapping[str, Any]) -> list[str]:
    """A line of the table."""
    templates = f", {row['templates']} templates" if row.get("templates") else ""
    start = [str(row["residues"]), row["precision"], row["tier"] + templates, row.get("budget") or ""]
    predicted = f"{row['predicted_bytes'] / 2**30:.2f}" if "predicted_bytes" in row else ""
    if "error" in row:
        return [*start, predicted, row["error"] if "late" in row else "does not fit", "", "", "", ""]
    extrapolated = "" if row["blocks"] is None else "*"
    return [
        *start,
        predicted,
        f"{row['measured_bytes'] / 2**30:.2f}",
        f"{row['predicted_bytes'] / row['measured_bytes']:.3f}",
        f"{units(row):.2f}",
        f"{row['seconds']:.3g}{extrapolated}",
        f"{row['predicted_seconds']:.3g}",
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=list(PRESETS), default="model_3", help="without templates: 3 to 5")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lengths", type=int, nargs="*", default=None, help="default: 64 96")
    parser.add_argument("--tiers", nargs="+", choices=TIERS, default=list(TIERS))
    parser.add_argument("--precision", nargs="+", choices=list(ITEMSIZE), default=["fp32", "bf16"])
    parser.add_argument("--clusters", type=int, help="default: 512 on a GPU, 32 on a CPU")
    parser.add_argument("--extra", type=int, help="default: 5120 on a GPU, 128 on a CPU")
    parser.add_argument("--templates", type=int, default=0)
    parser.add_argument("--blocks", type=int, help="of each stack that run (default: all; on a CPU 1)")
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument(
        "--kept",
        type=lambda text: None if text == "auto" else int(text),
        default=0,
        help="rows of an offloaded pair that stay on the device, or auto (default: 0)",
    )
    parser.add_argument("--budget", help="of the device's memory, as in 8GB (default: what is free)")
    parser.add_argument("--full", action="store_true", help="use the budget to the last byte")
    parser.add_argument("--targets", nargs="*", choices=list(TARGETS), help="measure these, or all")
    parser.add_argument("--picture", nargs="+", default=[], metavar="LENGTH:PRECISION", help="to draw")
    parser.add_argument(
        "--seconds", type=float, default=300, help="most that each setting may take (default: 300)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    parser.add_argument("--page", type=Path, default=PAGE, help="page to write")
    parser.add_argument("--report", action="store_true", help="write page and pictures alone")
    args = parser.parse_args()
    on_gpu = args.device != "cpu"
    args.clusters = args.clusters or (512 if on_gpu else 32)
    args.extra = args.extra or (5120 if on_gpu else 128)
    if not on_gpu and args.blocks is None:
        args.blocks = 1
    if args.lengths is None:
        args.lengths = [] if args.picture or args.report or args.targets is not None else [64, 96]
    args.targets = list(TARGETS) if args.targets == [] else args.targets or []
    return args


def main() -> None:
    without_gaps()  # as the command does
    args = arguments()
    device = torch.device(args.device)
    config = with_rows(PRESETS[args.model], args)
    args.results.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "device": device_name(device),
        "torch": torch.__version__,
        "axfold": commit(),
        "model": args.model,
        "clusters": args.clusters,
        "extra": args.extra,
        "templates": args.templates,
        "passes": args.passes,
        "measured": [],
    }
    name = file_name(f"{datetime.now(UTC):%Y-%m-%d-%H%M%S}", device)
    used = dict.fromkeys(args.precision if args.lengths else ())
    used |= dict.fromkeys(TARGETS[name].precision for name in args.targets)
    for precision in used if device.type == "cuda" else ():
        warm_up(precision, config, args)
    for name_of_target in args.targets:
        start = time.perf_counter()
        row = target(name_of_target, args)
        result["measured"].append(row)
        write(args.results / name, result)
        forget(device)
        said = " | ".join(cells(row))
        print(
            f"{name_of_target}: {said} [{time.perf_counter() - start:.0f} s]",
            row.get("error", ""),
            flush=True,
        )
    for precision in args.precision:
        for n in args.lengths:
            for tier in args.tiers:
                row = one(n, tier, precision, config, args)
                result["measured"].append(row)
                print(" | ".join(cells(row)), row.get("error", ""), flush=True)
                write(args.results / name, result)
    for wanted in args.picture:
        length, _, precision = wanted.partition(":")
        row = one(int(length), args.tiers[0], precision, config, args, tensors=True)
        result.setdefault("pictures", []).append(row)
        print(" | ".join(cells(row)), row.get("error", ""), flush=True)
        write(args.results / name, result)
    draw(args.results, args.page.parent)
    args.page.parent.mkdir(parents=True, exist_ok=True)
    args.page.write_text("\n".join(page(args.results, args.page.parent)), "utf-8")


def one(
    n: int, tier: str, precision: str, config: Config, args: argparse.Namespace, tensors: bool = False
) -> dict[str, Any]:
    """The row of a setting of the command line."""
    row = {"residues": n, "tier": tier, "precision": precision, "blocks": args.blocks}
    row |= {"templates": args.templates, "budget": args.budget}
    row = attempt(row, lambda: measure(n, tier, precision, config, args, tensors), args.seconds)
    forget(torch.device(args.device))
    return row


def with_rows(config: Config, args: argparse.Namespace) -> Config:
    """The preset with as many rows of the MSA and of the extra MSA as are measured, whatever the templates take."""
    clusters = args.clusters + config.data.templates
    return replace(config, data=replace(config.data, msa_clusters=clusters, extra_msa=args.extra))


def warm_up(precision: str, config: Config, args: argparse.Namespace) -> None:
    """Build the kernels, by a short protein with an alignment as deep as will be measured."""
    start = time.perf_counter()
    free = argparse.Namespace(**{**vars(args), "budget": None, "full": False, "blocks": 1, "templates": 0})
    try:
        for tier in ("resident", "offload"):
            measure(448, tier, precision, config, free)  # so long that the kernels of long proteins run
    except Exception:  # it will be told of where it is measured
        traceback.print_exc()
    forget(torch.device(args.device))
    print(f"kernels for {precision}: {time.perf_counter() - start:.0f} s", flush=True)


def forget(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

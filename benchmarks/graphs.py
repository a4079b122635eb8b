"""Times passes of small proteins with CUDA graphs and without, and compares the numbers.

    python benchmarks/graphs.py                                   # on a GPU; some 30 s
    python benchmarks/graphs.py --lengths 100 200 --recycles 3    # others

For each length: seconds of a pass without graphs, of the first passes with them (the first runs as ever, the second
records) and of the rest, kernels and launches a pass, seconds of the GPU in kernels, and what the copies hold.
"""

import argparse
import json
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from axfold import network, planning
from axfold.config import PRESETS, Config
from axfold.data import pipelines
from axfold.graphs import Graphs
from axfold.memory.host import Bus
from axfold.model.alphafold import AlphaFold
from machine import commit, device_name, file_name, write
from model import PRECISIONS
from passes import random_query

RESULTS = Path(__file__).parent / "results" / "graphs"


def passes(model: AlphaFold, features: Any, number: int) -> Iterator[tuple[float, list[torch.Tensor]]]:
    """Seconds of each pass, and what it computes."""
    several = ([features] for _ in range(number))
    device = next(model.parameters()).device
    torch.cuda.synchronize()
    start = time.perf_counter()
    inputs = (each[0] for each in (list(network.on_device(one, 1, device)) for one in several))
    for result in network.passes(model, inputs):
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        found = result.single, result.pair, result.structure.atom37, result.structure.atom14
        yield seconds, [x.clone() for x in found]
        torch.cuda.synchronize()
        start = time.perf_counter()


def counted(model: AlphaFold, features: Any, number: int) -> dict[str, float]:
    """Kernels and launches of the last of some passes, and the seconds in which the GPU ran one of its kernels."""
    from torch.profiler import ProfilerActivity, profile

    running = passes(model, features, number)
    for _ in range(number - 1):
        next(running)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as prof:
        next(running)
    events = prof.events()
    kernels = sorted(
        (e.time_range.start, e.time_range.end)
        for e in events
        if e.device_type == torch.autograd.DeviceType.CUDA
        and not e.name.startswith(("Memcpy HtoD", "Memcpy DtoH"))
    )
    busy = 0.0
    end = float("-inf")
    for first, last in kernels:
        busy += max(0.0, last - max(first, end))
        end = max(end, last)
    names = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")
    launches = sum(e.name.startswith(names) for e in events if e.device_type == torch.autograd.DeviceType.CPU)
    return {"kernels": len(kernels), "launches": launches, "busy_seconds": busy / 1e6}


def measure(model: AlphaFold, config: Config, residues: int, rows: int, recycles: int) -> dict[str, Any]:
    device = next(model.parameters()).device
    query = random_query(residues, rows)
    samples = pipelines.monomer(query, config, seed=0, passes=1)
    features = {name: np.array(value[0]) for name, value in samples.items()}
    memory, bus, graphs = planning.find_memory(device), Bus(device), Graphs(device)
    sizes = planning.sizes_of(features, config, model)
    row: dict[str, Any] = {"residues": residues, "said": []}
    found = {}
    for name, given in (("without", None), ("with", graphs)):
        ladder = planning.Ladder(model, sizes, memory, bus, row["said"].append, given)
        torch.cuda.reset_peak_memory_stats()
        row[name] = {"graphs": ladder.has_graphs()}
        if name == "without":
            list(passes(model, features, 1))  # builds the kernels
        each, found[name] = zip(*passes(model, features, recycles + 1), strict=True)
        row[name] |= {"passes": each, "seconds": min(each)}
        row[name]["predicted_bytes"] = ladder.plan.peak_device_bytes
        row[name]["peak_bytes"] = torch.cuda.max_memory_allocated()
        row[name]["reserved_bytes"] = torch.cuda.memory_reserved()
        try:
            row[name] |= counted(model, features, 3)
        except Exception:  # the times stand without it
            traceback.print_exc()
    row["equal"] = all(
        torch.equal(x, y)
        for x, y in zip(*(tree_leaves(found[name]) for name in ("without", "with")), strict=True)
    )
    graphs.remove(model)
    graphs.clear()
    return row


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=list(PRESETS), default="model_5")
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256, 384, 512, 768])
    parser.add_argument("--clusters", type=int, default=512)
    parser.add_argument("--extra", type=int, default=5120)
    parser.add_argument("--recycles", type=int, default=3)
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    device, config = torch.device("cuda"), PRESETS[args.model]
    config = replace(config, data=replace(config.data, msa_clusters=args.clusters, extra_msa=args.extra))
    torch.manual_seed(0)
    model = network.in_precision(AlphaFold(config.model), args.precision)
    model = model.requires_grad_(False).eval().to(device)
    result: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "device": device_name(device),
        "torch": torch.__version__,
        "axfold": commit(),
        "settings": {
            name: getattr(args, name) for name in ("model", "precision", "clusters", "extra", "recycles")
        },
        "measured": [],
    }
    path = args.results / file_name(f"{datetime.now(UTC):%Y-%m-%d-%H%M%S}", device, args.precision)
    for residues in args.lengths:
        try:
            row = measure(model, config, residues, 2 * (args.clusters + args.extra), args.recycles)
        except Exception:  # the other lengths stand without it
            traceback.print_exc()
            continue
        result["measured"].append(row)
        write(path, result)
        before, after = row["without"], row["with"]
        print(
            f"{residues:5} residues  {before['seconds']:.4f} s a pass, with graphs {after['seconds']:.4f} s "
            f"(passes {', '.join(f'{x:.4f}' for x in after['passes'])}); equal: {row['equal']}",
            flush=True,
        )
        print(
            json.dumps(
                {name: {k: v for k, v in row[name].items() if k != "passes"} for name in ("without", "with")}
            )
        )
        for text in row["said"]:
            print(text)
    print(f"written: {path}")


if __name__ == "__main__":
    main()

"""Times the first pass of a process, from its start, and says where the time goes.

    python benchmarks/cold.py --device cuda --precision bf16 --lengths 256 300    # writes benchmarks/results/cold/
    python benchmarks/cold.py --device cuda --precision bf16 --lengths 256 300 --peers ColabFold

Every row is a process. The first one finds no compiled kernel; the others find those that the ones before have left:
the first length again, then lengths that none has seen. The parameters are made up and read from axfold's own file,
which is written first. `benchmarks/report.py` puts the results into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from compilations import compilations

RESULTS = Path(__file__).parent / "results" / "cold"


def first_pass(job: dict[str, Any]) -> dict[str, Any]:
    """A pass of axfold, up to its atoms, in this process, which began at `job["started"]`: seconds of each part."""
    at = [job["started"], time.time()]
    parts: dict[str, float] = {}

    def done(part: str) -> None:
        at.append(time.time())
        parts[part] = round(at[-1] - at[-2], 3)

    parts["Python"] = round(at[1] - at[0], 3)
    import torch

    done("import of PyTorch")
    from axfold import network, planning
    from axfold.graphs import Graphs
    from axfold.memory.host import Bus
    from axfold.ops.health import HEALTH
    from axfold.weights.source import Source
    from passes import configuration

    kernels = compilations()
    done("import of axfold")
    device = network.find_device(job["device"])
    done("device")
    config = configuration(**job["model"])
    source = Source(None if job["parameters"] is None else Path(job["parameters"]))
    warmup = None  # kernels are made ready in threads from here on, as a prediction does it
    if job["warmup"]:
        sizes = {"residues": job["residues"], "sequences": config.data.msa_clusters}
        warmup = network.warmup(config, device, job["precision"], **sizes)
    model = network.load_network(config, source, device, job["precision"])
    done("parameters")
    with np.load(job["features"]) as file:
        features = dict(file)
    done("features")
    if warmup is not None:
        warmup.wait()
    done("kernels, what is left of them")
    memory = planning.find_memory(device)
    sizes = planning.sizes_of(features, config, model)
    planning.Ladder(model, sizes, memory, Bus(device), lambda line: None, Graphs(device))
    done("plan")
    passes = network.passes(model, network.on_device([features] * 2, 1, device))
    result = next(passes)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    done("first pass")
    assert bool(torch.isfinite(result.structure.atom37).all())
    seconds = at[-1] - at[0]
    del result
    next(passes)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    known = [verdict.seconds for verdicts in HEALTH._verdicts.values() for verdict in verdicts.values()]
    return {
        "seconds": round(seconds, 3),
        "parts": parts,
        "second_pass": round(time.time() - at[-1], 3),
        "kernels": len(kernels),
        "kernel_seconds": round(sum(seconds for _, _, seconds in kernels), 3),
        "checks": len(known),
        "check_seconds": round(sum(known), 3),  # of the process that made them
    }


def start(job: dict[str, Any], kept: Path, threads: int | None) -> dict[str, Any]:
    """The row of a process of its own, whose caches are in the folder `kept`."""
    variables = {**os.environ, **caches(kept)}
    if threads is not None:
        variables["OMP_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryDirectory() as folder:
        path, answer = Path(folder, "job.json"), Path(folder, "row.json")
        path.write_text(json.dumps({**job, "answer": str(answer), "started": time.time()}), "utf-8")
        command = [sys.executable, __file__, "--job", str(path)]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return {"failed": (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:200]}
        return json.loads(answer.read_text("utf-8"))


def caches(folder: Path) -> dict[str, str]:
    """Where processes find what others have compiled, Triton's kernels and the driver's, and checked."""
    names = {"TRITON_CACHE_DIR": "triton", "CUDA_CACHE_PATH": "driver", "AXFOLD_CACHE": "axfold"}
    return {variable: str(folder / name) for variable, name in names.items()}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="model_5", help="one without templates")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 300], help="numbers of residues")
    parser.add_argument("--clusters", type=int, default=512)
    parser.add_argument("--extra", type=int, default=1024, help="extra sequences")
    parser.add_argument("--blocks", type=int, help="Evoformer blocks (default: the model's)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, help="of the CPU (default: PyTorch's)")
    parser.add_argument(
        "--peers", nargs="*", metavar="WORD", help="other packages too, as in benchmarks/model.py"
    )
    parser.add_argument(
        "--peer-seconds", type=float, default=180, help="most that each of their processes may take"
    )
    parser.add_argument(
        "--without-warmup", action="store_true", help="also with kernels built when they are called"
    )
    parser.add_argument("--note", default="", help="a remark for the report")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    parser.add_argument("--dry-run", action="store_true", help="print alone, write nothing")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)  # this process is one of the rows
    return parser.parse_args()


def show(row: dict[str, Any]) -> None:
    words = f"{row['residues']:5} residues  {row['engine']} {row['setting']:28} kernels {row['cache']:6}"
    if "failed" in row:
        print(f"{words} {row['failed']}", flush=True)
        return
    print(f"{words} {row['seconds']:8.2f} s", flush=True)
    for part, seconds in row["parts"].items():
        print(f"{part:>40} {seconds:8.2f} s")
    if "kernels" in row:
        print(f"{row['kernels']:>40} kernels compiled in {row['kernel_seconds']:.2f} s of threads together")
    if row.get("checks"):
        print(f"{row['checks']:>40} kernels known to be right, checked in {row['check_seconds']:.2f} s")
    if "second_pass" in row:
        print(f"{'second pass':>40} {row['second_pass']:8.2f} s", flush=True)


def main() -> None:
    args = arguments()
    if args.job:
        job = json.loads(args.job.read_text("utf-8"))
        Path(job["answer"]).write_text(json.dumps(first_pass(job)), "utf-8")
        return
    import torch

    import axfold
    from axfold.weights.convert import convert
    from axfold.weights.source import Source
    from machine import commit, device_name, file_name, write
    from model import peers_asked
    from passes import configuration, random_features
    from peers import process

    device = torch.device(args.device)
    settings = {"model": args.model, "clusters": args.clusters, "extra": args.extra, "blocks": args.blocks}
    config = configuration(**settings)
    result: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "note": args.note,
        "device": device_name(device),
        "versions": {"axfold": f"{axfold.__version__} ({commit()})", "torch": torch.__version__},
        "settings": {**settings, "blocks": config.model.evoformer.blocks, "precision": args.precision},
        "measured": [],
    }
    path = args.results / file_name(result["date"], device, args.precision)

    def keep(row: dict[str, Any]) -> None:
        result["versions"] |= row.pop("versions", {})
        result["measured"].append(row)
        show(row)
        if not args.dry_run:
            write(path, result)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {n: folder / f"{n}.npz" for n in args.lengths}
        for residues, file in files.items():
            np.savez(file, **random_features(residues, config))
        parameters = None
        if args.blocks is None:  # axfold's file is of a whole model
            parameters = folder / "parameters.safetensors"
            convert(Source(), args.model, parameters)
        job = {
            "model": settings,
            "device": args.device,
            "precision": args.precision,
            "parameters": parameters and str(parameters),
        }
        rows = [(args.lengths[0], "none"), *((n, "kept") for n in args.lengths)]
        for setting, warmup in [("", True), ("kernels as they are called", False)][: 1 + args.without_warmup]:
            kept = folder / f"axfold {setting}"
            for residues, cache in rows[: 2 if setting else None]:
                of_row = {"residues": residues, "warmup": warmup, "features": str(files[residues])}
                row = start({**job, **of_row}, kept, args.threads)
                keep({"engine": "axfold", "setting": setting, "residues": residues, "cache": cache, **row})
        for peer, setting in peers_asked(args.peers):
            for residues, cache in zip(args.lengths, ["none"] + ["kept"] * len(args.lengths), strict=False):
                (row,) = process.measure(
                    peer,
                    setting,
                    {residues: files[residues]},
                    model=settings,
                    device=args.device,
                    precision=args.precision,
                    repeats=0,
                    seconds=args.peer_seconds,
                    environment=caches(folder / f"{peer} {setting}"),
                )
                if "failed" not in row:
                    compiled = row.get("compile_seconds", 0.0) + row.get("trace_seconds", 0.0)
                    row["seconds"] = row.pop("cold_seconds")
                    row["parts"] = {"start": row.pop("start_seconds"), "compilation": round(compiled, 3)}
                    if "weights_seconds" in row:  # random ones are made; the package itself would read a file
                        row["parts"]["parameters"] = row["weights_seconds"]
                    row["parts"]["the rest"] = round(row["seconds"] - sum(row["parts"].values()), 3)
                keep({**row, "cache": cache})
    if not args.dry_run:
        print(f"written: {path}")


if __name__ == "__main__":
    main()

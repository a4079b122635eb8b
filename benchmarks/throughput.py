"""Proteins per hour on one GPU: real sequences with their alignments, from files to files, by the whole command.

    python benchmarks/throughput.py --make proteins --data ../shared/data     # a folder of 1,000 small alignments
    python benchmarks/throughput.py --inputs proteins                         # all of them
    python benchmarks/throughput.py --inputs proteins --seconds 120           # as many as end within that time
    python benchmarks/throughput.py --inputs proteins --processes 3           # that share the GPU

Parameters are synthetic, which changes no timing. Inputs are shuffled, so that a part of them is like the whole. Two
proteins are folded before, since the first ones build the kernels. What is measured is what was done: nothing is
extrapolated but the hour. The share of the time in which the GPU was busy is nvidia-smi's, sampled, from the first pass
(with several processes, the first protein on disk) to the last; beside it stands that of the passes themselves, by the
GPU's clock. What is on disk when the time is up counts.
"""

from __future__ import annotations

import _thread
import argparse
import csv
import gc
import gzip
import io
import json
import lzma
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

if __name__ != "__mp_main__":  # processes that write load this file again, and need none of these
    import torch

    from axfold import batch, network
    from axfold.console import Plain
    from axfold.residues import RESTYPES
    from compilations import compilations
    from machine import commit, device_name, file_name, write
    from model import Clock

RESULTS = Path(__file__).parent / "results" / "throughput"
SHORTEST, LONGEST, ROWS = 50, 400, 512
NAMES = ("model", "precision", "recycles", "processes", "limit", "seconds")  # of settings


def make(folder: Path, data: Path, number: int) -> None:
    """Write NAME.a3m.gz of chains of known structure with their alignments, and of longer sequences.

    A fifth are Swiss-Prot sequences of more than 250 residues, for which there is no alignment.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    with (data / "structures" / "index.csv").open(encoding="utf-8") as file:
        lengths = {
            row["id"]: int(row["length"]) for row in csv.DictReader(file) if row["kind"] == "full_atom"
        }
    wanted = sorted(name for name, length in lengths.items() if SHORTEST <= length <= LONGEST)
    wanted = set(rng.sample(wanted, min(len(wanted), number - number // 5)))
    made = 0
    with tarfile.open(data / "msas" / "full_atom.tar.xz") as archive:
        for member in archive:
            name = Path(member.name).stem
            source = archive.extractfile(member)
            if name in wanted and source is not None:
                made += 1
                _put(folder / f"{name}.a3m.gz", _first_rows(source.read().decode("ascii")))
    with lzma.open(data / "seqdb" / "sprot50_40k.fasta.xz", "rt", encoding="ascii") as file:
        records = [record.partition("\n") for record in file.read().split(">")[1:]]
    sequences = {head.split()[0]: "".join(body.split()) for head, _, body in records}
    long = sorted(
        name
        for name, sequence in sequences.items()
        if 250 < len(sequence) <= LONGEST and set(sequence) <= set(RESTYPES)
    )
    for i, name in enumerate(rng.sample(long, number - made)):
        _put(folder / f"long{i:03d}.a3m.gz", f">{name}\n{sequences[name]}\n")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{number} proteins, {size / 1e6:.1f} MB in {folder}")


def _first_rows(a3m: str) -> str:
    return "".join(f">{row}" for row in a3m.split(">")[1 : ROWS + 1])


def _put(path: Path, text: str) -> None:
    raw = io.BytesIO()
    with gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as file:
        file.write(text.encode("ascii"))
    path.write_bytes(raw.getvalue())


class Usage:
    """What nvidia-smi says of a GPU, ten times a second."""

    def __init__(self) -> None:
        query = [
            "nvidia-smi",
            "--query-gpu=utilization.gpu",
            "--format=csv,noheader,nounits",
            "-lms",
            "100",
            "-i",
            "0",
        ]
        self.seen: list[tuple[float, float]] = []
        try:
            self._process = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
        except OSError:
            return
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip().isdigit():
                self.seen.append((time.perf_counter(), float(line)))

    def share(self, start: float, end: float) -> float | None:
        within = [percent for at, percent in self.seen if start <= at <= end]
        return fmean(within) / 100 if within else None

    def close(self) -> None:
        if hasattr(self, "_process"):
            self._process.terminate()


class Passes:
    """The passes of every network that is loaded: when each began on the host, and its seconds on the device."""

    def __init__(self, device: torch.device):
        self._clock = Clock(device)
        self.events: list[tuple[float, Any, Any]] = []
        load = network.load_network

        def loaded(*args: Any) -> Any:
            model = load(*args)
            begun: list[Any] = []

            def before(*_: Any) -> None:
                begun.append((time.perf_counter(), self._clock.now()))

            def after(*_: Any) -> None:
                self.events.append((*begun.pop(), self._clock.now()))

            model.register_forward_pre_hook(before)
            model.register_forward_hook(after)
            return model

        network.load_network = loaded

    def each(self) -> list[tuple[float, float]]:
        """When each pass began, and its seconds."""
        self._clock.wait()
        return [(at, self._clock.seconds(start, end)) for at, start, end in self.events]


def fold(inputs: tuple[Path, ...], out: Path, args: argparse.Namespace) -> int:
    """Proteins that are on disk in the end, all files of them."""
    options = batch.Options(
        inputs=inputs,
        out=out,
        models=(args.model,),
        params="synthetic",
        recycles=args.recycles,
        device=args.device,
        precision=args.precision,
    )
    try:
        outcome = batch.run(options, Plain())
        for failure in outcome.failures:
            print("failed:", failure)
    except KeyboardInterrupt:
        print("time is up")
    return len(list(out.glob("*.done.txt")))


def fold_by_several(files: list[Path], out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The same by several commands at once, each with a share of the proteins."""
    usage, start = Usage(), time.perf_counter()
    command = [sys.executable, "-m", "axfold", "predict", "--params", "synthetic", "--model", args.model]
    command += ["--recycles", str(args.recycles), "--device", args.device, "--precision", args.precision]
    running = []
    for i in range(args.processes):
        share = [str(path) for path in files[i :: args.processes]]
        said = (out.parent / f"said{i}.txt").open("w")
        running.append(
            subprocess.Popen([*command, *share, "--out", str(out / str(i))], stdout=said, stderr=said)
        )
    first, told = None, False
    while any(process.poll() is None for process in running):
        time.sleep(0.05)
        now = time.perf_counter()
        if first is None and any(out.glob("*/*.done.txt")):
            first = now
        if args.seconds and now - start > args.seconds and not told:
            told = True
            for process in running:
                process.send_signal(signal.SIGINT)
    end = time.perf_counter()
    usage.close()
    for i, process in enumerate(running):
        if process.returncode not in (0, 130):
            print((out.parent / f"said{i}.txt").read_text("utf-8")[-2000:])
    return {
        "proteins": len(list(out.glob("*/*.done.txt"))),
        "seconds": end - start,
        "seconds_before_first_protein": (first or end) - start,
        "busy": usage.share(first or start, end),
        "busy_with_start": usage.share(start, end),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    files = sorted(args.inputs.glob("*.a3m*"))
    random.Random(1).shuffle(files)
    passes, usage, compiled = Passes(torch.device(args.device)), Usage(), compilations()
    with tempfile.TemporaryDirectory() as name:
        by_size = sorted(files, key=lambda path: path.stat().st_size)
        fold((by_size[0], by_size[-1]), Path(name) / "before", args)
        passes.events.clear()
        compiled.clear()
        out = Path(name) / "out"
        if args.processes > 1:
            usage.close()
            gc.collect()
            if args.device != "cpu":
                torch.cuda.empty_cache()
            return fold_by_several(files[: args.limit], out, args)
        timer = threading.Timer(args.seconds or 1e9, _thread.interrupt_main)
        timer.daemon = True
        start = time.perf_counter()
        timer.start()
        finished = fold(tuple(files[: args.limit]), out, args)
        end = time.perf_counter()
        timer.cancel()
        usage.close()
        on_gpu = sum(seconds for _, seconds in passes.each())
        first = passes.events[0][0] if passes.events else start
        last = passes.events[-1][0] if passes.events else end
        results = [
            result
            for path in out.glob("*.done.txt")
            for result in json.loads(path.read_text("utf-8")).get("results", ())
        ]
    return {
        "proteins": finished,
        "seconds": end - start,
        "seconds_before_first_pass": first - start,
        "seconds_after_last_pass": end - last,
        "passes": len(passes.events),
        "pass_seconds": on_gpu,
        "busy": usage.share(first, last),
        "busy_with_start": usage.share(start, end),
        "passes_share": on_gpu / (last - first) if last > first else None,
        "waited_for_features": sum(result.get("feature_seconds", 0) for result in results),
        # what makes a pass slow: when it began, and its seconds on the device; kernels that were compiled meanwhile
        "each_pass": [(round(at - start, 3), round(seconds, 4)) for at, seconds in passes.each()],
        "compiled": [(name, round(at - start, 3), round(seconds, 3)) for name, at, seconds in compiled],
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--make", type=Path, help="folder to write inputs to, and no more")
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="what --make takes them from"
    )
    parser.add_argument("--number", type=int, default=1000, help="of proteins that --make writes")
    parser.add_argument("--inputs", type=Path, help="folder of alignments")
    parser.add_argument("--limit", type=int, help="so many proteins at most")
    parser.add_argument("--seconds", type=float, help="stop after so long")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--processes", type=int, default=1, help="that share the GPU")
    parser.add_argument("--recycles", type=int, default=3)
    parser.add_argument("--model", default="model_3_ptm")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    args = parser.parse_args()
    if args.make is None and args.inputs is None:
        parser.error("give --inputs or --make")
    return args


def main() -> None:
    args = arguments()
    if args.make is not None:
        make(args.make, args.data, args.number)
        return
    device = torch.device(args.device)
    result = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "device": device_name(device),
        "torch": torch.__version__,
        "axfold": commit(),
        "settings": {name: getattr(args, name) for name in NAMES},
        "measured": measure(args),
    }
    print(json.dumps(result, indent=1))
    path = args.results / file_name(f"{datetime.now(UTC):%Y-%m-%d-%H%M%S}", device, args.precision)
    write(path, result)
    print(f"written: {path}")


if __name__ == "__main__":
    main()

"""Times one Evoformer block forward and backward, and what it is made of; writes benchmarks/results/training.

    python benchmarks/training.py                                # axfold's rows, with kernels and without
    python benchmarks/training.py --peers                        # and other packages, where they are installed
    python benchmarks/training.py --sizes --steps 256x128x1024   # whole steps of model_1
    python benchmarks/training.py --sizes 512x384 --profile 40   # which kernels take the time

A block is model_1's, in bfloat16 with dropout and without checkpointing: from m and z to both, and from their gradients
to those of m, z and all parameters. Milliseconds are the median of several after the device was idle; a CUDA graph
replays the same work without the host's. `peak` is the most memory that PyTorch has allocated at once, with the m, z,
parameters and gradients that were there before (`resident`). No mask hides anything.

Each row is measured by itself: one that fails is written with its reason, and the others go on.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from axfold import ops
from axfold.config import FINE_TUNING, PRESETS, Loss
from axfold.model.alphafold import AlphaFold
from axfold.model.atoms import lookup
from axfold.model.evoformer import EvoformerBlock
from axfold.train.labels import Labels, label
from axfold.train.loss import head_logits, losses
from machine import commit, device_name, file_name, write
from passes import configuration, random_features

RESULTS = Path(__file__).parent / "results" / "training"
SIZES = ("128x256", "512x384")
PEERS = (
    ("openfold", "no chunks"),
    ("openfold", "cuEquivariance, no chunks"),
    ("fastfold", "in place, no chunks"),
)
Block = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@contextmanager
def references() -> Iterator[None]:
    """Every operation by its definition."""
    every = [op for name in ops.__all__ if isinstance(op := getattr(ops, name), ops.Op)]
    before = [op.backends for op in every]
    try:
        for op in every:
            op.backends = {"reference": op.backends["reference"]}
        yield
    finally:
        for op, backends in zip(every, before, strict=True):
            op.backends = backends


def axfold_block(device: torch.device, dtype: torch.dtype) -> EvoformerBlock:
    sizes = PRESETS["model_1"].model
    torch.manual_seed(0)
    return EvoformerBlock(sizes.c_m, sizes.c_z, sizes.evoformer).to(device, dtype).train()


def shown(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    """A mask that hides nothing, as the network makes it."""
    return torch.ones((), device=device, dtype=dtype).expand(shape)


class Run:
    """A block on its representations, and the gradients that come back to them."""

    def __init__(self, block: Block, parameters: list[Tensor], sequences: int, residues: int, like: Tensor):
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, device=like.device, dtype=like.dtype)

        self.block, self.parameters = block, parameters
        self.m, self.z = normal(sequences, residues, 256), normal(residues, residues, 128)
        self.above = normal(*self.m.shape), normal(*self.z.shape)
        self.leaves = [self.m.requires_grad_(), self.z.requires_grad_(), *parameters]

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.block(self.m, self.z)

    def backward(self, out: tuple[Tensor, Tensor]) -> None:
        torch.autograd.backward(out, self.above)

    def both(self) -> None:
        self.backward(self.forward())

    def forget(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None


def measure(run: Run, seconds: float) -> dict[str, Any]:
    """Milliseconds and bytes of a block; of its first run too, which compiles."""
    wait = torch.cuda.synchronize if run.m.is_cuda else (lambda: None)
    start = time.perf_counter()
    for _ in range(2):
        run.both()
        run.forget()
    wait()
    row: dict[str, Any] = {"first_seconds": round(time.perf_counter() - start, 2)}
    if run.m.is_cuda:
        run.both()  # leaves gradients, as a step does before the next one
        run.forget()
        torch.cuda.empty_cache()
        row["resident_bytes"] = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run.both()
        wait()
        row["peak_bytes"] = torch.cuda.max_memory_allocated()
        run.forget()
    forward, backward, whole = [], [], []
    end = time.perf_counter() + seconds
    while len(whole) < 3 or (time.perf_counter() < end and len(whole) < 30):
        wait()
        times = [time.perf_counter()]
        out = run.forward()
        wait()
        times.append(time.perf_counter())
        run.backward(out)
        wait()
        times.append(time.perf_counter())
        del out
        run.forget()
        wait()
        times.append(time.perf_counter())
        run.both()
        wait()
        times.append(time.perf_counter())
        run.forget()
        spans = [1e3 * (b - a) for a, b in pairwise(times)]
        forward.append(spans[0])
        backward.append(spans[1])
        whole.append(spans[3])
    for name, values in (("forward_ms", forward), ("backward_ms", backward), ("ms", whole)):
        row[name] = round(statistics.median(values), 3)
    return row


def graphed(run: Run, seconds: float) -> dict[str, Any]:
    """Milliseconds of a CUDA graph of forward and backward."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run.both()
            run.forget()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run.both()
    graph.replay()
    torch.cuda.synchronize()
    times = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 50):
        start = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    finite = all(bool(torch.isfinite(x.grad).all()) for x in run.leaves if x.grad is not None)
    run.forget()
    return {"ms": round(statistics.median(times), 3), "finite": finite}


def parts(block: EvoformerBlock, run: Run, seconds: float) -> Iterator[dict[str, Any]]:
    """Each module of a block by itself: milliseconds forward and backward, and of the device's kernels alone."""
    m, z = run.m.detach(), run.z.detach()
    like = m.new_empty(())
    over_m, over_z = (shown(m.device, like.dtype, *x.shape[:2]) for x in (m, z))
    pair = block.pair
    modules: list[tuple[str, nn.Module, tuple[Tensor, ...], tuple[Tensor, ...]]] = [
        ("MSA row attention", block.row_attention, (m, z), (over_m,)),
        ("MSA column attention", block.column_attention, (m,), (over_m,)),
        ("MSA transition", block.msa_transition, (m,), ()),
        ("outer product mean", block.outer_product_mean, (z, m), (over_m,)),
        ("triangle multiplication, outgoing", pair.multiplication_outgoing, (z,), (over_z,)),
        ("triangle multiplication, incoming", pair.multiplication_incoming, (z,), (over_z,)),
        ("triangle attention, starting node", pair.attention_starting, (z,), (over_z,)),
        ("triangle attention, ending node", pair.attention_ending, (z,), (over_z,)),
        ("pair transition", pair.transition, (z,), ()),
    ]
    for name, module, inputs, masks in modules:
        row: dict[str, Any] = {"part": name}
        try:
            row |= part(module, inputs, masks, seconds)
        except Exception as error:  # the others may work
            row["failed"] = said(error)
        yield row


def part(
    module: nn.Module, inputs: tuple[Tensor, ...], masks: tuple[Tensor, ...], seconds: float
) -> dict[str, Any]:
    leaves = [x.clone().requires_grad_() for x in inputs]

    def forward() -> Tensor:
        for x in (*leaves, *module.parameters()):
            x.grad = None
        return module(*leaves, *masks)

    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while len(times[0]) < 5 or (time.perf_counter() < end and len(times[0]) < 20):
        torch.cuda.synchronize()
        start = time.perf_counter()
        out = forward()
        torch.cuda.synchronize()
        middle = time.perf_counter()
        torch.autograd.backward(out, torch.ones_like(out))
        torch.cuda.synchronize()
        times[0].append(1e3 * (middle - start))
        times[1].append(1e3 * (time.perf_counter() - middle))
    row: dict[str, Any] = {}
    row["forward_ms"], row["backward_ms"] = (round(statistics.median(x[2:]), 3) for x in times)
    row["forward_device_ms"], row["forward_launches"] = device_time(forward)
    out = forward()
    above = torch.ones_like(out)
    backward = partial(torch.autograd.backward, out, above)
    row["backward_device_ms"], row["backward_launches"] = device_time(backward)
    return row


def device_time(work: Callable[[], Any]) -> tuple[float, int]:
    """Milliseconds that the device's kernels take in sum, and their number."""
    activity = torch.profiler.ProfilerActivity.CUDA
    with torch.profiler.profile(activities=[activity]) as profile:
        work()
        torch.cuda.synchronize()
    kernels = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return round(sum(e.time_range.elapsed_us() for e in kernels) / 1e3, 4), len(kernels)


def profiled(run: Run, most: int) -> list[dict[str, Any]]:
    """The kernels that take the most time in a block, forward and backward."""
    run.both()
    run.forget()
    activity = torch.profiler.ProfilerActivity.CUDA
    with torch.profiler.profile(activities=[activity]) as profile:
        run.both()
        torch.cuda.synchronize()
    run.forget()
    found: dict[str, list[float]] = {}
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            found.setdefault(event.name, []).append(event.time_range.elapsed_us())
    ranked = sorted(found.items(), key=lambda item: -sum(item[1]))
    print(f"    {sum(map(len, found.values()))} kernels, {sum(map(sum, found.values())) / 1e3:.3f} ms")
    for name, times in ranked[:most]:
        print(f"    {sum(times) / 1e3:8.3f} ms {len(times):4} x {name[:110]}")
    return [
        {"kernel": name[:160], "launches": len(times), "ms": round(sum(times) / 1e3, 4)}
        for name, times in ranked[:most]
    ]


def checkpointed(network: AlphaFold) -> None:
    """Every block keeps its inputs alone, and computes the rest again (supplement 1.11.8)."""
    if find_spec("axfold.train.recompute"):
        import_module("axfold.train.recompute").recompute(network)
        return
    trunk = network.trunk
    for block in (*trunk.extra_stack.blocks, *trunk.evoformer.blocks):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]


def random_labels(features: dict[str, Tensor]) -> Labels:
    """A structure with all atoms, at random: what it is changes no timing."""
    aatype = features["aatype"]
    n = len(aatype)
    real = features["seq_mask"].float()
    atoms = (
        torch.randn(n, 37, 3, device=real.device)
        .mul_(2)
        .add_(3.8 * torch.arange(n, device=real.device)[:, None, None])
    )
    exists = lookup("ATOM37_MASK", aatype, real.dtype)
    one = real.new_ones(())
    msa = torch.randint(0, 21, features["msa_feat"].shape[:2], device=real.device)
    hidden = (torch.rand(msa.shape, device=real.device) < 0.15).float()
    return label(aatype.long(), features["residue_index"].long(), real, atoms, exists, one, one, msa, hidden)


def step(size: str, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Seconds of a step on one sample: a pass, losses, gradients, clipping and Adam. Blocks are checkpointed."""
    residues, clusters, extra = map(int, size.split("x"))
    config = configuration("model_1", clusters, extra, args.blocks)
    torch.manual_seed(0)
    network = AlphaFold(config.model).to(device).to_precision(getattr(torch, args.dtype)).train()
    checkpointed(network)
    features = {name: torch.from_numpy(x).to(device) for name, x in random_features(residues, config).items()}
    labels, weights = random_labels(features), Loss() if clusters < 512 else FINE_TUNING
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-6, fused=device.type == "cuda")
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)

    def one() -> float:
        wait()
        start = time.perf_counter()
        passed = network([features])
        found = losses(passed, head_logits(network, passed), labels, config.model.heads, weights)
        found.total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.1, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait()
        return time.perf_counter() - start

    row: dict[str, Any] = {"first_seconds": round(one(), 3)}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    row["step_seconds"] = round(min(one() for _ in range(args.repeats)), 4)
    if device.type == "cuda":
        row["peak_bytes"] = torch.cuda.max_memory_allocated()
    return row


def said(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def attempt(row: dict[str, Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The row with what was measured, or with the reason why nothing was."""
    try:
        row |= work()
    except Exception as error:  # the other rows may work
        traceback.print_exc(limit=-4, file=sys.stdout)
        row["failed"] = said(error)
    named = "forward_ms", "backward_ms", "ms", "step_seconds"
    numbers = [f"{name} {row[name]}" for name in named if name in row]
    memory = [f"{n} {row[n + '_bytes'] / 2**30:.3f} GiB" for n in ("peak", "resident") if n + "_bytes" in row]
    print(
        f"{row['engine']}, {row['setting']}, {row['size']}:",
        ", ".join([*numbers, *memory]) or row.get("failed"),
        flush=True,
    )
    return row


def ours(size: str, args: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    sequences, residues = map(int, size.split("x"))
    dtype = getattr(torch, args.dtype)
    block = axfold_block(device, dtype)
    masks = shown(device, dtype, sequences, residues), shown(device, dtype, residues, residues)
    parameters = list(block.parameters())
    run = Run(lambda m, z: block(m, z, *masks), parameters, sequences, residues, parameters[0])
    about = {"engine": "axfold", "size": size}
    if not args.no_reference:
        with references():
            yield attempt({**about, "setting": "definitions"}, lambda: measure(run, args.seconds))
    yield attempt({**about, "setting": "kernels"}, lambda: measure(run, args.seconds))
    if device.type != "cuda":
        return
    yield attempt({**about, "setting": "kernels, CUDA graph"}, lambda: graphed(run, args.seconds))
    if not args.no_parts:
        for row in parts(block, run, args.seconds / 4):
            print("   ", " ".join(f"{k.removesuffix('_ms')} {v}" for k, v in row.items()), flush=True)
            yield {**about, "setting": "kernels", **row}
    if args.profile:
        attempt({**about, "setting": "profile"}, lambda: {"kernels": profiled(run, args.profile)})


def peer(name: str, setting: str, args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """All sizes of another package, in this process."""
    from peers import load

    adapter = load(name)
    config = PRESETS["model_1"]
    rows = []
    reason = adapter.why_not(setting, config, device.type, "bf16")
    block = None
    for size in args.sizes:
        about = {"engine": adapter.NAME, "size": size}
        row = {**about, "setting": setting}
        sequences, residues = map(int, size.split("x"))

        def work(runs: list[Run], sequences: int = sequences, residues: int = residues) -> dict[str, Any]:
            nonlocal block
            if reason:
                raise RuntimeError(reason)
            if block is None:
                block = adapter.training_block(setting, config, device.type)  # type: ignore[attr-defined]
            module, call = block
            parameters = list(module.parameters())
            masks = (
                torch.ones(sequences, residues, device=device, dtype=parameters[0].dtype),
                torch.ones(residues, residues, device=device, dtype=parameters[0].dtype),
            )
            runs.append(Run(lambda m, z: call(m, z, *masks), parameters, sequences, residues, parameters[0]))
            return measure(runs[-1], args.seconds)

        runs: list[Run] = []
        rows.append(attempt(row, partial(work, runs)))
        if runs and "failed" not in row and device.type == "cuda":
            recorded = {**about, "setting": f"{setting}, CUDA graph"}
            rows.append(attempt(recorded, partial(graphed, runs[-1], args.seconds)))
    return rows


def peer_apart(name: str, setting: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The same in a process of its own, for so many seconds."""
    from peers.process import limited

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.json")
        command = [sys.executable, __file__, "--device", args.device, "--sizes", *args.sizes]
        command += ["--peer", name, setting, str(path), "--seconds", str(args.seconds)]
        complaint = limited(command, args.peer_seconds)
        if path.exists():
            return json.loads(path.read_text("utf-8"))
    return [
        {"engine": name, "setting": setting, "size": size, "failed": complaint or "it ended without a result"}
        for size in args.sizes
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), help="sequences x residues")
    parser.add_argument(
        "--steps", nargs="*", default=[], help="residues x clusters x extra sequences of whole steps"
    )
    parser.add_argument("--blocks", type=int, help="Evoformer blocks of a step's network; as it is set: 48")
    parser.add_argument("--repeats", type=int, default=3, help="steps after the first; the fastest counts")
    parser.add_argument("--seconds", type=float, default=2.0, help="for the repeats of each row")
    parser.add_argument("--no-reference", action="store_true", help="leave out the definitions")
    parser.add_argument("--no-parts", action="store_true", help="leave out the modules by themselves")
    parser.add_argument("--profile", type=int, default=0, help="list so many kernels of a block")
    parser.add_argument("--peers", action="store_true", help="other packages too")
    parser.add_argument("--peer-seconds", type=float, default=90.0, help="for each of them")
    parser.add_argument("--peer", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.peer:
        name, setting, path = args.peer
        Path(path).write_text(json.dumps(peer(name, setting, args, device)), "utf-8")
        return
    now = datetime.now()
    result: dict[str, Any] = {
        "device": device_name(device),
        "date": f"{now:%Y-%m-%d}",
        "commit": commit(),
        "settings": {"dtype": args.dtype},
        "versions": {"torch": torch.__version__},
        "rows": [],
    }
    print(f"{result['device']}, torch {torch.__version__}, axfold {result['commit']}", flush=True)
    path = args.results / file_name(f"{now:%Y-%m-%d-%H%M%S}", device)
    for size in args.sizes:
        for row in ours(size, args, device):
            result["rows"].append(row)
            write(path, result)  # a later failure loses nothing
        if device.type == "cuda":
            torch.cuda.empty_cache()
    for size in args.steps:
        row = {"engine": "axfold", "setting": "step", "size": size}
        result["rows"].append(attempt(row, partial(step, size, args, device)))
        write(path, result)
    for name, setting in PEERS if args.peers else ():
        result["rows"] += peer_apart(name, setting, args)
        write(path, result)
    print(path)


if __name__ == "__main__":
    main()

"""Seconds of the demo model's training step on one GPU: forward with recycles, losses and backward, in variants.

    python benchmarks/demo_step.py --seconds 100 --out results.json

Each variant is measured in a process of its own; one that fails says why, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from axfold import ops, residues
from axfold.config import PRESETS, Config, Loss
from axfold.model.alphafold import AlphaFold
from axfold.ops.triton import narrow
from axfold.train import step
from axfold.train.labels import Labels, label


@dataclass(frozen=True)
class Variant:
    """How a step is run: `attention` is a backend of gated attention that compilers see, where blocks are compiled.

    narrow: whether narrow layers have backwards of one kernel each
    """

    batch: int
    crop: int = 128
    compiled: bool = False
    recorded: bool = True
    attention: str = "reference"
    narrow: bool = True
    most: float = 150

    def __str__(self) -> str:
        blocks = f"compiled, attention by {self.attention}" if self.compiled else "kernels"
        blocks += "" if self.narrow else ", backwards in steps"
        return f"{self.batch} x {self.crop}, {blocks}, {'graphs' if self.recorded else 'launched'}"


# by promise: the first are measured even if time runs out; `most` is how many seconds one may take
VARIANTS = (
    Variant(32),
    Variant(64),
    Variant(32, narrow=False),
    Variant(32, recorded=False),
    Variant(128),
    Variant(64, crop=64),
    Variant(32, compiled=True, attention="sdpa", most=200),
    Variant(32, compiled=True, most=200),
)


HIDDEN = -1e4
"""Logit of a masked key: more would leave no digits to the sum of a row that has no key, in its gradient."""


def examples(config: Config, batch: int, crop: int, device: torch.device) -> tuple[dict[str, Tensor], Labels]:
    """Random proteins of half to all of the crop's length, padded."""
    g = torch.Generator().manual_seed(0)
    clusters, extra = config.data.msa_clusters, config.data.extra_msa
    lengths = torch.randint(crop // 2, crop + 1, (batch, 1), generator=g)
    mask = (torch.arange(crop) < lengths).float()
    aatype = torch.randint(0, 20, (batch, crop), generator=g)
    rows = (torch.rand(batch, clusters, 1, generator=g) > 0.3).float()
    more = (torch.rand(batch, extra, 1, generator=g) > 0.5).float()
    features = {
        "aatype": aatype,
        "residue_index": torch.arange(crop).repeat(batch, 1),
        "seq_mask": mask,
        "target_feat": F.one_hot(aatype + 1, 22).float(),
        "msa_feat": torch.rand(batch, clusters, crop, 49, generator=g),
        "msa_mask": rows * mask[:, None],
        "extra_msa": torch.randint(0, 22, (batch, extra, crop), generator=g),
        "extra_has_deletion": (torch.rand(batch, extra, crop, generator=g) > 0.9).float(),
        "extra_deletion_value": torch.rand(batch, extra, crop, generator=g),
        "extra_msa_mask": more * mask[:, None],
    }
    chain = 2.0 * torch.randn(batch, crop, 1, 3, generator=g).cumsum(1)
    atoms = torch.as_tensor(residues.ATOM37_MASK).float()[aatype]
    positions = chain + torch.randn(batch, crop, 37, 3, generator=g)
    of_msa = torch.randint(0, 21, (batch, clusters, crop), generator=g)
    guessed = (torch.rand(batch, clusters, crop, generator=g) > 0.85).float()
    numbers = torch.full((batch,), 2.0), torch.ones(batch)
    known = label(aatype, features["residue_index"], mask, positions, atoms, *numbers, of_msa, guessed)
    return {name: x.to(device) for name, x in features.items()}, step.moved(known, device)


def sdpa(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gated attention by PyTorch's, protein and head together as its batch: so the bias is not copied for each row.

    Where a bias is given, rows hide the keys that their first row hides: true of padding.
    """
    batch, rows, n, heads, c = q.shape
    if bias is None:
        q, k, v = (x.transpose(-2, -3).flatten(0, 1) for x in (q, k, v))
        hidden = ((mask == 0).to(q.dtype) * HIDDEN).flatten(0, 1)[:, None, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=hidden.expand(-1, heads, n, -1))
        out = out.unflatten(0, (batch, rows)).transpose(-2, -3)
    else:
        q, k, v = (x.permute(0, 3, 1, 2, 4).reshape(batch * heads, rows, n, c) for x in (q, k, v))
        hidden = ((mask[:, :1] == 0).to(q.dtype) * HIDDEN)[:, :, None]
        shared = (bias + hidden).flatten(0, 1).unsqueeze(1).expand(-1, rows, -1, -1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=shared)
        out = out.unflatten(0, (batch, heads)).permute(0, 2, 3, 1, 4)
    return (out * gate.sigmoid()).flatten(-2)


def measure(variant: Variant, device: torch.device, profiled: bool = False) -> dict[str, object]:
    torch._dynamo.reset()
    config, weights = PRESETS["demo"], Loss()
    torch.manual_seed(0)
    network = AlphaFold(config.model).to(device).to_precision(torch.bfloat16).train()
    features, known = examples(config, variant.batch, variant.crop, device)
    if not variant.narrow:
        narrow.WIDEST = 0
    if variant.compiled:
        if variant.attention == "sdpa":
            ops.gated_attention.reference = sdpa  # type: ignore[assignment]
        step.compile_blocks(network)
    run: Callable[..., object] = lambda passes: step.gradients(network, passes, known, weights)  # noqa: E731
    if variant.recorded:
        recorded = step.Recorded(network, weights)
        run = lambda passes: recorded(passes, known)  # noqa: E731
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for recycles in (1, 0, 1):
        losses = run([features] * (recycles + 1))
    torch.cuda.synchronize()
    ready = time.perf_counter() - start
    last, both = (seconds(lambda n=n: run([features] * n)) for n in (1, 2))
    mean = last + 1.5 * (both - last)  # recycles are 0 to 3
    finite = bool(losses.total.isfinite().all())
    gradient = sum(float(p.grad.float().square().sum()) for p in network.parameters() if p.grad is not None)
    found = {
        "variant": str(variant),
        "batch": variant.batch,
        "crop": variant.crop,
        "ready_s": ready,
        "last_pass_ms": 1e3 * last,
        "recycling_pass_ms": 1e3 * (both - last),
        "samples_per_s": variant.batch / mean,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
        "loss": float(losses.total.mean()),
        "finite": finite and gradient < float("inf"),
    }
    if profiled:
        one = kernels(lambda: run([features]))
        found["kernels"] = {
            "last pass": one,
            "recycling pass": difference(kernels(lambda: run([features] * 2)), one),
        }
    return found


def difference(both: list[dict[str, Any]], one: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is in `both` beside `one`."""
    known = {row["kernel"]: row for row in one}
    rest = []
    for row in both:
        other = known.get(row["kernel"], {"ms": 0.0, "calls": 0})
        if row["calls"] > other["calls"]:
            rest.append(row | {"ms": row["ms"] - other["ms"], "calls": row["calls"] - other["calls"]})
    return sorted(rest, key=lambda row: -row["ms"])


def seconds(call: Callable[[], object], least: float = 1.0) -> float:
    """Of a call, the best of three means."""
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    number = max(2, int(least / 3 / (time.perf_counter() - start)))
    means = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(number):
            call()
        torch.cuda.synchronize()
        means.append((time.perf_counter() - start) / number)
    return min(means)


def kernels(call: Callable[[], object]) -> list[dict[str, Any]]:
    """What takes the device's time in a call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    averages = sorted(profile.key_averages(), key=lambda e: -e.self_device_time_total)
    return [{"kernel": e.key, "ms": e.self_device_time_total / 1e3, "calls": e.count} for e in averages]


def one(number: int, profiled: bool) -> None:
    """Measure one variant and print it as JSON: in a process of its own, which may be ended."""
    torch._dynamo.config.recompile_limit = 64
    print(json.dumps(measure(VARIANTS[number], torch.device("cuda"), profiled)))


def told(number: int, profiled: bool, seconds: float) -> dict[str, Any]:
    """What a process of its own measures of a variant in so many seconds."""
    command = [sys.executable, __file__, "--one", str(number), *(["--profile"] if profiled else [])]
    variant = {"variant": str(VARIANTS[number])}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return variant | {"error": f"it took more than {seconds:.0f} s"}
    if done.returncode:
        return variant | {"error": done.stderr[-2000:]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def show(found: dict[str, Any], most: int = 25) -> None:
    if "error" in found:
        print(f"{found['variant']}: {found['error']}", flush=True)
        return
    print(
        f"{found['ready_s']:8.1f}{found['last_pass_ms']:9.2f}{found['recycling_pass_ms']:11.2f}"
        f"{found['samples_per_s']:10.1f}{found['reserved_gib']:7.1f}{found['loss']:9.3f}  {found['variant']}"
        f"{'' if found['finite'] else '  NOT FINITE'}",
        flush=True,
    )
    for name, rows in found.get("kernels", {}).items():
        print(f"    {name}: {sum(r['calls'] for r in rows)} kernels, {sum(r['ms'] for r in rows):.2f} ms")
        for row in rows[:most]:
            print(f"    {row['ms']:9.3f} ms {row['calls']:5}  {row['kernel'][:110]}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=100, help="all together")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of variants, from 0")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--profile", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one is not None:
        one(options.one, options.profile)
        return
    began, results = time.perf_counter(), []
    chosen = options.only if options.only else range(len(VARIANTS))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    print(f"{'ready s':>8}{'last ms':>9}{'recycle ms':>11}{'samples/s':>10}{'GiB':>7}{'loss':>9}  variant")
    for place, number in enumerate(chosen):
        left = options.seconds - (time.perf_counter() - began)
        if left < 10:
            print(f"not begun: {VARIANTS[number]}")
            continue
        found = told(number, place in (0, 2), min(left, VARIANTS[number].most))
        show(found)
        results.append(found)
        if options.out is not None:
            about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
            options.out.write_text(json.dumps(about | {"variants": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()

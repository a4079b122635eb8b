"""What a prediction of some length would take on a device that need not be here: the `plan` command."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from math import prod

from axfold import console
from axfold.config import Config, Model
from axfold.errors import InputError
from axfold.memory.budget import parse_bytes, written
from axfold.memory.costs import KERNELS, Sizes
from axfold.memory.plan import TIERS, DoesNotFit, Plan, max_length, plan
from axfold.options import DEFAULT_MODEL, configured, one_of
from axfold.weights.names import parameters

ITEMSIZE = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}
CPU_FEATURES = (49 * 4, 3 * 4)  # bytes of an element of the MSA's and of the extra MSA's features
DRIVER = 600 << 20  # bytes of a GPU's memory that the driver takes for a process


@dataclass(frozen=True)
class Forecast:
    """A plan, what it is for, and the longest proteins for that memory: {precision: {tier: residues}}.

    budget: bytes that PyTorch may use
    """

    model: str
    precision: str
    sizes: Sizes
    budget: int
    plan: Plan
    max_length: dict[str, dict[str, int]]


def sizes_for(
    config: Config,
    residues: int,
    precision: str,
    *,
    clusters: int | None = None,
    extra: int | None = None,
    templates: int = 0,
    on_gpu: bool = True,
) -> Sizes:
    """Sizes of a pass; None is as many rows of the MSA as `config` takes. A GPU is one whose kernels run."""
    limit = max(config.data.msa_clusters - config.data.templates, 1)
    return Sizes(
        residues=residues,
        clusters=limit if clusters is None else min(clusters, limit),
        extra=max(config.data.extra_msa if extra is None else min(extra, config.data.extra_msa), 1),
        templates=templates,
        model=config.model,
        itemsize=ITEMSIZE[precision],
        weights=_weights(config.model, precision),
        ensembles=config.ensembles,
        on_gpu=on_gpu,
        kernels=KERNELS if on_gpu else frozenset(),
        msa_features=(0, 0) if on_gpu else CPU_FEATURES,
    )


@cache
def _weights(model: Model, precision: str) -> int:
    """Bytes of a model's parameters."""
    wide = ("structure.", "heads.confidence.")  # at least float32
    return sum(
        prod(piece.shape) * (4 if name.startswith(wide) else ITEMSIZE[precision])
        for name, pieces in parameters(model).items()
        for piece in pieces
    )


def forecast(
    length: int,
    memory: str,
    *,
    model: str = DEFAULT_MODEL,
    precision: str = "bf16",
    max_msa: str | None = None,
    templates: int = 0,
    ensembles: int | None = None,
    device: str = "cuda",
) -> Forecast:
    """The plan for a protein of `length` residues in `memory` ("80GB").

    max_msa: as of `options.configured`; device: "cpu", "cuda", or a GPU's name, by which the time is guessed

    Raises InputError, and DoesNotFit where there is no plan.
    """
    config = configured(model, max_msa=max_msa, ensembles=ensembles)
    one_of("--precision", precision, tuple(ITEMSIZE))
    if length < 1:
        raise InputError(f"--length {length}: give the number of residues, 1 or more.")
    if templates < 0 or templates > config.data.templates:
        most = config.data.templates
        takes = f"{model} takes 0 to {most}" if most else f"{model} takes none; model_1 and model_2 do"
        raise InputError(f"--templates {templates}: {takes}.")
    total = parse_bytes(memory, "--memory")
    on_gpu = device != "cpu"
    budget = total - DRIVER if on_gpu else total
    if budget <= 0:
        raise DoesNotFit(f"--memory {memory}: a GPU's driver takes about {written(DRIVER)} alone; give more.")
    shown = dict.fromkeys(("fp32", "bf16", precision))  # tf32 takes what fp32 does
    sizes = {name: sizes_for(config, length, name, templates=templates, on_gpu=on_gpu) for name in shown}
    found = plan(sizes[precision], budget, device=device, cores=os.cpu_count() or 1)
    longest = {
        name: {tier: max_length(of, budget, tier=tier) for tier in (TIERS if on_gpu else ("cpu",))}
        for name, of in sizes.items()
    }
    return Forecast(model, precision, sizes[precision], budget, found, longest)


def as_json(found: Forecast) -> str:
    """The forecast as a JSON object."""
    chosen, sizes = found.plan, found.sizes
    return json.dumps(
        {
            "model": found.model,
            "precision": found.precision,
            "length": sizes.residues,
            "clusters": sizes.clusters,
            "extra": sizes.extra,
            "templates": sizes.templates,
            "memory_bytes": found.budget,
            "tier": chosen.tier,
            "peak_device_bytes": chosen.peak_device_bytes,
            "peak_host_bytes": chosen.peak_host_bytes,
            "seconds": chosen.seconds,
            "on_host": sorted(chosen.host),
            "kept_rows": chosen.kept,
            "handovers": sorted(chosen.handovers),
            "lent_rows": chosen.lent,
            "blocks": dict(chosen.blocks),
            "wider_blocks_of_evoformer": dict(chosen.wider),
            "context_bytes": chosen.context_bytes,
            "peak_stage": chosen.stage,
            "parts": dict(chosen.parts),
            "host_parts": dict(chosen.host_parts),
            "max_length": found.max_length,
        },
        indent=1,
    )


def as_text(found: Forecast) -> str:
    """The forecast for people."""
    chosen, sizes = found.plan, found.sizes
    rows = f"{sizes.clusters} clusters, {sizes.extra} extra sequences" + (
        f", {sizes.templates} templates" if sizes.templates else ""
    )
    largest = sorted(chosen.parts.items(), key=lambda part: -part[1])
    paragraphs = [
        f"{sizes.residues} residues, {rows}, {found.model}, {found.precision}\n{line(chosen, found.budget)}"
        + kept(chosen, sizes.residues),
        f"At the peak ({chosen.stage}):\n"
        + console.columns([(f"  {name}", written(size)) for name, size in largest if size]),
        "Rows at once:\n"
        + console.columns(
            [(f"  {stage}", str(rows)) for stage, rows in sorted(chosen.blocks.items())]
            + [(f"  {stage}, Evoformer", str(rows)) for stage, rows in sorted(chosen.wider.items())]
        ),
        "Longest protein for this memory:\n"
        + console.columns(
            [("  tier", *found.max_length)]
            + [
                (f"  {tier}", *(str(lengths[tier]) for lengths in found.max_length.values()))
                for tier in found.max_length[found.precision]
            ]
        ),
    ]
    return "\n\n".join(paragraphs)


def line(chosen: Plan, budget: int) -> str:
    """A plan in a line: what `axfold predict` says before it starts."""
    return (
        f"tier {chosen.tier}: at most {written(chosen.peak_device_bytes)} of the {written(budget)} that can be used, "
        f"{written(chosen.peak_host_bytes)} of host memory, about {duration(chosen.seconds)} a pass"
    )


def kept(chosen: Plan, residues: int) -> str:
    """A line more where the pair representation lives on the host, as the paragraph's end."""
    if "pair" not in chosen.host:
        return ""
    return f"\nOf {residues:,} rows of the pair representation {chosen.kept:,} stay on the device."


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, in two digits."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{seconds:.2g} s"

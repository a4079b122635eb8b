"""Where representations live and how many rows go at once: all policy of the memory is here, as plain arithmetic.

Nothing is imported that computes, so that a plan costs milliseconds and needs no device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from axfold.errors import AxfoldError
from axfold.memory.budget import written
from axfold.memory.costs import MSA_FEATURES, Cost, Sizes, costs, representations
from axfold.memory.rates import Rates, rates_of

STAGING = 3  # blocks of an operand on the device at once (memory.host.STAGES)
CUBLAS = 32 << 20  # workspace that PyTorch gives cuBLAS on Hopper; 8 MiB on others
MARGIN = 0.03  # of the budget that is left alone: what the allocator rounds and cannot join
PROCESS = 2 << 30  # host memory of a process with PyTorch and CUDA
ENOUGH = 1 << 17  # elements (residue pairs or the like) of a block with which a GPU is busy
ENOUGH_CPU = 1 << 12  # small enough to stay in the cache
_STAGED = tuple((1 << 30) >> power for power in range(21))  # bytes of a block that passes through the device

PAIR = frozenset({"pair", "template", "attention to templates"})
EXTRA = frozenset({"extra MSA"})


class DoesNotFit(AxfoldError):
    """No plan fits into the memory."""

    exit_code = 3


@dataclass(frozen=True)
class Setup:
    """Where representations live. tier: what people call it; rest: are the MSA representations on the host while
    nothing reads them? host: representations that pass through the device row by row."""

    tier: str
    rest: bool = False
    host: frozenset[str] = frozenset()


SETUPS = (
    Setup("resident"),
    Setup("lean", rest=True),
    Setup("lean", rest=True, host=EXTRA),
    Setup("offload", host=PAIR),
    Setup("offload", rest=True, host=PAIR),
    Setup("offload", rest=True, host=PAIR | EXTRA),
)
CPU = Setup("cpu")
TIERS = ("resident", "lean", "offload")


@dataclass(frozen=True)
class Plan:
    """How a pass is run, and what that takes.

    tier: "resident" (everything on the device), "lean" (MSA representations on the host while they are idle, the
        extra MSA's perhaps always), "offload" (the pair representation on the host too) or "cpu"
    rest: give EvoformerBlocks a bus to rest their MSA on; host: representations that live on the host
    blocks: rows at once of every stage
    stage: where the peak is, and `parts` what it consists of; host_parts: the same of the host's memory
    peaks: bytes of the device at the peak of each stage, by "stack: stage"
    seconds: of a pass, roughly
    """

    tier: str
    rest: bool
    host: frozenset[str]
    blocks: Mapping[str, int]
    stage: str
    parts: Mapping[str, int]
    host_parts: Mapping[str, int]
    peaks: Mapping[str, int]
    seconds: float

    @property
    def peak_device_bytes(self) -> int:
        """That PyTorch's allocator will have given out; without the driver's own context."""
        return sum(self.parts.values())

    @property
    def peak_host_bytes(self) -> int:
        return sum(self.host_parts.values())


def plan(
    sizes: Sizes,
    budget_bytes: int,
    *,
    host_bytes: int | None = None,
    device: str = "",
    cores: int = 1,
    leaner_than: Plan | None = None,
    tier: str | None = None,
    full: bool = False,
) -> Plan:
    """The fastest plan within `budget_bytes` of the device (what its allocator may give out) and `host_bytes`.

    device: a GPU's name, for the seconds; on a CPU the budget is the machine's memory
    leaner_than: a plan whose memory did not suffice; the one returned needs at least a tenth less
    tier: only this one; full: use the whole budget, without a margin

    Raises DoesNotFit, which names the longest protein that would fit.
    """
    usable = int(budget_bytes * (1 if full else 1 - MARGIN))
    if leaner_than is not None:
        usable = min(usable, int(0.9 * leaner_than.peak_device_bytes))
    rates = rates_of(device if sizes.on_gpu else "cpu", cores)
    fitting = [
        found
        for setup in _setups(sizes, tier)
        if (found := _fit(sizes, setup, usable, rates)) is not None
        and (host_bytes is None or not sizes.on_gpu or found.peak_host_bytes <= host_bytes)
    ]
    if not fitting:
        raise _too_long(sizes, usable, host_bytes, tier)
    return min(fitting, key=lambda found: found.seconds)


def with_blocks(sizes: Sizes, setup: Setup, rows: int | None) -> Plan:
    """The plan of a setup with so many rows at once in every stage, or all of them: for tests and experiments."""
    stages = costs(sizes)
    blocks: dict[str, int] = {}
    for cost in stages:
        all_rows = max(cost.rows, cost.source_rows, blocks.get(cost.stage, 0))
        blocks[cost.stage] = rows or all_rows
    return _made(sizes, setup, stages, blocks, rates_of("" if sizes.on_gpu else "cpu"))


def max_length(
    sizes: Sizes, budget_bytes: int, *, tier: str | None = None, host_bytes: int | None = None
) -> int:
    """Residues of the longest protein that fits, with the other sizes as they are; 0 if none does."""
    usable = int(budget_bytes * (1 - MARGIN))
    setups = _setups(sizes, tier)

    def fits(n: int) -> bool:
        longer = replace(sizes, residues=n)
        return any(_least(longer, setup, host_bytes) <= usable for setup in setups)

    low, high = 0, 1
    while high < 1 << 17 and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _setups(sizes: Sizes, tier: str | None) -> tuple[Setup, ...]:
    if not sizes.on_gpu and tier in (None, "cpu", "resident"):
        return (CPU,)
    return tuple(setup for setup in SETUPS if tier in (None, setup.tier))


def _least(sizes: Sizes, setup: Setup, host_bytes: int | None) -> float:
    """Bytes of the device with which a setup runs, one row at a time; infinite where the host's do not suffice."""
    if host_bytes is not None and sizes.on_gpu and sum(_on_host(sizes, setup).values()) > host_bytes:
        return float("inf")
    stages = costs(sizes)
    blocks = {cost.stage: 1 for cost in stages}
    staged = _staging(sizes, stages, setup, blocks)
    return max(sum(_parts(sizes, setup, cost, 1, staged).values()) for cost in stages if cost.calls)


def _fit(sizes: Sizes, setup: Setup, usable: int, rates: Rates) -> Plan | None:
    """The fastest blocks for a setup, or None where not even one row fits."""
    stages = costs(sizes)
    streaming, passing = bool(setup.host), _passing(sizes, setup)
    best: Plan | None = None
    for staged in _STAGED if streaming else (0,):
        blocks = {cost.stage: _wanted(sizes, stages, cost.stage, rates) for cost in stages}
        if streaming:
            for cost in stages:
                for name, size in (*cost.streams, *cost.sources):
                    if name in passing and size:
                        blocks[cost.stage] = max(min(blocks[cost.stage], staged // size), 1)
        staging = _staging(sizes, stages, setup, blocks)
        for cost in (cost for cost in stages if cost.calls):
            blocks[cost.stage] = min(blocks[cost.stage], _affordable(sizes, setup, cost, usable, staging))
        if min(blocks.values()) < 1:
            continue
        found = _made(sizes, setup, stages, blocks, rates)
        if best is None or found.seconds < best.seconds:
            best = found
    return best


def _wanted(sizes: Sizes, stages: tuple[Cost, ...], stage: str, rates: Rates) -> int:
    """Rows with which a stage runs about as fast as it can."""
    same = [cost for cost in stages if cost.stage == stage]
    if sizes.kernels and not any(cost.update or cost.prepare for cost in same):  # more rows cost nothing
        return max(max(cost.rows for cost in same), 1)
    enough = ENOUGH if sizes.on_gpu else ENOUGH_CPU
    rows = -(-enough // sizes.residues)
    if stage == "triangle multiplication":
        rows = max(rows, min(rates.full, 120 + sizes.residues // 32))  # nearly full speed, in a third of U
    if stage == "outer product mean":  # 32 x 32 numbers of each element are made: work enough for fewer
        rows = -(-rows // 2)
    if stage in ("MSA column attention", "global column attention"):
        depth = max(sizes.sequences if stage.startswith("MSA") else sizes.extra, 1)
        rows = -(-enough // depth)
    return max(min(rows, max(cost.rows for cost in same)), 1)


def _affordable(sizes: Sizes, setup: Setup, cost: Cost, usable: int, staging: int) -> int:
    """Rows of a block for which there is room: the largest number whose peak is within `usable`."""
    low, high = 0, max(cost.rows, cost.source_rows, 1)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(_parts(sizes, setup, cost, middle, staging).values()) <= usable:
            low = middle
        else:
            high = middle - 1
    return low


def _parts(sizes: Sizes, setup: Setup, cost: Cost, block: int, staging: int) -> dict[str, int]:
    """What is on the device at a stage's peak."""
    held = representations(sizes)
    resting = ("MSA", "extra MSA") if setup.rest and cost.idle and sizes.on_gpu else ()
    away = (*setup.host, *resting, *(("other samples",) if "pair" in setup.host else ()))
    alive = ("weights", "features", "recycled", "other samples", *cost.alive)
    parts = {name: held[name] for name in alive if name not in away and held.get(name)}
    if sizes.on_gpu:
        parts["cuBLAS workspace"] = CUBLAS
    if staging:
        parts["blocks that come and go"] = staging
    rows, source_rows = min(block, cost.rows), min(block, cost.source_rows)
    streamed = any(name in setup.host for name, _ in cost.sources)
    at_once = block >= cost.source_rows and not streamed  # then the context is what `prepare` made
    copied = cost.copied if sizes.on_gpu and (at_once or sizes.residues % 8) else 0
    moments = (
        {"context": 0 if at_once else cost.context, "workspace": source_rows * cost.prepare},
        {"context": cost.context + copied, "workspace": rows * cost.update + cost.whole},
        {"context": 0, "workspace": cost.after},
    )
    return parts | max(moments, key=lambda moment: sum(moment.values()))


def _passing(sizes: Sizes, setup: Setup) -> frozenset[str]:
    """What comes through the bus: where there is one, the features that stay on the host do too."""
    features = bool(setup.host) and sizes.on_gpu and not any(sizes.msa_features)
    return setup.host | (frozenset({MSA_FEATURES}) if features else frozenset())


def _staging(sizes: Sizes, stages: tuple[Cost, ...], setup: Setup, blocks: Mapping[str, int]) -> int:
    """Bytes of the buffers through which blocks pass: they are kept, each as large as the largest that used it."""
    largest: dict[tuple[int, int], int] = {}
    passing = _passing(sizes, setup)
    for cost in stages if setup.host else ():
        for rows, operands in ((cost.rows, cost.streams), (cost.source_rows, cost.sources)):
            if not rows or not any(name in passing for name, _ in operands):
                continue
            block = min(blocks[cost.stage], rows)
            for operand, (name, size) in enumerate(operands):
                for stage in range(min(STAGING, -(-rows // block))):
                    if name in passing:
                        largest[operand, stage] = max(largest.get((operand, stage), 0), block * size)
    return sum(largest.values())


def _on_host(sizes: Sizes, setup: Setup) -> dict[str, int]:
    """What is in the host's memory."""
    if not sizes.on_gpu:
        return {}
    held = representations(sizes)
    parts = {"process": PROCESS} | {name: held[name] for name in sorted(setup.host) if held.get(name)}
    if "pair" in setup.host and held["other samples"]:
        parts["other samples"] = held["other samples"]
    if setup.rest:
        names = [name for name in ("MSA", "extra MSA") if name not in setup.host]
        parts["resting"] = max(held[name] for name in names)
    n = sizes.residues
    parts["features"] = 2 * n * (200 * sizes.clusters + 16 * sizes.extra)  # of this pass and the next
    parts["results"] = 3 * n * n * 4  # the aligned error, and what is made of it to be written
    return parts


def _made(
    sizes: Sizes, setup: Setup, stages: tuple[Cost, ...], blocks: Mapping[str, int], rates: Rates
) -> Plan:
    staging = _staging(sizes, stages, setup, blocks)
    peaks = [(_parts(sizes, setup, cost, blocks[cost.stage], staging), cost) for cost in stages if cost.calls]
    parts, cost = max(peaks, key=lambda peak: sum(peak[0].values()))
    by_stage: dict[str, int] = {}
    for needed, at in peaks:
        name = f"{at.stack}: {at.stage}"
        by_stage[name] = max(by_stage.get(name, 0), sum(needed.values()))
    host_parts = _on_host(sizes, setup) or {"process": PROCESS} | parts
    return Plan(
        tier=setup.tier,
        rest=setup.rest,
        host=setup.host,
        blocks=dict(blocks),
        stage=f"{cost.stack}: {cost.stage}",
        parts=parts,
        host_parts=host_parts,
        peaks=by_stage,
        seconds=sizes.ensembles
        * sum(_seconds(sizes, setup, cost, blocks[cost.stage], rates) for cost in stages),
    )


_LAUNCHES = 20  # operations that a block starts
_PASSES = 2.5  # times that a byte of the workspace is written or read


def _seconds(sizes: Sizes, setup: Setup, cost: Cost, block: int, rates: Rates) -> float:
    """Of all calls in a pass."""
    if not cost.calls or not cost.rows:
        return 0.0
    wide = sizes.itemsize >= 4 or cost.stack == "structure"
    speed, attending = rates.speeds(wide, sizes.kernels)
    if cost.stage == "triangle multiplication":
        speed *= min(1.0, block / rates.full)
    moved = cost.rows * cost.update + cost.source_rows * cost.prepare
    work = cost.products / speed + cost.attention / attending + _PASSES * moved / rates.memory
    blocks = -(-cost.rows // block) + (-(-cost.source_rows // block) if cost.source_rows else 0)
    launched = max(work, blocks * _LAUNCHES * rates.launch)
    bus = sum(rows * size for rows, operands in ((cost.rows, cost.streams), (cost.source_rows, cost.sources))
              for name, size in operands if name in setup.host)  # fmt: skip
    transferred = bus / rates.bus + (blocks * 60e-6 if bus else 0.0)  # each way at once
    if setup.rest and cost.stage == "triangle multiplication" and cost.idle:  # out and back, once a block
        name = cost.alive[-1]
        launched += 0 if name in setup.host else representations(sizes)[name] / rates.bus / 2 * 2
    return cost.calls * max(launched, transferred)


def _too_long(sizes: Sizes, usable: int, host_bytes: int | None, tier: str | None) -> DoesNotFit:
    setup = _setups(sizes, tier)[-1]
    stages = costs(sizes)
    staging = _staging(sizes, stages, setup, {cost.stage: 1 for cost in stages})
    parts, cost = max(
        ((_parts(sizes, setup, cost, 1, staging), cost) for cost in stages if cost.calls),
        key=lambda need: sum(need[0].values()),
    )
    longest = max_length(sizes, round(usable / (1 - MARGIN)), tier=tier, host_bytes=host_bytes)
    n = sizes.residues
    need = sum(parts.values())
    if need <= usable:  # so it is the host
        parts = _on_host(sizes, setup)
        return DoesNotFit(
            f"{n} residues need {written(sum(parts.values()))} of host memory beside the device's "
            f"({written(parts.get('pair', 0))} for the pair representation), and there are {written(host_bytes or 0)}; "
            f"{_advice(longest)}"
        )
    one = parts["workspace"] + parts["context"] + parts.get("blocks that come and go", 0)
    left = usable - (need - one)
    beside = (
        f"{written(left)} are left beside the {written(need - one)} that stay there"
        if left > 0
        else f"the {written(need - one)} that stay there already exceed the {written(usable)} that there are"
    )
    return DoesNotFit(
        f"{cost.stage} ({cost.stack}) needs {written(one)} for one row of {n} residues, and {beside}; "
        f"{_advice(longest)}"
    )


def _advice(longest: int) -> str:
    if not longest:
        return "no protein fits. Give more memory."
    return (
        f"{longest} residues are the most that fit. Use fewer rows of the MSA, as in --max-msa 64:128, "
        "--precision bf16, or more memory."
    )

"""Where representations live and how many rows go at once: all policy of the memory is here, as plain arithmetic.

Nothing is imported that computes, so that a plan costs milliseconds and needs no device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from axfold.errors import AxfoldError
from axfold.memory.budget import written
from axfold.memory.costs import MSA_FEATURES, WIDE, Cost, Sizes, costs, representations
from axfold.memory.rates import Rates, rates_of

_STAGED = "blocks that come and go"
STAGING = 3  # blocks of an operand on the device at once (memory.host.STAGES)
CUBLAS = 32 << 20  # workspace that PyTorch gives cuBLAS on Hopper; 8 MiB on others
MARGIN = 0.03  # of the budget that is left alone: what the allocator rounds and cannot join
RESULT = (
    24  # bytes of the aligned error of two residues, and of the text that it is written as, and read from
)
PROCESS = 2 << 30  # host memory of a process with PyTorch and CUDA
ENOUGH = 1 << 17  # elements (residue pairs or the like) of a block with which a GPU is busy
MOST = 1 << 20  # with which all of it is: more make nothing faster
ENOUGH_CPU = 1 << 12  # small enough to stay in the cache
ENOUGH_ROWS = 1024  # of a kernel whose programs take a whole row each

MULTIPLICATION = "triangle multiplication"
WIDEST = 8  # tiles of a product's rows at once: it reads the whole other operand for each block
REREADING = "invariant point attention"  # each of whose calls in a pass reads the same pair

PAIR = frozenset({"pair", "template", "attention to templates"})
EXTRA = frozenset({"extra MSA"})
CONTEXT = 128 << 20  # bytes of the outer product mean's context at once: half of an extra MSA else


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
ROOMY = 4  # times what a plan needs
TIERS = ("resident", "lean", "offload")


@dataclass(frozen=True)
class Plan:
    """How a pass is run, and what that takes.

    tier: "resident" (everything on the device), "lean" (MSA representations on the host while they are idle, the
        extra MSA's perhaps always), "offload" (the pair representation on the host too) or "cpu"
    rest: give EvoformerBlocks a bus to rest their MSA on; host: representations that live on the host
    blocks: rows at once of every stage; wider: of a stage in the Evoformer, where there is room for more
    direct: stages whose contexts are made of all rows at once
    kept: leading rows of a pair representation on the host that stay on the device all the same
    handovers: (a stage, the next one): where the pair is on the host, the next one's context is made from the rows
        that the update before leaves on the device, or its update by element is done on them, so that they come once
        for both
    lent: rows of a pair on the host, beside those that stay, that are on the device while the structure module
        reads it again and again
    context_bytes: of the outer product mean's context at once; None is all of it
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
    wider: Mapping[str, int] = field(default_factory=dict)
    direct: frozenset[str] = frozenset()
    kept: int = 0
    handovers: frozenset[tuple[str, str]] = frozenset()
    context_bytes: int | None = None
    lent: int = 0

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
    kept: int | None = None,
) -> Plan:
    """The fastest plan within `budget_bytes` of the device (what its allocator may give out) and `host_bytes`.

    device: a GPU's name, for the seconds; on a CPU the budget is the machine's memory
    leaner_than: a plan whose memory did not suffice; the one returned needs at least a tenth less
    tier: only this one; full: use the whole budget, without a margin
    kept: rows of a pair on the host that stay on the device, 0 for a pair that is wholly on the host; else as many
        as there is room for

    Raises DoesNotFit, which names the longest protein that would fit.
    """
    usable = int(budget_bytes * (1 if full else 1 - MARGIN))
    if leaner_than is not None:
        usable = min(usable, int(0.9 * leaner_than.peak_device_bytes))
    rates = rates_of(device if sizes.on_gpu else "cpu", cores)
    if sizes.on_gpu and tier is None:
        resident = _fit(sizes, SETUPS[0], usable, rates, kept)
        # nothing is faster where all is on the device with room to spare: a small protein is folded before all
        # others have been looked at
        roomy = resident is not None and ROOMY * resident.peak_device_bytes <= usable
        if resident is not None and roomy and (host_bytes is None or resident.peak_host_bytes <= host_bytes):
            return resident
    fitting = [
        found
        for setup in _setups(sizes, tier)
        if (found := _fit(sizes, setup, usable, rates, kept)) is not None
        and (host_bytes is None or not sizes.on_gpu or found.peak_host_bytes <= host_bytes)
    ]
    if not fitting:
        raise _too_long(sizes, usable, host_bytes, tier)
    return min(fitting, key=lambda found: found.seconds)


def with_blocks(
    sizes: Sizes,
    setup: Setup,
    rows: int | None,
    *,
    kept: int = 0,
    handovers: bool = False,
    context_bytes: int | None = None,
) -> Plan:
    """The plan of a setup with so many rows at once in every stage, or all of them: for tests and experiments.

    kept: of a pair on the host; handovers: all that are possible, or none; context_bytes: as in `Plan`
    """
    stages = costs(replace(sizes, context_bytes=context_bytes))
    blocks: dict[str, int] = {}
    for cost in stages:
        all_rows = max(cost.rows, cost.source_rows, blocks.get(cost.stage, 0))
        blocks[cost.stage] = rows or all_rows
    pairs = frozenset(_handovers(setup, stages)) if handovers else frozenset()
    kept = min(kept, sizes.residues) if "pair" in setup.host else 0
    made = _made(sizes, setup, stages, blocks, rates_of("" if sizes.on_gpu else "cpu"), kept, pairs)
    return replace(made, context_bytes=context_bytes)


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


def _stages(sizes: Sizes, setup: Setup) -> tuple[Cost, ...]:
    """What the stages need; contexts are made in parts where they and what they serve are on the device."""
    return costs(replace(sizes, context_bytes=_context_bytes(setup)))


def _context_bytes(setup: Setup) -> int | None:
    return None if setup.host else CONTEXT


def _setups(sizes: Sizes, tier: str | None) -> tuple[Setup, ...]:
    if not sizes.on_gpu and tier in (None, "cpu", "resident"):
        return (CPU,)
    return tuple(setup for setup in SETUPS if tier in (None, setup.tier))


def _least(sizes: Sizes, setup: Setup, host_bytes: int | None) -> float:
    """Bytes of the device with which a setup runs, one row at a time; infinite where the host's do not suffice."""
    if host_bytes is not None and sizes.on_gpu and sum(_on_host(sizes, setup).values()) > host_bytes:
        return float("inf")
    stages = _stages(sizes, setup)
    return max(sum(_parts(sizes, setup, cost, 1).values()) for cost in stages if cost.calls)


def _fit(sizes: Sizes, setup: Setup, usable: int, rates: Rates, kept: int | None) -> Plan | None:
    """The fastest plan of a setup, or None where not even one row fits."""
    stages = _stages(sizes, setup)
    blocks = {cost.stage: _wanted(sizes, stages, cost.stage, rates) for cost in stages}
    row = _row(sizes) if "pair" in setup.host else 0
    stay = (kept or 0) * row
    for cost in (cost for cost in stages if cost.calls):
        rows = min(blocks[cost.stage], _affordable(sizes, setup, cost, usable - stay))
        tile = product_tile(sizes) if cost.stage == MULTIPLICATION and sizes.on_gpu else 1
        blocks[cost.stage] = rows if rows < tile else rows // tile * tile
    if min(blocks.values()) < 1:
        return None
    wider: dict[str, int] = {}
    if sizes.on_gpu and not setup.host:  # blocks that pass through are best small
        blocks = _filled(sizes, setup, stages, blocks)
        wider = _wider(sizes, setup, stages, blocks)
    # rows that stay and contexts that are made ahead compete for what is left: try the smallest contexts first
    peaks = {
        pair: max(sum(_handed_over(sizes, setup, chain, blocks).values()) for chain in several)
        for pair, several in _handovers(setup, stages).items()
    }
    order = sorted(
        (pair for pair, peak in peaks.items() if peak + stay <= usable), key=lambda pair: peaks[pair]
    )
    found = []
    for count in range(len(order) + 1):
        chosen = frozenset(order[:count])
        made = _made(sizes, setup, stages, blocks, rates, kept or 0, chosen, wider)
        if (
            row and kept is None and sizes.ensembles == 1
        ):  # samples are added on the host, where they are whole
            room = min((usable - made.peak_device_bytes) // row, sizes.residues)
            made = _made(sizes, setup, stages, blocks, rates, room, chosen, wider)
        found.append(made)
    return min(found, key=lambda made: made.seconds)


def _wanted(sizes: Sizes, stages: tuple[Cost, ...], stage: str, rates: Rates) -> int:
    """Rows with which a stage runs about as fast as it can."""
    same = [cost for cost in stages if cost.stage == stage]
    if sizes.kernels and not any(cost.update or cost.prepare for cost in same):  # more rows cost nothing
        return max(max(cost.rows for cost in same), 1)
    enough = ENOUGH if sizes.on_gpu else ENOUGH_CPU
    rows = -(-enough // sizes.residues)
    if stage == MULTIPLICATION:
        return min(max(_product_rows(sizes, rates), 1), sizes.residues)
    # 32 x 32 numbers of each element are made, twice without the kernel: work enough for fewer
    if stage == "outer product mean" and "outer_product_mean" not in sizes.kernels:
        rows = -(-rows // 2)
    if stage.replace(" ", "_") in sizes.kernels and stage == "invariant point attention":
        rows = max(rows, ENOUGH_ROWS)
    if stage in ("MSA column attention", "global column attention"):
        if (
            stage.replace(" ", "_") in sizes.kernels
        ):  # a program takes a whole row, which needs next to nothing
            return max(sizes.residues, 1)
        rows = -(-enough // _elements(sizes, stage))
    return max(min(rows, max(cost.rows for cost in same)), 1)


def _filled(
    sizes: Sizes, setup: Setup, stages: tuple[Cost, ...], blocks: Mapping[str, int]
) -> dict[str, int]:
    """The blocks with as many rows as leave the peak where it is: memory that one stage needs serves the others too."""
    called = [cost for cost in stages if cost.calls]
    peak = max(sum(_parts(sizes, setup, cost, blocks[cost.stage]).values()) for cost in called)
    filled = dict(blocks)
    for stage in blocks:
        same = [cost for cost in called if cost.stage == stage]
        if not same or stage == MULTIPLICATION:  # whose rows are those of whole tiles
            continue
        most = max(MOST // max(_elements(sizes, stage), 1), 1)
        rows = min(most, *(_affordable(sizes, setup, cost, peak) for cost in same))
        filled[stage] = max(blocks[stage], min(rows, max(cost.rows for cost in same)))
    return filled


def _wider(sizes: Sizes, setup: Setup, stages: tuple[Cost, ...], blocks: Mapping[str, int]) -> dict[str, int]:
    """Rows of the Evoformer's triangle multiplications where they can be more than elsewhere, at the same peak.

    The extra MSA, which is large, is gone by then. Blocks are whole tiles, and about as large as one another.
    """
    called = [cost for cost in stages if cost.calls]
    peak = max(sum(_parts(sizes, setup, cost, blocks[cost.stage]).values()) for cost in called)
    tile = product_tile(sizes)
    for cost in called:
        if cost.stage == MULTIPLICATION and cost.stack == "Evoformer":
            most = min(_affordable(sizes, setup, cost, peak), WIDEST * tile) // tile * tile
            if most > blocks[cost.stage]:
                count = -(-cost.rows // most)
                return {cost.stage: min(-(-cost.rows // (count * tile)) * tile, most)}
    return {}


def _elements(sizes: Sizes, stage: str) -> int:
    """Of a row: residues, but sequences where the rows are those of residues."""
    if stage in ("MSA column attention", "global column attention"):
        return max(sizes.sequences if stage.startswith("MSA") else sizes.extra, 1)
    return sizes.residues


def product_tile(sizes: Sizes) -> int:
    """Rows of which a block of the triangle multiplication should be a multiple: a GPU's product takes as long for
    one row of a tile as for all."""
    return 64 if sizes.itemsize >= WIDE else 128


def _product_rows(sizes: Sizes, rates: Rates) -> int:
    """Rows with which the triangle multiplication runs at nearly full speed, in little of U."""
    if not sizes.on_gpu:
        return max(-(-ENOUGH_CPU // sizes.residues), min(rates.full, 120 + sizes.residues // 32))
    tile = product_tile(sizes)
    return min(max(round(sizes.residues / 8 / tile) * tile, 2 * tile), 4 * tile)


def _affordable(sizes: Sizes, setup: Setup, cost: Cost, usable: int) -> int:
    """Rows of a block for which there is room: the largest number whose peak is within `usable`."""
    low, high = 0, max(cost.rows, cost.source_rows, 1)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(_parts(sizes, setup, cost, middle).values()) <= usable:
            low = middle
        else:
            high = middle - 1
    return low


def _alive(sizes: Sizes, setup: Setup, names: tuple[str, ...], idle: bool, kept: int) -> dict[str, int]:
    """What is on the device as long as a stage runs."""
    held = representations(sizes)
    resting = ("MSA", "extra MSA") if setup.rest and idle and sizes.on_gpu else ()
    away = (*setup.host, *resting, *(("other samples",) if "pair" in setup.host else ()))
    alive = ("weights", "features", "recycled", "other samples", *names)
    parts = {name: held[name] for name in alive if name not in away and held.get(name)}
    if kept:
        parts["pair"] = kept * (held["pair"] // sizes.residues)
    if sizes.on_gpu:
        parts["cuBLAS workspace"] = CUBLAS
    return parts


def _parts(sizes: Sizes, setup: Setup, cost: Cost, block: int, kept: int = 0) -> dict[str, int]:
    """What is on the device at a stage's peak."""
    rows, source_rows = min(block, cost.rows), min(block, cost.source_rows)
    if cost.direct and not setup.host:
        source_rows = cost.source_rows
    streamed = any(name in setup.host for name, _ in cost.sources)
    at_once = source_rows >= cost.source_rows and not streamed  # then the context is what `prepare` made
    coming = _staging(sizes, setup, cost.source_rows, block, cost.sources)
    moments = (
        {"context": 0 if at_once else cost.context, "workspace": source_rows * cost.prepare, _STAGED: coming},
        {
            "context": cost.context + _copied(sizes, cost, at_once),
            "workspace": rows * cost.update + cost.whole,
            _STAGED: _staging(sizes, setup, cost.rows, block, cost.streams),
        },
        {"context": 0, "workspace": cost.after},
    )
    return _alive(sizes, setup, cost.alive, cost.idle, kept) | max(
        moments, key=lambda moment: sum(moment.values())
    )


def _copied(sizes: Sizes, cost: Cost, at_once: bool) -> int:
    return cost.copied if sizes.on_gpu and (at_once or sizes.residues % 8) else 0


def _handovers(setup: Setup, stages: tuple[Cost, ...]) -> dict[tuple[str, str], list[tuple[Cost, ...]]]:
    """The pairs of stages of which the second may work on the rows that the first one's update leaves on the device,
    each in every stack: as the stages whose rows pass together, one more where the first follows another itself.
    Not where the MSA goes to rest in between: the first one may read it."""
    found: dict[tuple[str, str], list[tuple[Cost, ...]]] = {}
    for after in (cost for cost in stages if cost.calls):
        for before in _before(setup, stages, after):
            chain = next(iter(_before(setup, stages, before)), None) if not before.sources else None
            passing = (before, after) if chain is None else (chain, before, after)
            found.setdefault((before.stage, after.stage), []).append(passing)
    return found


def _before(setup: Setup, stages: tuple[Cost, ...], after: Cost) -> list[Cost]:
    """The stages from whose rows `after` may go on."""
    name = (after.sources or after.streams)[0][0]
    return [
        before
        for before in stages
        if name in setup.host
        and before.stack == after.stack
        and before.stage in after.follows
        and before.streams[0][0] == name
        and not (setup.rest and after.idle and not before.idle)
    ]


def _handed_over(
    sizes: Sizes, setup: Setup, chain: tuple[Cost, ...], blocks: Mapping[str, int], kept: int = 0
) -> dict[str, int]:
    """What is on the device while the rows of the first one's update pass, and all others' work is done on them."""
    before, after = chain[0], chain[-1]
    block = min(blocks[before.stage], before.rows)
    own = before.context + _copied(sizes, before, at_once=False)
    made = after.context if block < before.rows else 0  # the first block is updated before there is a context
    moments = [{"context": own + made, "workspace": block * before.update + before.whole}]
    for cost in chain[1:]:
        part = min(blocks[cost.stage], block)
        moments.append(
            {"context": before.context + after.context, "workspace": part * cost.prepare}
            if cost.sources
            else {"context": before.context + made, "workspace": part * cost.update}
        )
    # what ends without a context passes as late as the next reader comes, when the MSA is back
    idle = before.idle and after.idle and bool(after.sources)
    return (
        _alive(sizes, setup, after.alive, idle, kept)
        | max(moments, key=lambda moment: sum(moment.values()))
        | {_STAGED: _staging(sizes, setup, before.rows, block, before.streams)}
    )


def _staging(
    sizes: Sizes, setup: Setup, rows: int, block: int, operands: tuple[tuple[str | None, int], ...]
) -> int:
    """Bytes of the buffers through which blocks of the operands pass, as long as a call lasts."""
    if not rows or not setup.host:
        return 0
    # where there is a bus, features that stay on the host pass through it too
    features = sizes.on_gpu and not any(sizes.msa_features)
    passing = setup.host | (frozenset({MSA_FEATURES}) if features else frozenset())
    block = min(block, rows)
    return min(STAGING, -(-rows // block)) * block * sum(size for name, size in operands if name in passing)


def _on_host(sizes: Sizes, setup: Setup, kept: int = 0) -> dict[str, int]:
    """What is in the host's memory."""
    if not sizes.on_gpu:
        return {}
    held = representations(sizes)
    parts = {"process": PROCESS} | {name: held[name] for name in sorted(setup.host) if held.get(name)}
    if kept:
        parts["pair"] -= kept * (held["pair"] // sizes.residues)
    if "pair" in setup.host and held["other samples"]:
        parts["other samples"] = held["other samples"]
    if setup.rest:
        names = [name for name in ("MSA", "extra MSA") if name not in setup.host]
        parts["resting"] = max(held[name] for name in names)
    n = sizes.residues
    parts["features"] = 2 * n * (200 * sizes.clusters + 16 * sizes.extra)  # of this pass and the next
    parts["results"] = n * n * RESULT
    return parts


def _made(
    sizes: Sizes,
    setup: Setup,
    stages: tuple[Cost, ...],
    blocks: Mapping[str, int],
    rates: Rates,
    kept: int,
    handovers: frozenset[tuple[str, str]],
    wider: Mapping[str, int] | None = None,
) -> Plan:
    wider = wider or {}

    def block(cost: Cost) -> int:
        return (wider if cost.stack == "Evoformer" and cost.stage in wider else blocks)[cost.stage]

    peaks = [(_parts(sizes, setup, cost, block(cost), kept), cost) for cost in stages if cost.calls]
    peaks += [
        (_handed_over(sizes, setup, chain, blocks, kept), chain[-1])
        for pair, several in _handovers(setup, stages).items()
        for chain in several
        if pair in handovers
    ]
    parts, cost = max(peaks, key=lambda peak: sum(peak[0].values()))
    lent = _lent(sizes, setup, peaks, kept)
    peaks = [
        (needed | {"pair": needed.get("pair", 0) + lent * _row(sizes)}, at)
        if lent and at.stage == REREADING
        else (needed, at)
        for needed, at in peaks
    ]
    by_stage: dict[str, int] = {}
    for needed, at in peaks:
        name = f"{at.stack}: {at.stage}"
        by_stage[name] = max(by_stage.get(name, 0), sum(needed.values()))
    host_parts = _on_host(sizes, setup, kept) or {"process": PROCESS} | parts
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
        * sum(_seconds(sizes, setup, cost, block(cost), rates, kept, handovers, lent) for cost in stages),
        wider=wider,
        direct=frozenset(cost.stage for cost in stages if cost.direct and not setup.host),
        kept=kept,
        handovers=handovers,
        context_bytes=_context_bytes(setup),
        lent=lent,
    )


def _lent(sizes: Sizes, setup: Setup, peaks: list[tuple[dict[str, int], Cost]], kept: int) -> int:
    """Rows of the pair for which there is room while it is read again and again, without a higher peak."""
    if "pair" not in setup.host:
        return 0
    peak, needed = (
        max(sum(parts.values()) for parts, cost in peaks if cost.stage == REREADING or every)
        for every in (True, False)
    )
    return min((peak - needed) // _row(sizes), sizes.residues - kept)


def _row(sizes: Sizes) -> int:
    """Bytes of a row of the pair."""
    return representations(sizes)["pair"] // sizes.residues


_LAUNCHES = 20  # operations that a block starts
# of transfers that could pass behind the computation, or the other way round: measured at 4,096 to 10,000
_SEEN = 1 / 3
_PASSES = 2.5  # times that a byte of the workspace is written or read


def _seconds(
    sizes: Sizes,
    setup: Setup,
    cost: Cost,
    block: int,
    rates: Rates,
    kept: int,
    handovers: frozenset[tuple[str, str]],
    lent: int,
) -> float:
    """Of all calls in a pass."""
    if not cost.calls or not cost.rows:
        return 0.0
    wide = sizes.itemsize >= 4 or cost.stack == "structure"
    speed, attending = rates.speeds(wide, sizes.kernels)
    if cost.stage == MULTIPLICATION:
        speed = _product_speed(sizes, block, speed, rates)
    moved = cost.rows * cost.update + cost.source_rows * cost.prepare
    work = cost.products / speed + cost.attention / attending + _PASSES * moved / rates.memory
    blocks = -(-cost.rows // block) + (-(-cost.source_rows // block) if cost.source_rows else 0)
    launched = max(work, blocks * _LAUNCHES * rates.launch)
    share = {"pair": 1 - kept / sizes.residues}  # of its rows that cross the bus
    if cost.stage == REREADING:  # all rows once, and those that are not lent every time
        share["pair"] -= (1 - 1 / cost.calls) * lent / sizes.residues
    handed = sum((stage, cost.stage) in handovers for stage in cost.follows) / max(len(cost.follows), 1)
    # a stage with a context reads its source no more; one without works on rows that are there
    rows, source_rows = cost.rows * (1 if cost.sources else 1 - handed), cost.source_rows * (1 - handed)
    bus = sum(
        count * size * share.get(name, 1)
        for count, operands in ((rows, cost.streams), (source_rows, cost.sources))
        for name, size in operands
        if name is not None and name in setup.host
    )
    transferred = bus / rates.bus + (blocks * 60e-6 if bus else 0.0)  # each way at once
    if setup.rest and cost.stage == "triangle multiplication" and cost.idle:  # out and back, once a block
        name = cost.alive[-1]
        launched += 0 if name in setup.host else representations(sizes)[name] / rates.bus
    hidden, longer = sorted((launched, transferred))
    return cost.calls * (longer + _SEEN * hidden)


def _product_speed(sizes: Sizes, block: int, speed: float, rates: Rates) -> float:
    """Of a product of a block of rows with a whole matrix, floating-point operations a second."""
    if not sizes.on_gpu:
        return speed * min(1.0, block / rates.full)
    tile = product_tile(sizes)
    filled = block / (-(-block // tile) * tile)
    return min(speed * filled, rates.memory * 2 * block / sizes.itemsize)  # each block reads the whole matrix


def _too_long(sizes: Sizes, usable: int, host_bytes: int | None, tier: str | None) -> DoesNotFit:
    setup = _setups(sizes, tier)[-1]
    stages = _stages(sizes, setup)
    parts, cost = max(
        ((_parts(sizes, setup, cost, 1), cost) for cost in stages if cost.calls),
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
    one = parts["workspace"] + parts["context"] + parts.get(_STAGED, 0)
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

"""What every stage of the network needs in memory and work: data, from which `plan` decides.

Bytes of a row are counted where the stage's `update` (or its context's `prepare`) holds most at once. A stage
is what a class of the network's row updates calls itself; it may run in several stacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from axfold.config import Model, MsaStack, Templates, TriangleStack
from axfold.memory.budget import at_once

# to a multiple of so many numbers kernels make rows of the triangle product (ops.triton.triangle)
ALIGNMENT = 16
WIDE = 4  # bytes of float32, of statistics and of the structure module whatever the trunk's type is
MSA_FEATURES = "features of the MSA"  # they may come from the host row by row, whatever else does
# ops that hold less on a GPU, where their own kernels take the call
KERNELS = frozenset(
    {
        *("gated_attention", "global_column_attention", "invariant_point_attention", "normed_linear"),
        "linear_residual",
        *("transition", "triangle_operand", "triangle_update", "outer_product_mean"),
    }
)
LOGITS = 1 << 25  # of attention with a bias for each row that exist at once (ops.attention)
TORSION_WIDTH = (
    3 * WIDE * 37 + WIDE * 37 + WIDE * 3 + 2 * WIDE
)  # bytes of one template's features of a residue


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a pass is about.

    clusters, extra: rows of the MSA and of the extra MSA, without the templates'
    itemsize: bytes of a number in the trunk; weights: bytes of all parameters
    msa_features: bytes on the device of an element (sequence, residue) of the MSA's and the extra MSA's features,
        which else come from the host row by row; their masks are always on the device
    kernels: ops whose own kernels take the calls of the trunk, some of KERNELS
    context_bytes: of the outer product mean's context at once, as `Rows` has it
    logits: are the distogram's and the aligned error's wanted whole?
    """

    residues: int
    clusters: int
    extra: int
    model: Model
    templates: int = 0
    itemsize: int = WIDE
    weights: int = 0
    ensembles: int = 1
    on_gpu: bool = True
    kernels: frozenset[str] = frozenset()
    msa_features: tuple[int, int] = (0, 0)
    context_bytes: int | None = None
    logits: bool = False

    @property
    def sequences(self) -> int:
        """Rows of the MSA representation, with those of the templates' torsion angles."""
        embedded = self.model.templates is not None and self.model.templates.torsion_angles
        return self.clusters + self.templates * embedded


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A stage in one stack; bytes unless said otherwise.

    alive: the representations that exist meanwhile; rows, source_rows: of what it updates, and of what its
    context is made of; update, prepare: of the block, for each of its rows; context: what `prepare` makes of all
    rows; whole: beside all blocks; after: at its end, without block and context
    direct: a kernel makes the context of all rows as it is used, so that it is best made at once
    copied: of a context that attention takes only aligned, a second time where it is not
    streams, sources: (representation, bytes of a row) of `update`'s and `prepare`'s operands; None is on the device
    idle: may the MSA representation rest meanwhile?
    follows: the stages whose updates of its first source come right before its context is made, each before as many
        of its calls; or, if it has no context and acts by element, before its own update
    calls: in a pass; products, attention: floating-point operations of all rows in one call, outside and inside
    of attention
    """

    stage: str
    stack: str
    alive: tuple[str, ...]
    rows: int
    update: int
    source_rows: int = 0
    prepare: int = 0
    context: int = 0
    direct: bool = False
    copied: int = 0
    whole: int = 0
    after: int = 0
    streams: tuple[tuple[str | None, int], ...] = ()
    sources: tuple[tuple[str | None, int], ...] = ()
    idle: bool = False
    follows: tuple[str, ...] = ()
    calls: int = 1
    products: float = 0.0
    attention: float = 0.0


def representations(s: Sizes) -> dict[str, int]:
    """Bytes of everything that outlives a stage."""
    n, b, m = s.residues, s.itemsize, s.model
    pair = n * n * m.c_z * b
    made = {
        "weights": s.weights,
        "features": (s.clusters + s.extra) * n * WIDE  # their masks
        + s.clusters * n * s.msa_features[0]
        + s.extra * n * s.msa_features[1]
        + s.templates * n * TORSION_WIDTH
        + n * (m.target_features + 14 + 37 + 37 + 3) * WIDE,
        "recycled": n * (m.c_m * b + 3 * 37 * WIDE),  # first row of the MSA, positions
        "pair": pair,
        "extra MSA": s.extra * n * m.c_e * b,
        "MSA": s.sequences * n * m.c_m * b,
        # recycled and summed pairs of the others, where the representations of several samples are averaged
        "other samples": min(s.ensembles - 1, 2) * pair + (s.ensembles > 1) * s.clusters * n * m.c_m * b,
    }
    if s.templates and m.templates:
        made["template"] = n * n * m.templates.c_t * b
        if s.templates > 1:  # a single one needs none
            made["attention to templates"] = n * n * m.templates.heads * (2 + m.templates.c_attention) * WIDE
    return made


def costs(s: Sizes) -> tuple[Cost, ...]:
    """Every stage of a pass in every stack."""
    return (
        *_embedding(s),
        *(_templates(s, s.model.templates) if s.templates and s.model.templates else ()),
        *_stack(s, "extra MSA stack", s.model.c_e, s.extra, s.model.extra_stack),
        *_stack(s, "Evoformer", s.model.c_m, s.sequences, s.model.evoformer),
        *_structure(s),
    )


def _embedding(s: Sizes) -> Iterator[Cost]:
    n, b, m = s.residues, s.itemsize, s.model
    z, e, x = n * m.c_z * b, n * m.c_e * b, n * m.c_m * b  # one row of each
    cast = b < WIDE
    moved_msa, moved_extra = (
        0 if held else n * size for held, size in zip(s.msa_features, (196, 12), strict=True)
    )
    yield Cost(  # the sum so far, a term and the new sum; distance bins of float32, and in the trunk's type; offsets
        stage="pair embedding", stack="pass", alive=("pair",), rows=n, streams=(("pair", z),),
        update=3 * z + n * m.recycle_bins * WIDE + n * 2 * WIDE, products=2.0 * n * n * m.c_z * m.recycle_bins,
    )  # fmt: skip
    yield Cost(  # looked up types, deletions times weights, their sum; the two deletions of an element
        stage="extra MSA embedding", stack="pass", alive=("pair", "extra MSA"), rows=s.extra,
        update=3 * e + n * 2 * (WIDE + b * cast) + moved_extra,
        streams=(("extra MSA", e), *[(MSA_FEATURES, n * WIDE)] * 3),
    )  # fmt: skip
    joined = (
        s.sequences * n * m.c_m * b if s.sequences > s.clusters else 0
    )  # with the templates' rows: a copy
    yield Cost(  # terms of all rows, of the first row, their sum
        stage="MSA embedding", stack="pass", alive=("pair",), rows=s.clusters, whole=s.clusters * x,
        update=3 * x + moved_msa, streams=((None, 0), (MSA_FEATURES, n * m.msa_features * WIDE)),
        after=s.clusters * x + joined, products=2.0 * s.clusters * n * m.msa_features * m.c_m,
    )  # fmt: skip


def _templates(s: Sizes, t: Templates) -> Iterator[Cost]:
    n, b, c_z = s.residues, s.itemsize, s.model.c_z
    z, row, width = n * c_z * b, n * t.c_t * b, t.heads * t.c_attention
    seen = n * t.heads * (2 + t.c_attention) * WIDE
    alive = ("pair", *(("attention to templates",) if s.templates > 1 else ()), "template")
    channels = t.bins + 1 + 2 * 22 + 3 + 1
    yield Cost(  # features side by side, the same masked; bins, and four float32 numbers
        stage="template embedding", stack="templates", alive=alive, rows=n, calls=s.templates,
        update=n * (2 * channels * b + t.bins * b + 5 * WIDE), streams=(("template", row),),
        products=2.0 * n * n * channels * t.c_t,
    )  # fmt: skip
    yield from _pair_block(s, "templates", t.c_t, t.pair, alive, "template", t.blocks * s.templates)
    if s.templates == 1:  # the update, times its mask, their sum
        yield Cost(
            stage="template attention", stack="templates", alive=alive, rows=n, update=3 * z,
            streams=(("pair", z), ("template", row)), products=2.0 * n * n * width * (c_z + t.c_t),
        )  # fmt: skip
        return
    yield Cost(  # q, k, v; in float32 the values so far, the new ones, their sum, and seven numbers a head
        stage="template attention", stack="templates", alive=alive, rows=n, calls=s.templates,
        update=max(n * (3 * width * b + 3 * width * WIDE + 7 * t.heads * WIDE), 3 * z),
        streams=(("attention to templates", seen), ("pair", z), ("template", row)),
        products=2.0 * n * n * width * (c_z + 2 * t.c_t),
    )  # fmt: skip


def _stack(s: Sizes, stack: str, c: int, depth: int, sizes: MsaStack) -> Iterator[Cost]:
    """Blocks on an MSA of `depth` rows and `c` channels: "extra MSA" or "MSA"."""
    n, b, c_z = s.residues, s.itemsize, s.model.c_z
    msa = "extra MSA" if stack == "extra MSA stack" else "MSA"
    streams = msa if msa == "extra MSA" else None  # the MSA itself is never worked on from the host
    alive, z, width = ("pair", msa), n * c_z * b, sizes.heads * sizes.c_attention
    x, y = n * c * b, depth * c * b  # a row and a column of the MSA
    o = sizes.c_outer_product
    masked = stack == "Evoformer" and s.sequences > s.clusters  # unaligned residues of the templates' rows
    bias = sizes.heads * n * n * b
    tiled = _tiled_bias(s, sizes.heads)
    joined = 4 * c * width * b  # weights of the projections, put together
    own = min(max(LOGITS * b // max(bias, 1), 1), s.templates) * bias if masked else 0
    yield Cost(
        stage="MSA row attention", stack=stack, alive=alive, rows=depth,
        update=_attention(s, x, n * width * b, n * masked), source_rows=n,
        prepare=("normed_linear" not in s.kernels) * z + n * sizes.heads * b, context=bias,
        copied=0 if tiled else bias, whole=(tiled or own) + joined,
        streams=((streams, x),), sources=(("pair", z),), follows=("transition",), calls=sizes.blocks,
        products=2.0 * depth * n * c * 5 * width, attention=4.0 * depth * n * n * width,
    )  # fmt: skip
    if sizes.global_column_attention:
        present = x_wide = 0
        if b < WIDE:
            x_wide, present = depth * c * WIDE, depth * WIDE
        update = (
            max(  # input, the same in float32 and masked; or input, gate, its sigmoid, keys, values, weights
                y + x_wide + present + depth * c * WIDE,
                y + 2 * depth * width * b + depth * (2 * sizes.c_attention + 2 * sizes.heads) * b,
            )
        )
        if (
            "global_column_attention" in s.kernels
        ):  # mean, query, its vectors, averages of them in three steps
            update = (c + width + 4 * sizes.heads * c) * WIDE
        yield Cost(
            stage="global column attention", stack=stack, alive=alive, rows=n, update=update,
            streams=((streams, y),), calls=sizes.blocks, products=2.0 * depth * n * c * 2.5 * width,
        )  # fmt: skip
    else:
        yield Cost(  # as along the rows
            stage="MSA column attention", stack=stack, alive=alive, rows=n,
            update=_attention(s, y, depth * width * b, depth * masked), whole=joined,
            streams=((streams, y),), calls=sizes.blocks, products=2.0 * depth * n * c * 5 * width,
            attention=4.0 * n * depth * depth * width,
        )  # fmt: skip
    yield Cost(  # input, the hidden layer
        stage="transition", stack=stack, alive=alive, rows=depth,
        update=("transition" not in s.kernels) * (sizes.transition_factor + 1) * x,
        streams=((streams, x),), calls=sizes.blocks,
        products=4.0 * depth * n * c * c * sizes.transition_factor,
    )  # fmt: skip
    columns = at_once(n, depth * o * b, s.context_bytes)
    made, product = depth * o * b, columns * o * o * b
    # a column of the MSA copied and normalised, then its projection, masked and put in order, and the products in
    # both orders; of the context the row of the MSA, copied where it is a part, and two projections
    update = max(2 * y, y + made, 2 * made + product, made + 2 * product)
    prepare = max((1 + (columns < n)) * x * columns // n, x * columns // n + columns * o * b)
    if "outer_product_mean" in s.kernels:  # no LayerNorm is written, and the products once
        update, prepare = 2 * made + product, 0
    yield Cost(
        stage="outer product mean", stack=stack, alive=alive, rows=n,
        update=update, source_rows=depth,
        prepare=max(prepare, 2 * columns * o * b), context=depth * columns * o * b,
        streams=(("pair", z), (streams, y)), sources=((streams, x),), calls=sizes.blocks,
        products=2.0 * n * n * o * o * (depth + c_z),
    )  # fmt: skip
    yield from _pair_block(s, stack, c_z, sizes.pair, alive, "pair", sizes.blocks, idle=True)


def _attention(s: Sizes, x: int, width: int, limits: int) -> int:
    """Bytes of a row of attention: x of its input, and of its update where a kernel does not add it as it makes it;
    `width` of each of its projections.

    limits: of so many keys, where the kernel hides some.

    Where wide projections normalise rows first (ops.triton.normed_linear), these are no wider than attention's result,
    before which they are gone.
    """
    inside = 6 * width  # sigmoid of the gate
    if "gated_attention" in s.kernels:  # in float32 maybe keys and values in float16 too (ops.triton.tf32)
        inside = (5 + (s.itemsize == WIDE)) * width + 9 * limits
    normed = 0 if "normed_linear" in s.kernels else x
    update = 0 if "linear_residual" in s.kernels else x
    return max(normed + 4 * width, inside, 5 * width + update, 2 * normed)


def _tiled_bias(s: Sizes, heads: int) -> int:
    """Bytes of the bias as the kernel of attention lays it out, at most; 0 where it does not run."""
    queries, keys = (-(-s.residues // tile) * tile for tile in (128, 64))
    return heads * queries * keys * s.itemsize if "gated_attention" in s.kernels else 0


def _pair_block(
    s: Sizes,
    stack: str,
    c: int,
    sizes: TriangleStack,
    alive: tuple[str, ...],
    pair: str,
    calls: int,
    idle: bool = False,
) -> Iterator[Cost]:
    n, b = s.residues, s.itemsize
    z, h, a = n * c * b, n * sizes.c_multiplication * b, n * sizes.heads * sizes.c_attention * b
    bias = sizes.heads * n * n * b
    before_multiplication, before_attention, before_transition = (
        ("triangle attention", "template embedding", "triangle multiplication")
        if pair == "template"
        else ("outer product mean", "triangle multiplication", "triangle attention")
    )
    # normalised input and both halves of the projection; or these and one gated
    operand, made = max(z + 2 * h, 2 * z, 3 * h), h
    # operand, product, its copy for the LayerNorm, which makes one more; or operand, update, normalised input, gate
    update = max(operand, 4 * h, h + 3 * z)
    direct = s.kernels >= {"triangle_operand", "triangle_update"}
    if direct:  # operand; product; both of aligned rows
        operand = made = -(-n // ALIGNMENT) * ALIGNMENT * sizes.c_multiplication * b
        update = 2 * made
    yield Cost(
        stage="triangle multiplication", stack=stack, alive=alive, rows=n, update=update,
        source_rows=n, prepare=operand, context=n * made, direct=direct,
        streams=((pair, z),), sources=((pair, z),),
        follows=(before_multiplication, "triangle multiplication"), idle=idle, calls=2 * calls,
        products=2.0 * n**3 * sizes.c_multiplication + 2.0 * n * n * c * (5 * sizes.c_multiplication + c),
    )  # fmt: skip
    tiled = _tiled_bias(s, sizes.heads)
    yield Cost(  # of the context: the input in order, and normalised
        stage="triangle attention", stack=stack, alive=alive, rows=n, update=_attention(s, z, a, 0),
        source_rows=n, prepare=n * sizes.heads * b if "normed_linear" in s.kernels else 2 * z, context=bias,
        copied=0 if tiled else bias, whole=tiled + 4 * c * a // n, streams=((pair, z),), sources=((pair, z),),
        follows=(before_attention, "triangle attention"), idle=idle, calls=2 * calls,
        products=2.0 * n * c * 5 * a / b,
        attention=4.0 * n**3 * sizes.heads * sizes.c_attention,
    )  # fmt: skip
    yield Cost(  # normalised input, the hidden layer
        stage="transition", stack=stack, alive=alive, rows=n,
        update=("transition" not in s.kernels) * (sizes.transition_factor + 1) * z,
        streams=((pair, z),), follows=(before_transition,), idle=idle, calls=calls,
        products=4.0 * n * n * c * c * sizes.transition_factor,
    )  # fmt: skip


def _structure(s: Sizes) -> Iterator[Cost]:
    n, m, sizes = s.residues, s.model, s.model.structure
    z, logits = n * m.c_z * WIDE, n * sizes.heads * WIDE
    points = sizes.query_points + sizes.value_points
    keys = 2 * sizes.heads * sizes.c_hidden + 3 * sizes.heads * points
    update = max(2 * z if s.itemsize < WIDE else z, z + 5 * logits)
    if "invariant_point_attention" in s.kernels:  # logits; of the residue, by head: q twice, averages
        own = m.c_z + 2 * sizes.c_hidden + 6 * sizes.query_points + sizes.c_hidden + 3 * sizes.value_points
        update = logits + sizes.heads * own * WIDE
    layers = sizes.layers * (4 + 3 + 2 * 14 + 8 * 12 + 14 * 3)  # what it returns of each
    yield Cost(  # the pair in float32 and normalised; logits: distances, weights, and what makes them
        stage="invariant point attention", stack="structure", alive=("pair", "MSA"), rows=n,
        update=update,
        whole=n * (2 * keys + m.c_s + layers) * WIDE + n * m.c_s * s.itemsize,
        streams=((None, 0), ("pair", n * m.c_z * s.itemsize)), calls=sizes.layers,
        products=2.0 * n * n * sizes.heads * (2 * sizes.c_hidden + 3 * points + 2 * m.c_z),
    )  # fmt: skip
    bins = m.heads.distogram_bins * n * s.itemsize
    errors = m.heads.aligned_error_bins * n * s.itemsize if m.heads.aligned_error else 0
    pair = ("pair", n * m.c_z * s.itemsize)
    yield Cost(  # two projections and their sum; all logits, and one kind of them in float32
        stage="distogram", stack="structure", alive=("pair", "MSA"), rows=n, source_rows=n, prepare=3 * bins,
        context=n * bins, after=n * (bins + errors + n * m.heads.distogram_bins * WIDE), update=0,
        sources=(pair, pair), calls=int(s.logits),
    )  # fmt: skip
    if errors:
        yield Cost(
            stage="aligned error", stack="structure", alive=("pair", "MSA"), rows=n, source_rows=n, update=0,
            prepare=errors, context=n * errors, sources=(pair,), calls=int(s.logits),
        )  # fmt: skip

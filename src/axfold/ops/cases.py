"""Named inputs of the operations: the shapes that the network really runs, and those that go wrong first."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from axfold.ops.attention import gated_attention
from axfold.ops.column import global_column_attention
from axfold.ops.frame_error import distance_error, frame_error
from axfold.ops.layer_norm import layer_norm
from axfold.ops.linear_residual import linear_residual
from axfold.ops.normed_linear import normed_linear
from axfold.ops.op import Op
from axfold.ops.outer import outer_product_update
from axfold.ops.point_attention import invariant_point_attention
from axfold.ops.residual import add
from axfold.ops.softmax import softmax
from axfold.ops.transition import transition
from axfold.ops.triangle import triangle_operand, triangle_update

Arguments = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Attention:
    """Attention within `rows` rows of `length` positions each."""

    name: str
    rows: int
    length: int
    heads: int
    channels: int
    biased: bool = True
    masked: bool = False
    columns: bool = False  # rows of a transposed representation: neighbours in a row are far apart in memory

    op: ClassVar[Op] = gated_attention

    def __str__(self) -> str:
        return self.name

    @property
    def operations(self) -> int:
        """Floating-point operations of the two products."""
        return 4 * self.rows * self.length**2 * self.heads * self.channels

    def inputs(self, dtype: torch.dtype, device: torch.device | str, seed: int = 0) -> Arguments:
        """Random arguments, with the strides that the network's projections give them."""
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype, device=device)

        def rows(*rest: int) -> Tensor:
            if self.columns:
                return normal(self.length, self.rows, *rest).transpose(0, 1)
            return normal(self.rows, self.length, *rest)

        q, k, v = rows(3, self.heads, self.channels).unbind(2)
        gate = rows(self.heads, self.channels)
        bias = normal(self.length, self.length, self.heads).movedim(-1, 0) if self.biased else None
        mask = torch.ones((), device=device).expand(self.rows, self.length)
        if self.masked:
            mask = (torch.rand(self.rows, self.length, generator=generator, device=device) > 0.3).float()
            mask[0] = 0  # a row without keys averages them
        return q, k, v, gate, mask, bias

    def some(self, arguments: Arguments, rows: Sequence[int]) -> Arguments:
        """The arguments that give these rows of the result: the first axis, whose rows do not depend on each other."""
        *by_row, bias = arguments
        return *(x if x is None else x[list(rows)] for x in by_row), bias

    def taken(self, result: Tensor, rows: Sequence[int]) -> Tensor:
        """These rows of a result."""
        return result[list(rows)]


def _attention(
    name: str, rows: int | None, lengths: Sequence[int], heads: int, channels: int
) -> list[Attention]:
    return [Attention(f"{name}, N = {n}", rows or n, n, heads, channels) for n in lengths]


REAL = (
    *_attention("triangle attention", None, (256, 512, 1024, 2048), 4, 32),
    Attention("triangle attention, ending node, N = 1024", 1024, 1024, 4, 32, columns=True),
    Attention("triangle attention, masked, N = 1024", 1024, 1024, 4, 32, masked=True),
    *_attention("template attention", None, (512,), 4, 16),
    *_attention("MSA row attention", 512, (256, 1024), 8, 32),
    *_attention("extra MSA row attention", 5120, (256, 1024), 8, 8),
    *(
        Attention(f"MSA column attention, N = {n}", n, 512, 8, 32, biased=False, columns=True)
        for n in (256, 1024)
    ),
)
"""What a pass of the network consists of."""

ODD = tuple(
    Attention(
        f"{n} positions, {heads} x {c}{', biased' * biased}{', masked' * masked}",
        3,
        n,
        heads,
        c,
        biased,
        masked,
    )
    for n, heads, c in ((1, 4, 32), (17, 8, 8), (63, 4, 16), (64, 2, 32), (1000, 2, 32))
    for biased in (True, False)
    for masked in (True, False)
)
"""Sizes beside the powers of two."""


Normal = Callable[..., Tensor]


@dataclass(frozen=True)
class Layer:
    """An op on `rows` rows of `length` positions, as a pass calls it.

    make(normal, rows, length): the arguments, of numbers by normal(*shape); split: {argument: axis of its rows};
    axis: of the rows in the result; operations: floating-point operations of the products for each position
    """

    name: str
    op: Op
    rows: int
    length: int
    operations_each: int
    make: Callable[[Normal, int, int], Arguments]
    split: tuple[tuple[int, int], ...] = ((0, 0),)
    axis: int = 0

    def __str__(self) -> str:
        return self.name

    @property
    def operations(self) -> int:
        return self.rows * self.length * self.operations_each

    def inputs(self, dtype: torch.dtype, device: torch.device | str, seed: int = 0) -> Arguments:
        """Random arguments."""
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype, device=device)

        return self.make(normal, self.rows, self.length)

    def some(self, arguments: Arguments, rows: Sequence[int]) -> Arguments:
        """Copies of the arguments that give these rows of the result."""
        taken = list(arguments)
        for place, axis in self.split:
            taken[place] = arguments[place].index_select(axis, _index(rows, arguments[place]))  # type: ignore[union-attr,arg-type]
        return tuple(taken)

    def taken(self, result: Tensor | tuple[Tensor, ...], rows: Sequence[int]) -> Tensor:
        """These rows of a result, without what pads its positions: [rows, numbers]."""
        parts = result if isinstance(result, tuple) else (result,)
        if self.axis:  # channel first, and rows of positions may be longer than `length`
            parts = tuple(part[..., : self.length].movedim(self.axis, 0) for part in parts)
        return torch.cat([part[list(rows)].flatten(1) for part in parts], dim=1)


def _index(rows: Sequence[int], x: Tensor) -> Tensor:
    return torch.tensor(rows, device=x.device)


def _norm(normal: Normal, c: int) -> tuple[Tensor, Tensor]:
    return 1 + 0.2 * normal(c), 0.2 * normal(c)


def _linear(normal: Normal, out: int, c: int) -> tuple[Tensor, Tensor]:
    return normal(out, c) / c**0.5, 0.2 * normal(out)


def _shown(normal: Normal, rows: int, length: int) -> Tensor:
    """A mask that hides nothing."""
    return torch.ones_like(normal(1)[0]).expand(rows, length)


def _operand(normal: Normal, rows: int, n: int, c_z: int = 128, c: int = 128) -> Arguments:
    return (
        normal(rows, n, c_z),
        _shown(normal, rows, n),
        *_norm(normal, c_z),
        *_linear(normal, 2 * c, c_z),
    )


def _update(normal: Normal, rows: int, n: int, c_z: int = 128, c: int = 128) -> Arguments:
    products = normal(c, rows, n), normal(c, n, n)
    norms = *_norm(normal, c_z), *_norm(normal, c)
    return normal(rows, n, c_z), *products, *norms, *_linear(normal, c_z, c), *_linear(normal, c_z, c_z)


def _transition(c: int) -> Callable[[Normal, int, int], Arguments]:
    return lambda normal, rows, n: (
        normal(rows, n, c),
        *_norm(normal, c),
        *_linear(normal, 4 * c, c),
        *_linear(normal, c, 4 * c),
    )


def _projections(c: int, width: int) -> Callable[[Normal, int, int], Arguments]:
    return lambda normal, rows, n: (
        normal(rows, n, c),
        *_norm(normal, c),
        *_linear(normal, width, c),
    )


def _mean(sequences: int) -> Callable[[Normal, int, int], Arguments]:
    def make(normal: Normal, rows: int, n: int) -> Arguments:
        count = torch.full_like(normal(1)[0], sequences, dtype=torch.float32).expand(rows, n)
        operands = normal(rows, sequences, 32), normal(sequences, n, 32)
        return normal(rows, n, 128), *operands, count, *_linear(normal, 128, 1024)

    return make


def _column(normal: Normal, rows: int, n: int) -> Arguments:
    layers = normal(64, 64) / 8, normal(16, 64) / 8, *_linear(normal, 64, 64), *_linear(normal, 64, 64)
    return normal(rows, n, 64), _shown(normal, rows, n), *_norm(normal, 64), *layers


def _points(normal: Normal, rows: int, n: int) -> Arguments:
    def wide(*shape: int) -> Tensor:  # all but the pairs have at least float32
        x = normal(*shape)
        return x.to(torch.promote_types(x.dtype, torch.float32))

    return (
        *(wide(size, 12, 16) for size in (rows, n, n)),
        wide(rows, 12, 4, 3),
        wide(n, 12, 4, 3),
        wide(n, 12, 8, 3),
        wide(12),
        normal(rows, n, 128),
        *_norm(wide, 128),
        *_linear(wide, 12, 128),
        torch.ones_like(wide(rows)),
        torch.ones_like(wide(n)),
    )


def _layers(n: int) -> tuple[Layer, ...]:
    at = f", N = {n}"
    pair = 2 * 128**2
    points = (0, 0), (3, 0), (7, 0), (12, 0)
    return (
        Layer("triangle operand" + at, triangle_operand, n, n, 2 * pair, _operand, ((0, 0), (1, 0)), axis=1),
        Layer(
            "triangle product and update" + at,
            triangle_update,
            *(n, n),
            2 * pair + 2 * n * 128,
            _update,
            ((0, 0), (1, 1)),
        ),
        Layer("pair transition" + at, transition, n, n, 8 * pair, _transition(128)),
        Layer("MSA transition" + at, transition, 512, n, 32 * pair, _transition(256)),
        Layer("pair projections" + at, normed_linear, n, n, 2 * 128 * 516, _projections(128, 516)),
        Layer("MSA projections" + at, normed_linear, 512, n, 2 * 256 * 1024, _projections(256, 1024)),
        Layer(
            "outer product mean, 512 sequences" + at,
            outer_product_update,
            *(n // 8, n),
            2 * 1024 * (512 + 128),
            _mean(512),
            ((0, 0), (1, 0), (3, 0)),
        ),
        Layer(
            "global column attention" + at,
            global_column_attention,
            *(n, 5120),
            4 * 64**2 + 4 * 64 * 8,
            _column,
            ((0, 0), (1, 0)),
        ),
        Layer(
            "invariant point attention" + at,
            invariant_point_attention,
            *(n, n),
            12 * 2 * (2 * 16 + 4 * 3 + 8 * 3 + 2 * 128),
            _points,
            points,
        ),
    )


def _logits(normal: Normal, rows: int, n: int) -> Arguments:
    return normal(rows, 4, n, n), _shown(normal, rows, n), normal(4, n, n)


def _alone(n: int) -> tuple[Layer, ...]:
    rows = max(min(n, 2**28 // n**2), 1)  # of 4 n² logits each
    return (
        Layer(
            f"layer norm, N = {n}",
            layer_norm,
            n,
            n,
            8 * 128,
            lambda normal, *size: (normal(*size, 128), *_norm(normal, 128)),
        ),
        Layer(f"softmax of {rows} rows, N = {n}", softmax, rows, n, 5 * 4 * n, _logits, ((0, 0), (1, 0))),
    )


LAYERS = (*_layers(256), *_layers(1024), *_layers(1200), *_alone(256), *_alone(1024))
"""What a pass consists of beside attention, and what is not fused anywhere."""


@dataclass(frozen=True)
class Call:
    """A call of the network, by arguments without numbers (on PyTorch's "meta" device) and with few rows."""

    op: Op
    name: str
    arguments: Arguments
    of_network: bool = True  # False: what it would call, were another operation not to take that along


def calls(dtype: torch.dtype, masked: bool = False, length: int = 32, clusters: int = 32) -> Iterator[Call]:
    """Every op with all the channels that the network gives or would give it, where the trunk computes in `dtype`.

    The structure module computes in at least float32. length: of rows, which are residues; clusters: of columns. None
    would need much memory: what is as large as a representation is one row expanded, and products have few summands.
    """
    rows, n = 2, length
    wide = torch.promote_types(dtype, torch.float32)

    def x(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def linear(out: int, c: int) -> tuple[Tensor, Tensor]:
        return x(out, c), x(out)

    def norm(c: int) -> tuple[Tensor, Tensor]:
        return x(c), x(c)

    mask = x(rows, n) if masked else x().expand(rows, n)
    representations = (
        ("pair", 128, 4, 32),
        ("MSA", 256, 8, 32),
        ("extra MSA", 64, 8, 8),
        ("template", 64, 4, 16),
    )
    for name, c, heads, c_head in representations:
        row, bias = x(rows, n, heads, c_head), x(heads, 1, 1).expand(heads, n, n)
        yield Call(gated_attention, name, (row, row, row, row, mask, bias))
        layer = linear(4 * heads * c_head, c)
        whole = x(1, n, c).expand(clusters, n, c) if name == "MSA" else x(rows, n, c)
        yield Call(normed_linear, f"{name}, to attention", (whole, *norm(c), *layer))
        width = heads * c_head
        attended = x(rows, n, c), x(rows, n, width), *linear(c, width), None
        yield Call(linear_residual, f"{name}, from attention", attended)
    column = x(rows, clusters, 8, 32)
    of_columns = x(rows, clusters) if masked else x().expand(rows, clusters)
    yield Call(gated_attention, "MSA, columns", (column, column, column, column, of_columns, None))
    for name, c, heads in (("pair", 128, 4), ("pair, for the MSA", 128, 8), ("template", 64, 4)):
        yield Call(normed_linear, f"{name}, to bias", (x(rows, n, c), *norm(c), x(heads, c)))
    for name, c in (("MSA", 256), ("extra MSA", 64)):
        yield Call(normed_linear, f"{name}, to outer product", (x(rows, n, c), *norm(c), *linear(32, c)))
    yield Call(add, "pair", (x(rows, n, 128), x(rows, n, 128)))
    for name, c in (("pair", 128), ("MSA", 256)):
        yield Call(layer_norm, name, (x(rows, n, c), *norm(c)), of_network=False)
    yield Call(softmax, "pair", (x(rows, 4, n, n), mask, x(4, n, n)), of_network=False)
    for name, c, factor in (("pair", 128, 4), ("MSA", 256, 4), ("extra MSA", 64, 4), ("template", 64, 2)):
        yield Call(
            transition, name, (x(rows, n, c), *norm(c), *linear(factor * c, c), *linear(c, factor * c))
        )
    for name, c in (("pair", 128), ("template", 64)):
        z, products = x(rows, n, c), (x(c, rows, 32), x(c, n, 32))
        yield Call(triangle_operand, name, (z, mask, *norm(c), *linear(2 * c, c)))
        norms, outputs = (*norm(c), *norm(c)), (*linear(c, c), *linear(c, c))
        yield Call(triangle_update, name, (z, *products, *norms, *outputs, None))
    operands = (
        x(rows, 5, 32),
        x(5, n, 32),
        (x(rows, n, dtype=wide) if masked else x(dtype=wide).expand(rows, n)),
    )
    yield Call(outer_product_update, "pair", (x(rows, n, 128), *operands, *linear(128, 32 * 32)))
    m, projections = x(rows, n, 64), (x(64, 64), x(16, 64))
    layers = *linear(64, 64), *linear(64, 64)
    yield Call(global_column_attention, "extra MSA", (m, mask, *norm(64), *projections, *layers))

    def wide_x(*shape: int) -> Tensor:
        return x(*shape, dtype=wide)

    residues = [wide_x(m, 12, 16) for m in (rows, n, n)]
    points = [wide_x(m, 12, p, 3) for m, p in ((rows, 4), (n, 4), (n, 8))]
    parameters = wide_x(128), wide_x(128), wide_x(12, 128), wide_x(12)
    masks = wide_x(rows), wide_x(n)
    arguments = *residues, *points, wide_x(12), x(rows, n, 128), *parameters, *masks
    yield Call(invariant_point_attention, "structure module", arguments)
    frames, atoms = (wide_x(rows, 3, 3), wide_x(rows, 3)), wide_x(n, 3)
    yield Call(frame_error, "all atoms", (*frames, atoms, *frames, atoms, *masks))
    some = wide_x(rows, 3)
    yield Call(distance_error, "atoms", (some, atoms, some, atoms, wide_x(n)))

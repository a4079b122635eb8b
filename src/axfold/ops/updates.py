"""Whole updates of a pair or MSA representation, for models that are not axfold's.

Each takes a representation, a mask and a module's own layers, and gives the representation with its update added,
LayerNorm, projections and residual included. None of them knows a model: they put operations of this package together
as axfold's own modules do.

What they share:

- Any batch axes stand before the others. They are gone through one by one: each is computed with all of the device.
- A layer is anything with `weight` and `bias`, such as `torch.nn.LayerNorm` and `torch.nn.Linear`, or `Weights` of
  tensors alone. A bias may be None. Parameters of another dtype are converted to the representation's. LayerNorms
  have an epsilon of 1e-5.
- `mask` is 0 where there is nothing, else 1, of any dtype; None hides nothing and is faster.
- They consume the representation: where no gradient is recorded the sum is written into it, and it is returned. Under
  autograd it stays as it is, and a new one is returned; kernels without a backward are then left out.
- `rows` is how many rows of the representation go at once. Fewer need less memory; all of them, None, launch the
  fewest kernels. The result is the same but for rounding.
- ValueError where shapes don't fit together.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from axfold.memory.rows import Rows
from axfold.ops.attention import gated_attention
from axfold.ops.column import global_column_attention
from axfold.ops.linear_residual import linear_residual
from axfold.ops.normed_linear import normed_linear
from axfold.ops.outer import outer_product_update
from axfold.ops.triangle import triangle_operand, triangle_update

Mask = Shaped[Tensor, "..."] | None


class Layer(Protocol):
    """Weight and bias of a LayerNorm [c] or a linear layer [out, c]; the bias may be None."""

    @property
    def weight(self) -> Any: ...

    @property
    def bias(self) -> Any: ...


class Weights(NamedTuple):
    """A layer whose weights are there as tensors alone."""

    weight: Tensor
    bias: Tensor | None = None


def triangle_multiplication(
    z: Float[Tensor, "*b n n c_z"],
    mask: Mask = None,
    *,
    edges: Literal["outgoing", "incoming"],
    norm: Layer,
    a: Layer,
    a_gate: Layer,
    b: Layer,
    b_gate: Layer,
    norm_product: Layer,
    output: Layer,
    gate: Layer,
    rows: int | None = None,
) -> Float[Tensor, "*b n n c_z"]:
    """z with the triangle multiplication's update: Algorithm 11 (`edges` outgoing) or 12 (incoming).

    x = norm(z), a = mask * a(x) * sigmoid(a_gate(x)) and b alike; z_ij receives
    sigmoid(gate(x_ij)) * output(norm_product(sum_k a_ik * b_jk)), or sum_k a_ki * b_kj if incoming.

    z: the pair representation [*, N, N, c_z]; mask: [*, N, N]
    a, a_gate, b, b_gate: linear, c_z to c; norm_product: c; output: c to c_z; gate: c_z to c_z
    """
    _square(z)
    layers = (*_of(z, norm), *_of(z, norm_product), *_of(z, output), *_of(z, gate))
    operands = _joined(z, a, a_gate), _joined(z, b, b_gate)
    if edges == "incoming":  # of zᵀ it is the outgoing update, with b for a
        operands = operands[::-1]
    own_layers, others_layers = operands

    def each(z: Tensor, mask: Tensor) -> Tensor:
        y, shown = (z, mask) if edges == "outgoing" else (z.transpose(0, 1), mask.transpose(0, 1))

        def operand(y: Tensor, shown: Tensor, layer: tuple[Tensor, Tensor]) -> Tensor:
            return triangle_operand(y, shown, *layers[:2], *layer)

        others = Rows(rows).gather(partial(operand, layer=others_layers), y, shown, axis=0, out_axis=1)

        def update(y: Tensor, shown: Tensor) -> Tensor:
            return triangle_update(y, operand(y, shown, own_layers), others, *layers)

        y = Rows(rows).update(update, y, shown, axis=0)
        return y if edges == "outgoing" else y.transpose(0, 1)

    return _each(each, z, _shown(mask, z))


def triangle_attention(
    z: Float[Tensor, "*b n n c_z"],
    mask: Mask = None,
    *,
    node: Literal["starting", "ending"],
    heads: int,
    norm: Layer,
    bias: Layer,
    q: Layer,
    k: Layer,
    v: Layer,
    gate: Layer,
    output: Layer,
    rows: int | None = None,
) -> Float[Tensor, "*b n n c_z"]:
    """z with the triangle attention's update: Algorithm 13 (`node` starting) or 14 (ending).

    x = norm(z); z_ij receives
    output(sigmoid(gate(x_ij)) * sum_k softmax_k(c^-1/2 q(x_ij) · k(x_ik) + bias(x_jk)) v(x_ik)), with `heads` heads
    of c channels. The ending node's update is the starting node's of zᵀ. The kernels make no N x N x N tensor.

    z: the pair representation [*, N, N, c_z]; mask: [*, N, N]
    bias: linear, c_z to heads; q, k, v, gate: c_z to heads * c; output: heads * c to c_z
    """
    _square(z)
    attend = _attention(z, heads, norm, q, k, v, gate, output)
    of_bias = (*_of(z, norm), bias.weight.to(z.dtype))

    def each(z: Tensor, mask: Tensor) -> Tensor:
        y, shown = (z, mask) if node == "starting" else (z.transpose(0, 1), mask.transpose(0, 1))
        third = Rows(rows).gather(partial(_pair_bias, layers=of_bias), y, axis=0, out_axis=1)
        y = Rows(rows).update(partial(attend, bias=third), y, shown, axis=0)
        return y if node == "starting" else y.transpose(0, 1)

    return _each(each, z, _shown(mask, z))


def msa_row_attention(
    m: Float[Tensor, "*b s n c_m"],
    z: Float[Tensor, "*b n n c_z"],
    mask: Mask = None,
    *,
    heads: int,
    norm: Layer,
    norm_pair: Layer,
    bias: Layer,
    q: Layer,
    k: Layer,
    v: Layer,
    gate: Layer,
    output: Layer,
    rows: int | None = None,
) -> Float[Tensor, "*b s n c_m"]:
    """m with the update of attention among a sequence's residues, biased by their pairs: Algorithm 7.

    x = norm(m); m_si receives
    output(sigmoid(gate(x_si)) * sum_j softmax_j(c^-1/2 q(x_si) · k(x_sj) + bias(norm_pair(z_ij))) v(x_sj)).

    m: the MSA representation [*, S, N, c_m], consumed; z: the pair representation [*, N, N, c_z]; mask: [*, S, N]
    bias: linear, c_z to heads; q, k, v, gate: c_m to heads * c; output: heads * c to c_m
    """
    _of_one_protein(m, z)
    attend = _attention(m, heads, norm, q, k, v, gate, output)
    of_bias = (*_of(z, norm_pair), bias.weight.to(z.dtype))

    def each(m: Tensor, z: Tensor, mask: Tensor) -> Tensor:
        pairs = Rows(rows).gather(partial(_pair_bias, layers=of_bias), z, axis=0, out_axis=1)
        return Rows(rows).update(partial(attend, bias=pairs), m, mask, axis=0)

    return _each(each, m, z, _shown(mask, m))


def msa_column_attention(
    m: Float[Tensor, "*b s n c_m"],
    mask: Mask = None,
    *,
    heads: int,
    norm: Layer,
    q: Layer,
    k: Layer,
    v: Layer,
    gate: Layer,
    output: Layer,
    rows: int | None = None,
) -> Float[Tensor, "*b s n c_m"]:
    """m with the update of attention among the sequences at a residue: Algorithm 8. `rows` are residues here.

    m: the MSA representation [*, S, N, c_m]; mask: [*, S, N]
    q, k, v, gate: linear, c_m to heads * c; output: heads * c to c_m
    """
    attend = _attention(m, heads, norm, q, k, v, gate, output)

    def each(m: Tensor, mask: Tensor) -> Tensor:
        columns, shown = m.transpose(0, 1), mask.transpose(0, 1)
        return Rows(rows).update(attend, columns, shown, axis=0).transpose(0, 1)

    return _each(each, m, _shown(mask, m))


def msa_global_column_attention(
    m: Float[Tensor, "*b s n c_m"],
    mask: Mask = None,
    *,
    norm: Layer,
    q: Layer,
    k: Layer,
    v: Layer,
    gate: Layer,
    output: Layer,
    rows: int | None = None,
) -> Float[Tensor, "*b s n c_m"]:
    """m with the update of attention of one mean query to the sequences at a residue: Algorithm 19.

    `rows` are residues here. All heads share the keys and values of c channels, so q's width says how many there are.

    m: the MSA representation [*, S, N, c_m]; mask: [*, S, N]
    q, gate: linear, c_m to heads * c; k, v: c_m to c; output: heads * c to c_m
    """
    kv = torch.cat([k.weight, v.weight]).to(m.dtype)
    layers = (*_of(m, norm), q.weight.to(m.dtype), kv, *_of(m, gate), *_of(m, output))

    def update(columns: Tensor, shown: Tensor) -> Tensor:
        return global_column_attention(columns, shown, *layers)

    def each(m: Tensor, mask: Tensor) -> Tensor:
        columns, shown = m.transpose(0, 1), mask.transpose(0, 1)
        return Rows(rows).update(update, columns, shown, axis=0).transpose(0, 1)

    return _each(each, m, _shown(mask, m))


def outer_product_mean(
    z: Float[Tensor, "*b n n c_z"],
    m: Float[Tensor, "*b s n c_m"],
    mask: Mask = None,
    *,
    norm: Layer,
    a: Layer,
    b: Layer,
    output: Layer,
    rows: int | None = None,
) -> Float[Tensor, "*b n n c_z"]:
    """z with the outer product mean's update: Algorithm 10.

    x = norm(m), a = mask * a(x) and b alike; z_ij receives
    output(sum_s a_si ⊗ b_sj) / (0.001 + sum_s mask_si mask_sj).

    z: the pair representation [*, N, N, c_z], consumed; m: the MSA representation [*, S, N, c_m]; mask: [*, S, N]
    a, b: linear, c_m to c; output: c * c to c_z
    """
    _of_one_protein(m, z)
    normed, a_layer, b_layer, after = _of(m, norm), _of(m, a), _of(m, b), _of(z, output)

    def each(z: Tensor, m: Tensor, mask: Tensor) -> Tensor:
        masked = any(mask.stride())
        wide = torch.promote_types(m.dtype, torch.float32)  # bfloat16 can't count to 5,120
        counts = mask.transpose(0, 1).to(wide) if masked else mask

        def operand(m: Tensor, mask: Tensor, layer: tuple[Tensor, Tensor]) -> Tensor:
            x = normed_linear(m, *normed, *layer)
            return x * mask[..., None] if masked else x

        others = Rows(rows).gather(partial(operand, layer=b_layer), m, mask, axis=0, out_axis=0)

        def update(z: Tensor, m: Tensor, shown: Tensor, count: Tensor) -> Tensor:
            number = z.new_full((), m.shape[1], dtype=wide).expand(z.shape[:-1])
            if masked:
                number = count @ counts.transpose(0, 1)
            return outer_product_update(z, operand(m, shown, a_layer), others, number, *after)

        by_residue = m.transpose(0, 1), mask.transpose(0, 1), counts if masked else mask.transpose(0, 1)
        return Rows(rows).update(update, z, *by_residue, axis=0)

    return _each(each, z, m, _shown(mask, m))


def _each(update: Callable[..., Tensor], x: Tensor, *operands: Tensor) -> Tensor:
    """update(x, *operands) of every member of a batch; kernels take no batch axes."""
    if x.dim() == 3:
        return update(x, *operands)
    new = [_each(update, *members) for members in zip(x, *operands, strict=True)]
    return torch.stack(new) if torch.is_grad_enabled() else x


def _attention(
    x: Tensor, heads: int, norm: Layer, q: Layer, k: Layer, v: Layer, gate: Layer, output: Layer
) -> Callable[..., Tensor]:
    """The update of rows of x by gated attention within each of them."""
    normed, after = _of(x, norm), _of(x, output)
    weight, shift = _joined(x, q, k, v, gate)
    if len(weight) % (4 * heads):
        raise ValueError(f"{heads} heads don't share {len(weight) // 4} channels evenly.")

    def update(x: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
        projected = normed_linear(x, *normed, weight, shift)
        mixed = gated_attention(*projected.unflatten(-1, (4, heads, -1)).unbind(-3), mask, bias)
        return linear_residual(x, mixed, *after)

    return update


def _pair_bias(z: Tensor, layers: tuple[Tensor, ...]) -> Tensor:
    """Attention's bias from pairs [i, n, c_z], heads first."""
    return normed_linear(z, *layers).movedim(-1, 0)


def _of(x: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """Weight and bias as x's operations take them."""
    weight = layer.weight.to(x.dtype)
    return weight, weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.to(x.dtype)


def _joined(x: Tensor, *layers: Layer) -> tuple[Tensor, Tensor]:
    """Projections of one x as a single one, so that x is read once; the weights are small beside any representation."""
    weights, shifts = zip(*(_of(x, layer) for layer in layers), strict=True)
    return torch.cat(weights), torch.cat(shifts)


def _shown(mask: Tensor | None, x: Tensor) -> Tensor:
    """The mask in x's dtype; one that hides nothing as a single number expanded, which operations know at sight."""
    if mask is None:
        return x.new_ones(()).expand(x.shape[:-1])
    if mask.shape != x.shape[:-1]:
        raise ValueError(f"The mask has shape {tuple(mask.shape)}, not {tuple(x.shape[:-1])}.")
    mask = mask.to(x.dtype)
    return mask if any(mask.stride()) else mask.contiguous()  # a single number may be a zero


def _square(z: Tensor) -> None:
    if z.dim() < 3 or z.shape[-2] != z.shape[-3]:
        raise ValueError(f"z is a pair representation [*, N, N, c], not {tuple(z.shape)}.")


def _of_one_protein(m: Tensor, z: Tensor) -> None:
    _square(z)
    if m.shape[-2] != z.shape[-2] or m.shape[:-3] != z.shape[:-3]:
        raise ValueError(f"m is [*, S, N, c] and z [*, N, N, c], not {tuple(m.shape)} and {tuple(z.shape)}.")

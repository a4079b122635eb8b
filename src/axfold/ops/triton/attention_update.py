"""Attention with its projections and residual: of its forward the backward keeps what was mixed, and no projection."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from axfold.ops.attention_update import attention_update
from axfold.ops.triton import attention, attention_backward, linear_residual, normed_linear
from axfold.ops.triton.common import by_row, why_not
from axfold.ops.triton.gradients import arriving, norm_backward, normed


def _why_not(
    x: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    qkv_weight: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    heads: int,
    keep: Tensor | None = None,
) -> str | None:
    width = len(gate_weight)
    if x.dtype == torch.float32:
        return "it has no float32"
    if not x.numel():
        return "there are no numbers"
    layers = norm_weight, norm_bias, qkv_weight, gate_weight, gate_bias, output_weight, output_bias
    if reason := why_not(x, *layers, channels=(x.shape[-1], width)):
        return reason
    row = x.new_empty(1, 1, heads, width // heads)  # as the projections would be
    return attention._why_not(row, row, row, row, mask, bias)


@attention_update.backend("triton", why_not=_why_not, checked=False)  # the kernels of operations that are
def attention_update_triton(
    x: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    qkv_weight: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    heads: int,
    keep: Tensor | None = None,
) -> Tensor:
    """The kernels of its three operations; the backward keeps x, the result of the attention and its sums."""
    layers = norm_weight, norm_bias, qkv_weight, gate_weight, gate_bias, output_weight, output_bias
    return _AttentionUpdate.apply(x, mask, bias, *layers, heads, keep)


def _together(qkv_weight: Tensor, gate_weight: Tensor, gate_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of one projection to q, k, v and gate."""
    shift = torch.cat([gate_bias.new_zeros(len(qkv_weight)), gate_bias])
    return torch.cat([qkv_weight, gate_weight]), shift


class _AttentionUpdate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mask: Tensor,
        bias: Tensor | None,
        norm_weight: Tensor,
        norm_bias: Tensor,
        qkv_weight: Tensor,
        gate_weight: Tensor,
        gate_bias: Tensor,
        output_weight: Tensor,
        output_bias: Tensor,
        heads: int,
        keep: Tensor | None,
    ) -> Tensor:
        weight, shift = _together(qkv_weight, gate_weight, gate_bias)
        projected = normed_linear.normed_linear_triton(x, norm_weight, norm_bias, weight, shift)
        q, k, v, gate = projected.unflatten(-1, (4, heads, -1)).unbind(-3)
        q, k, v, gate = (part.flatten(0, -4) for part in (q, k, v, gate))
        logsum = x.new_empty(len(q), heads, x.shape[-2], dtype=torch.float32)
        mixed = attention.attend(q, k, v, gate, by_row(mask), bias, logsum=logsum).view(*x.shape[:-1], -1)
        del projected, q, k, v, gate
        ctx.save_for_backward(
            x, mask, bias, norm_weight, norm_bias, weight, shift, output_weight, keep, mixed, logsum
        )
        return linear_residual.added(x, mixed, output_weight, output_bias, keep, torch.empty_like(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mask, bias, norm_weight, norm_bias, weight, shift, output_weight, keep, mixed, logsum = (
            ctx.saved_tensors
        )
        update, to_output_bias = arriving(grad, keep)
        mixed = mixed.flatten(0, -3)
        to_output = update.mT @ mixed.flatten(0, 1)
        to_mixed = (update @ output_weight).view(mixed.shape)
        del update
        y = normed(x, norm_weight, norm_bias)
        projected = torch.addmm(shift, y, weight.mT).view(*mixed.shape[:2], 4, logsum.shape[1], -1)
        to_projected = torch.empty_like(projected)
        q, k, v, gate = projected.unbind(2)
        to_gate_bias, to_bias = attention_backward.gradients(
            q,
            k,
            v,
            gate,
            by_row(mask),
            bias,
            mixed,
            logsum,
            to_mixed,
            to_projected.unbind(2),
            ctx.needs_input_grad[2],
        )
        del projected, q, k, v, gate, to_mixed
        each = to_projected.view(-1, len(weight))
        to_weight = each.mT @ y
        torch.mm(each, weight, out=y)  # of the normalised x, which is not needed any more
        to_x, *to_norm = norm_backward(x, norm_weight, y, residual=grad)
        to_qkv, to_gate = to_weight.split([3 * len(weight) // 4, len(weight) // 4])
        to_output_layer = to_output, to_output_bias
        return to_x, None, to_bias, *to_norm, to_qkv, to_gate, to_gate_bias, *to_output_layer, None, None

"""Triton backends of the operations; importing this registers them."""

from contextlib import suppress

from axfold.ops.triton import (
    attention,
    attention_update,
    column,
    frame_error,
    layer_norm,
    linear_residual,
    normed_linear,
    outer,
    point_attention,
    softmax,
    transition,
    triangle,
)

with suppress(
    ImportError, AttributeError
):  # Gluon is young: another release of Triton may name things otherwise
    from axfold.ops.triton import attention_hopper  # noqa: F401

__all__ = [
    "attention",
    "attention_update",
    "column",
    "frame_error",
    "layer_norm",
    "linear_residual",
    "normed_linear",
    "outer",
    "point_attention",
    "softmax",
    "transition",
    "triangle",
]

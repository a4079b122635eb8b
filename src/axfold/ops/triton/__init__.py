"""Triton backends of the operations; importing this registers them."""

from axfold.ops.triton import (
    attention,
    column,
    layer_norm,
    normed_linear,
    outer,
    point_attention,
    softmax,
    transition,
    triangle,
)

__all__ = [
    "attention",
    "column",
    "layer_norm",
    "normed_linear",
    "outer",
    "point_attention",
    "softmax",
    "transition",
    "triangle",
]

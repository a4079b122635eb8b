"""Triton backends of the operations; importing this registers them."""

from axfold.ops.triton import (
    attention,
    column,
    linear_residual,
    normed_linear,
    outer,
    point_attention,
    transition,
    triangle,
)

__all__ = [
    "attention",
    "column",
    "linear_residual",
    "normed_linear",
    "outer",
    "point_attention",
    "transition",
    "triangle",
]

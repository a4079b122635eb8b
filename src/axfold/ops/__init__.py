"""Operations that must be fast: the contract and a plain PyTorch reference of each, with its backends.

docs/kernels.md has them all, with their use in other models: `updates` are whole modules put together of them.
"""

from importlib.util import find_spec

from axfold.ops.attention import gated_attention
from axfold.ops.attention_update import attention_update
from axfold.ops.column import global_column_attention
from axfold.ops.frame_error import distance_error, frame_error
from axfold.ops.layer_norm import layer_norm
from axfold.ops.linear_residual import linear_residual
from axfold.ops.normed_linear import normed_linear
from axfold.ops.op import BackendError, Op
from axfold.ops.outer import outer_product_update
from axfold.ops.point_attention import invariant_point_attention
from axfold.ops.residual import add
from axfold.ops.softmax import softmax
from axfold.ops.transition import transition
from axfold.ops.triangle import triangle_operand, triangle_update
from axfold.ops.updates import (
    Layer,
    Weights,
    msa_column_attention,
    msa_global_column_attention,
    msa_row_attention,
    outer_product_mean,
    triangle_attention,
    triangle_multiplication,
)

if find_spec("triton"):  # which no machine without a GPU needs
    import axfold.ops.triton  # noqa: F401 - registers the backends

__all__ = [
    "BackendError",
    "Layer",
    "Op",
    "Weights",
    "add",
    "attention_update",
    "distance_error",
    "frame_error",
    "gated_attention",
    "global_column_attention",
    "invariant_point_attention",
    "layer_norm",
    "linear_residual",
    "msa_column_attention",
    "msa_global_column_attention",
    "msa_row_attention",
    "normed_linear",
    "outer_product_mean",
    "outer_product_update",
    "softmax",
    "transition",
    "triangle_attention",
    "triangle_multiplication",
    "triangle_operand",
    "triangle_update",
]

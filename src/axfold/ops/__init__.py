"""Operations that must be fast: the contract and a plain PyTorch reference of each, with its backends."""

from axfold.ops.attention import gated_attention
from axfold.ops.op import BackendError, Op
from axfold.ops.residual import add

__all__ = ["BackendError", "Op", "add", "gated_attention"]

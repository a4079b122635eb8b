"""Triton backends of the operations; importing this registers them."""

from axfold.ops.triton import attention, normed_linear, outer, transition, triangle

__all__ = ["attention", "normed_linear", "outer", "transition", "triangle"]

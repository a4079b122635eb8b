"""What tests of the operations share: inputs, and where the Triton kernels can run.

Kernels run on a GPU where there is one, and on the CPU by Triton's interpreter: `test_interpreter.py` starts it in a
process of its own, since it must be chosen before Triton is imported.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SIZES = [(1, 1), (3, 17), (2, 63)]  # rows, positions

# the interpreter multiplies the bits of bfloat16 as if they were integers
DTYPES = [torch.float32, torch.float16, *([] if INTERPRETED else [torch.bfloat16])]
EXACT = torch.float32
TOLERANCE = 1e-5

if INTERPRETED:
    from triton.runtime import interpreter

    _patch_tensors = interpreter._patch_lang_tensor

    def _patch(tensor: Any, scope: Any) -> None:
        """Loop bounds are arrays of one element there, which NumPy 2.4 doesn't convert to a number any more."""
        _patch_tensors(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = _patch


def kernel(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test of kernels, for a GPU or the interpreter."""
    here = INTERPRETED or torch.cuda.is_available()
    return pytest.mark.gpu(
        pytest.mark.skipif(not here, reason="needs a GPU; test_interpreter.py runs it too")(test)
    )


def on_a_gpu(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test of kernels at sizes that only a GPU can take."""
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")(test))


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def norm(c: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of a LayerNorm."""
    return 1 + 0.2 * normal(c), 0.2 * normal(c, seed=1)


def linear(out: int, c: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer."""
    return normal(out, c) / c**0.5, 0.2 * normal(out)


def mask_of(rows: int, n: int, masked: bool) -> Tensor:
    """Some zeros, or a single number expanded, which hides nothing."""
    ones = torch.ones((), dtype=torch.float64).expand(rows, n)
    return (normal(rows, n) > -0.5).double() if masked else ones


def dropout(*shape: int) -> Tensor:
    return (normal(*shape) > -0.5).double() / 0.75


def transposed(x: Tensor) -> Tensor:
    """The same numbers, with their two leading axes exchanged in memory."""
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def convert(arguments: tuple[Tensor | None, ...], dtype: torch.dtype) -> list[Tensor | None]:
    """Copies of that dtype where kernels run; what is expanded stays it, and strides are kept."""
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def copy(x: Tensor) -> Tensor:
        if x.dim() and not any(x.stride()):
            return x[0, 0].to(device, dtype).expand(x.shape)
        out = torch.empty_strided(x.shape, x.stride(), device=device, dtype=dtype)
        return out.copy_(x)

    return [None if x is None else copy(x) for x in arguments]


@torch.no_grad()
def assert_rounds_like_the_reference(
    op, *arguments: Tensor | None, dtype: torch.dtype, in_place: bool = False, tile: Any = None
) -> Tensor:
    """The kernel's result, which deviates from float64's at most twice as much as the reference's in that dtype.

    `tile` is one that the device would not take by itself.
    """
    numbers = convert(arguments, dtype)
    exact = op(*(x if x is None else x.double() for x in convert(arguments, dtype)), backend="reference")
    reference = op(*convert(arguments, dtype), backend="reference")
    found = op.backends["triton"][0](*numbers, tile=tile) if tile else op(*numbers, backend="triton")
    if in_place:
        assert found.data_ptr() == numbers[0].data_ptr()
        assert found.stride() == numbers[0].stride()
    error = (found[..., : exact.shape[-1]] - exact).norm()
    assert error <= 2 * (reference - exact).norm() + 1e-6 * exact.norm()
    return found

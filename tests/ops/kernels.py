"""What tests of the operations share: inputs, and where the Triton kernels can run.

Kernels run on a GPU where there is one, and on the CPU by Triton's interpreter: `test_interpreter.py` starts it in a
process of its own, since it must be chosen before Triton is imported.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
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


def assert_gradients_round_like_the_reference(
    op, *arguments: Tensor | int | None, dtype: torch.dtype, fixed: tuple[int, ...] = ()
) -> None:
    """The result and all gradients but those of the `fixed` arguments, each as in the assertion above.

    Twice, for every sum is taken in the same order in every run.
    """
    tensors = [x if isinstance(x, Tensor) else None for x in arguments]

    def call(numbers: list[Tensor | None], backend: str) -> tuple[Tensor, ...]:
        given = [
            value if x is None else x.requires_grad_(i not in fixed)
            for i, (x, value) in enumerate(zip(numbers, arguments, strict=True))
        ]
        out = op(*given, backend=backend)
        leaves = [x for i, x in enumerate(given) if isinstance(x, Tensor) and i not in fixed]
        upstream = normal(*shape, seed=5).to(out)
        if numbers[0].stride(0) < numbers[0].stride(1):
            upstream = transposed(upstream)
        upstream = F.pad(upstream, (0, out.shape[-1] - shape[-1]))  # as a backend may pad its result
        return out.detach(), *torch.autograd.grad(out, leaves, upstream)

    wide = [x if x is None else x.double() for x in convert(tensors, dtype)]
    with torch.no_grad():
        shape = op(
            *[v if x is None else x for x, v in zip(wide, arguments, strict=True)], backend="reference"
        ).shape
    exact = call([x if x is None else x.clone() for x in wide], "reference")
    reference = call(convert(tensors, dtype), "reference")
    found, again = (call(convert(tensors, dtype), "triton") for _ in range(2))
    for i, (one, same, other, true) in enumerate(zip(found, again, reference, exact, strict=True)):
        assert one.dtype == dtype
        assert torch.equal(one, same)
        one = one[..., : true.shape[-1]]
        error, rounding = (one - true).norm(), (other[..., : true.shape[-1]] - true).norm()
        least = (
            1e-6 if true.norm() else torch.finfo(dtype).eps
        )  # a gradient that is 0 has no rounding of its own
        allowed = 2 * rounding + least * (true.norm() or exact[0].norm())
        assert error <= allowed, f"{i}: {error} of {true.norm()}, the reference {rounding}"

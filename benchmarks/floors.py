"""The floor under the time of an operation: its products and its memory traffic at the speeds that a GPU really has.

python benchmarks/floors.py     # prints those speeds, the ceilings
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Arguments = Sequence[Tensor | None]


def _positions(x: Tensor) -> int:
    """How many vectors of channels there are."""
    return x.numel() // x.shape[-1]


def _attention(q: Tensor, k: Tensor, *_: Any) -> int:
    return 4 * q.numel() * k.shape[-3]


def _normed_linear(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, *_: Any) -> int:
    return 2 * _positions(x) * weight.numel()


def _linear_residual(x: Tensor, y: Tensor, weight: Tensor, *_: Any) -> int:
    return 2 * _positions(y) * weight.numel()


def _triangle_operand(
    z: Tensor, mask: Tensor, norm: Tensor, norm_bias: Tensor, weight: Tensor, *_: Any
) -> int:
    return 2 * _positions(z) * weight.numel()


def _triangle_update(z: Tensor, own: Tensor, others: Tensor, *rest: Any) -> int:
    output, gate = rest[4], rest[6]
    return 2 * own.numel() * others.shape[-2] + 2 * _positions(z) * (output.numel() + gate.numel())


def _transition(
    x: Tensor, norm: Tensor, norm_bias: Tensor, expand: Tensor, bias: Tensor, output: Tensor, *_: Any
) -> int:
    return 2 * _positions(x) * (expand.numel() + output.numel())


def _outer_product_mean(z: Tensor, a: Tensor, b: Tensor, count: Tensor, weight: Tensor, *_: Any) -> int:
    return 2 * a.numel() * b.shape[-2] * b.shape[-1] + 2 * _positions(z) * weight.numel()


def _global_column_attention(m: Tensor, mask: Tensor, *rest: Any) -> int:
    query, keys_and_values, gate, output = rest[2], rest[3], rest[4], rest[6]
    rows = _positions(m) // m.shape[-2]
    of_each = keys_and_values.numel() + gate.numel() + output.numel() + 2 * len(query)
    return 2 * rows * query.numel() + 2 * _positions(m) * of_each


def _invariant_point_attention(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> int:
    points, values, z = rest[0], rest[2], rest[4]
    heads = q.shape[-2]
    of_each = q.shape[-1] + v.shape[-1] + 3 * points.shape[-2] + 3 * values.shape[-2] + 2 * z.shape[-1]
    return 2 * _positions(z) * heads * of_each


PRODUCTS: dict[str, Callable[..., int]] = {
    "gated_attention": _attention,
    "normed_linear": _normed_linear,
    "linear_residual": _linear_residual,
    "triangle_operand": _triangle_operand,
    "triangle_update": _triangle_update,
    "transition": _transition,
    "outer_product_update": _outer_product_mean,
    "global_column_attention": _global_column_attention,
    "invariant_point_attention": _invariant_point_attention,
}
"""Name of an operation -> floating-point operations of the products of a call, of its arguments."""


def work(op: str, arguments: Arguments, result: Tensor | tuple[Tensor, ...]) -> dict[str, int]:
    """What a call can't do without: `operations` of its products, and `bytes` that are read or written once.

    Operations are left out where PRODUCTS does not know the op. Exponentials, normalisation and whatever an
    implementation writes in between are not counted: the floor is lower than anything can be.
    """
    results = result if isinstance(result, tuple) else (result,)
    need = {"bytes": sum(_bytes(x) for x in (*arguments, *results) if x is not None)}
    if op in PRODUCTS:
        need["operations"] = PRODUCTS[op](*arguments)
    return need


def _bytes(x: Tensor) -> int:
    """Of what the tensor shows: numbers that it repeats count once."""
    size = x.element_size()
    for length, stride in zip(x.shape, x.stride(), strict=True):
        size *= length if stride else min(length, 1)
    return size


def seconds(need: dict[str, int], ceilings: dict[str, float]) -> float:
    """The floor: the slower of the two, as if they went on at the same time."""
    products = need.get("operations", 0) / ceilings["operations_per_second"]
    return max(products, need["bytes"] / ceilings["bytes_per_second"])


def measure(
    dtype: torch.dtype, device: torch.device, size: int = 8192, copied: int = 2**30
) -> dict[str, float]:
    """The ceilings: the speed of a large product, and of a copy of so many bytes (read and written)."""
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    source = torch.empty(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return {
        "operations_per_second": 2 * size**3 / _fastest(lambda: torch.mm(a, b), device),
        "bytes_per_second": 2 * copied / _fastest(lambda: target.copy_(source), device),
    }


def _fastest(run: Callable[[], Any], device: torch.device, repeats: int = 10) -> float:
    """Seconds of the fastest of some runs, after one that is not counted."""

    def once() -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    once()
    return min(once() for _ in range(repeats))


if __name__ == "__main__":
    for kind in (torch.bfloat16, torch.float32):
        found = measure(kind, torch.device("cuda"))
        print(
            f"{kind}: {found['operations_per_second'] / 1e12:.1f} TFLOP/s, {found['bytes_per_second'] / 1e9:.0f} GB/s"
        )

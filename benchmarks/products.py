"""How exact float32 products on tensor cores are, by emulation on the CPU: the table of docs/experiments.md.

python benchmarks/products.py

Tensor cores are taken to cut a sum off at 24 bits after every 8 products of TF32 and 16 of bfloat16 or float16 (whose
numbers are taken to have any exponent: kernels scale them). Errors are against
float64, as a share of those of fused multiply-adds in float32, one after the other; the last two lines are a share of
those of rounded TF32.
"""

from collections.abc import Sequence

import numpy as np

DEPTHS = (32, 64, 128, 256, 1024)
TF32, BF16, FP16 = 11, 8, 11  # bits of a number, the hidden one included


def cut(x: np.ndarray) -> np.ndarray:
    """x as float32, rounded towards zero."""
    near = x.astype(np.float32)
    return np.where(np.abs(near) > np.abs(x), np.nextafter(near, np.float32(0)), near).astype(np.float64)


def single(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32).astype(np.float64)


def rounded(x: np.ndarray, bits: int) -> np.ndarray:
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * 2**bits) / 2**bits, exponent)


def parts(x: np.ndarray, bits: int, number: int) -> list[np.ndarray]:
    """Numbers of few bits that add up to x, nearly."""
    found = []
    for _ in range(number):
        found.append(rounded(x, bits))
        x = x - found[-1]
    return found


def in_sequence(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    total = np.zeros((len(a), b.shape[1]))
    for k in range(a.shape[1]):
        total = single(total + a[:, k : k + 1] * b[k : k + 1])
    return total


def on_tensor_cores(
    a: np.ndarray, b: np.ndarray, bits: int, pairs: Sequence[tuple[int, int]], depth: int, step: int
) -> np.ndarray:
    """The products of these pairs of parts, in turn, cut after every `step`; sums of `depth` are added in float32."""
    total = np.zeros((len(a), b.shape[1]))
    for start in range(0, a.shape[1], depth):
        own, others = (parts(x, bits, 3) for x in (a[:, start : start + depth], b[start : start + depth]))
        current = np.zeros_like(total)
        for i, j in pairs:
            for k in range(0, own[i].shape[1], step):
                current = cut(current + own[i][:, k : k + step] @ others[j][k : k + step])
        total = single(total + current)
    return total


def main() -> None:
    random = np.random.default_rng(0)
    one, three = [(0, 0)], [(1, 0), (0, 1), (0, 0)]
    six = [(1, 1), (2, 0), (0, 2), *three]
    methods = {
        "3 TF32": (TF32, three, None, 8),
        "3 TF32, in parts": (TF32, three, 32, 8),
        "6 bfloat16": (BF16, six, None, 16),
        "6 bfloat16, in parts": (BF16, six, 32, 16),
        "3 float16": (FP16, three, None, 16),
        "3 float16, in parts": (FP16, three, 32, 16),
    }
    print(f"{'':24}" + "".join(f"{depth:>8}" for depth in DEPTHS))
    rows: dict[str, list[float]] = {}
    for depth in DEPTHS:
        a = single(random.standard_normal((128, depth)))
        b = single(random.standard_normal((depth, 128)))
        exact = a @ b

        def error(found: np.ndarray, exact: np.ndarray = exact) -> float:
            return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))

        least = error(in_sequence(a, b))
        for name, (bits, pairs, size, step) in methods.items():
            rows.setdefault(name, []).append(
                error(on_tensor_cores(a, b, bits, pairs, size or depth, step)) / least
            )
        short = error(on_tensor_cores(a, b, TF32, one, depth, 8))
        cut_off = ((x.astype(np.float32).view(np.int32) & ~0x1FFF).view(np.float32) for x in (a, b))
        x, y = (part.astype(np.float64) for part in cut_off)
        rows.setdefault("TF32, cut off", []).append(error(on_tensor_cores(x, y, TF32, one, depth, 8)) / short)
        rows.setdefault("3 bfloat16", []).append(error(on_tensor_cores(a, b, BF16, three, depth, 16)) / short)
    for name, values in rows.items():
        print(f"{name:24}" + "".join(f"{value:8.3f}" for value in values))


if __name__ == "__main__":
    main()

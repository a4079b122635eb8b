"""How fast devices are, and from that how long a pass takes: good to a factor of about one and a half."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """What PyTorch reaches on a device, not what its data sheet says.

    products, attention: floating-point operations a second of matrix products and of attention with a bias, in
    bfloat16 and in float32 (without TF32); memory, bus: bytes a second; launch: seconds to start one operation
    kernels: products and attention in bfloat16 where axfold's own kernels run around them; None is not measured
    full: rows of a block with which a product of rows with a whole matrix runs at full speed
    """

    products: tuple[float, float]
    attention: tuple[float, float]
    memory: float
    bus: float
    launch: float
    full: int = 300
    kernels: tuple[float, float] | None = None

    def speeds(self, wide: bool, kernels: frozenset[str]) -> tuple[float, float]:
        """Of products and of attention; wide: in float32; kernels: ops whose own kernels run."""
        products, attention = self.products[wide], self.attention[wide]
        if self.kernels and not wide:
            products = self.kernels[0] if "triangle_update" in kernels else products
            attention = self.kernels[1] if "gated_attention" in kernels else attention
        return products, attention


_DEVICES = (
    (r"H200", Rates((650e12, 45e12), (49e12, 22e12), 3.8e12, 42e9, 6e-6, kernels=(550e12, 240e12))),
    (
        r"H100|GH200",
        Rates((600e12, 42e12), (49e12, 20e12), 2.8e12, 42e9, 6e-6, kernels=(550e12, 240e12)),
    ),
    (r"A100", Rates((240e12, 17e12), (35e12, 11e12), 1.4e12, 20e9, 7e-6)),
    (r"L40|RTX 6000 Ada|RTX 4090", Rates((150e12, 50e12), (50e12, 25e12), 0.85e12, 20e9, 6e-6)),
    (r"RTX 40\d\d|L4", Rates((80e12, 25e12), (25e12, 12e12), 0.45e12, 20e9, 6e-6)),
    (r"RTX 30\d\d|A10|A40|RTX A", Rates((60e12, 15e12), (18e12, 8e12), 0.6e12, 20e9, 7e-6)),
    (r"T4|V100|RTX 20\d\d", Rates((6e12, 7e12), (4e12, 4e12), 0.3e12, 10e9, 8e-6)),
)
_CPU_CORE = Rates((60e9, 95e9), (25e9, 45e9), 10e9, 10e9, 3e-6, full=16)
UNKNOWN_GPU = "H100"


def rates_of(device: str, cores: int = 1) -> Rates:
    """Of the GPU with this name, else of an H100's; "cpu" has `cores`."""
    if device == "cpu":
        c, core = cores**0.9, _CPU_CORE
        both = tuple((x * c, y * c) for x, y in (core.products, core.attention))
        return Rates(both[0], both[1], core.memory * min(c, 12), core.bus, core.launch, core.full)
    for pattern, rates in _DEVICES:
        if re.search(pattern, device):
            return rates
    return rates_of(UNKNOWN_GPU)

"""What the memory and the time of a pass are held to: settings of memory.py by name, with a limit each."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Target:
    """One setting and its limit.

    residues: None are the most that fit; tier: None is the fastest that fits; blocks: of each stack that run, None
    all of them; budget: of the device's memory, used to the last byte if `full`; kept: rows of an offloaded pair that
    stay on the device, None as many as there is room for
    gib: limit of the peak; units: of what lies above the weights and the MSA's tensors, in pair representations;
    against, times: limit of the seconds, in those of another target
    """

    residues: int | None
    precision: str = "bf16"
    tier: str | None = "resident"
    model: str = "model_3"
    templates: int = 0
    blocks: int | None = 1
    budget: str | None = None
    full: bool = False
    kept: int | None = 0
    gib: float | None = None
    units: float | None = None
    against: str | None = None
    times: float | None = None


TARGETS = {
    "bf16-1200": Target(residues=1200, gib=2.0),
    "bf16-2048": Target(residues=2048, gib=4.3),
    "fp32-1200": Target(residues=1200, precision="fp32", budget="3.29GiB", full=True, gib=3.3),
    "fp32-1200-budget": Target(residues=1200, precision="fp32", tier=None, budget="2.2GiB", gib=2.2),
    "bf16-3072": Target(residues=3072, gib=8.0, units=2.3),
    "bf16-8GB": Target(residues=None, budget="8GB", gib=8e9 / 2**30),
    "bf16-3072-offload": Target(residues=3072, tier="offload", budget="3.4GiB", units=1.4),
    "bf16-4096": Target(residues=4096, gib=13, blocks=4),
    "bf16-4096-offload": Target(residues=4096, tier="offload", blocks=4, against="bf16-4096", times=1.6),
    "bf16-8192": Target(residues=8192, blocks=2),
    "bf16-8192-offload": Target(residues=8192, tier="offload", blocks=2, against="bf16-8192", times=1.2),
    "bf16-10000": Target(residues=10000, blocks=2, gib=60),
    "bf16-10000-offload": Target(residues=10000, tier="offload", blocks=2, budget="34GiB", kept=None, gib=34),
    "fp32-7000": Target(residues=7000, precision="fp32", gib=62),
    "bf16-8GB-offload": Target(residues=None, tier="offload", budget="8GB", kept=None, gib=8e9 / 2**30),
    "bf16-16000-offload": Target(residues=16000, tier="offload", kept=None, gib=79),
}
"""Those that take long stand last."""

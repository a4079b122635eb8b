"""No length has kernels of its own: what Triton compiles for a pass does not depend on the number of residues.

Triton compiles a kernel anew for other types of its arguments, other constants, and integers or addresses that are 1 or
multiples of 16. A pass of the network runs here on PyTorch's "meta" device, where nothing is computed, and every launch
is noted instead of made.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from axfold import ops
from axfold.config import PRESETS
from axfold.data.features import FEATURES
from axfold.model import alphafold
from axfold.ops import cases, small

pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from axfold.ops.triton import tiles
from axfold.ops.triton.common import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="Triton compiles nothing in its interpreter")

Variant = tuple[str, str]


class Address:
    """Stands for a tensor: its type, and an address that is a multiple of 16 as those of PyTorch's are."""

    def __init__(self, x: Tensor):
        self.dtype = x.dtype

    def data_ptr(self) -> int:
        return 0


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> set[Variant]:
    """What kernels have been launched: their names, and all that they would be compiled for."""
    found: set[Variant] = set()
    backend = make_backend(GPUTarget("cuda", 90, 32))

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        given = [Address(x) if isinstance(x, Tensor) else x for x in args]
        _, specialization, options = bind(*given, **named)
        found.add((f"{kernel.__module__}.{kernel.__name__}", f"{specialization} {options}"))

    monkeypatch.setattr(JITFunction, "run", note)
    monkeypatch.setattr(tiles, "gpu", lambda device: (90, 132))
    monkeypatch.setattr(alphafold, "present", lambda mask, like: like.new_ones(()).expand_as(mask))
    for op in (getattr(ops, name) for name in ops.__all__):
        if isinstance(op, ops.Op) and "triton" in op.backends:
            run, _ = op.backends["triton"]
            monkeypatch.setattr(op, "backends", {**op.backends, "triton": (run, lambda *args: None)})
    return found


@pytest.fixture(scope="module")
def one_pass() -> Callable[[int, int, int], None]:
    """Runs a pass of model_5 with one block of each stack over so many residues, clusters and extra sequences."""
    sizes = PRESETS["model_5"].model
    sizes = replace(
        sizes, evoformer=replace(sizes.evoformer, blocks=1), extra_stack=replace(sizes.extra_stack, blocks=1)
    )
    with torch.device("meta"):
        network = alphafold.AlphaFold(sizes).to_precision(torch.bfloat16).eval().requires_grad_(False)

    def run(residues: int, clusters: int, extra: int) -> None:
        axes = {"N": residues, "S": clusters, "E": extra}
        features = {
            name: torch.empty(
                [axes.get(str(size), size) for size in feature.shape],  # type: ignore[misc]
                dtype=torch.from_numpy(np.empty(0, feature.dtype)).dtype,
                device="meta",
            )
            for name, feature in FEATURES.items()
            if feature.read and "T" not in feature.shape
        }
        with torch.no_grad():
            network([features])

    return run


def test_no_kernel_is_compiled_for_a_length(
    launched: set[Variant], one_pass: Callable[[int, int, int], None]
) -> None:
    one_pass(64, 128, 192)
    first = set(launched)
    assert len(first) > 15  # they were launched
    for residues in (65, 80, 300):
        one_pass(residues, 128, 192)
    assert launched == first


def test_depths_of_alignments_share_kernels(
    launched: set[Variant], one_pass: Callable[[int, int, int], None]
) -> None:
    """But for column attention, which hides what is missing in the last tile of its keys."""
    one_pass(64, 128, 192)
    first = set(launched)
    for clusters, extra in ((101, 77), (96, 160)):
        one_pass(64, clusters, extra)
    assert len(launched - first) <= 1


def test_checks_compile_what_a_pass_launches(
    launched: set[Variant], one_pass: Callable[[int, int, int], None]
) -> None:
    """So that kernels that have been checked, or made ready, are not compiled again."""
    for call in cases.calls(torch.bfloat16):
        if "triton" in call.op.backends and call.op.small is not None:
            call.op.backends["triton"][0](*small.draw(call.op.small(*call.arguments), torch.device("meta")))
    checked = set(launched)
    one_pass(64, 128, 192)
    new = launched - checked
    assert {name for name, _ in new} <= {"axfold.ops.triton.attention._attend"}, new
    assert len(new) <= 1  # of the columns, where no key is missing in the last tile

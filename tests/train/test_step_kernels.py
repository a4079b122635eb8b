"""A step by kernels: its gradients are those of the definitions in float32, but for rounding to half precision."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_step import features_of, known_of, labels_together, padded, stacked

from axfold import config, ops
from axfold.model.alphafold import AlphaFold
from axfold.model.rigid import Rigid
from axfold.train import step
from axfold.train.labels import Labels

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
from kernels import INTERPRETED, kernel, on_a_gpu

HALF = torch.float16 if INTERPRETED else torch.bfloat16
OPS = tuple(op for name in ops.__all__ if isinstance(op := getattr(ops, name), ops.Op))


def narrow() -> config.Model:
    """The model `demo`, as narrow as kernels can be."""
    sizes = config.PRESETS["demo"].model
    pair = replace(sizes.evoformer.pair, heads=2, c_attention=8, c_multiplication=16)
    stack = replace(sizes.evoformer, blocks=1, heads=2, c_attention=8, c_outer_product=8, pair=pair)
    return replace(
        sizes,
        c_m=32,
        c_z=16,
        c_e=16,
        c_s=16,
        extra_stack=replace(stack, global_column_attention=True),
        evoformer=stack,
        structure=replace(sizes.structure, layers=2, heads=2, c_hidden=4, c_angles=8),
    )


def sample(device: str) -> tuple[dict[str, torch.Tensor], Labels]:
    """A padded batch of two proteins, in float32."""
    features = [features_of(n, seed) for seed, n in enumerate((17, 11))]
    known = labels_together([known_of(each, seed) for seed, each in enumerate(features)])

    def narrowed(x: torch.Tensor) -> torch.Tensor:
        return x.to(device, torch.float32 if x.is_floating_point() else x.dtype)

    fields = {
        name: Rigid(narrowed(x.rotation), narrowed(x.translation)) if isinstance(x, Rigid) else narrowed(x)
        for name, x in vars(known).items()
    }
    batch = stacked([padded(each) for each in features])
    return {name: narrowed(x) for name, x in batch.items()}, Labels(**fields)


def gradients(
    network: AlphaFold, features: dict[str, torch.Tensor], labels: Labels
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Losses, and the gradients of each kind of parameter together."""
    network.zero_grad()
    found = step.gradients(network, [features, features], labels, config.Loss())
    return found.total, by_kind(network)


def by_kind(network: AlphaFold) -> dict[str, torch.Tensor]:
    """Gradients of the same layers of all blocks together."""
    kinds: dict[str, list[torch.Tensor]] = {}
    for name, p in network.named_parameters():
        if p.grad is not None:
            kinds.setdefault(re.sub(r"blocks\.\d+", "blocks", name).rpartition(".")[0], []).append(
                p.grad.flatten()
            )
    return {kind: torch.cat(many).double() for kind, many in kinds.items()}


def compare(sizes: config.Model, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = sample(device)
    torch.manual_seed(0)
    network = AlphaFold(sizes).eval()  # drops nothing: what is dropped depends on the precision
    for p in network.parameters():
        p.data += 0.02 * torch.randn_like(p)
        p.data = p.data.to(HALF).float()  # which half precision rounds no more
    network = network.to(device)

    def run(dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return gradients(network.to_precision(dtype), features, labels)

    calls = []
    for op in OPS:
        if "triton" in op.backends:
            taken, why_not = op.backends["triton"]

            def counted(*args, op=op, taken=taken):
                calls.append(op)
                return taken(*args)

            monkeypatch.setitem(op.backends, "triton", (counted, why_not))
    found_loss, found = run(HALF)
    names = {op.name for op in calls}
    used = {"attention_update", "transition", "normed_linear", "triangle_operand", "triangle_update"}
    assert used | {"outer_product_update", "frame_error"} <= names
    for op in OPS:
        monkeypatch.setattr(op, "backends", {"reference": op.backends["reference"]})
    exact_loss, exact = run(torch.float32)
    rounded_loss, rounded = run(HALF)
    assert set(found) == set(exact)

    def error(some: dict[str, torch.Tensor]) -> float:
        return sum(float((some[kind] - exact[kind]).square().sum()) for kind in exact) ** 0.5

    size = sum(float(x.square().sum()) for x in exact.values()) ** 0.5
    print(
        f"gradient {size:.3e}: kernels {error(found):.2e}, definitions in half precision {error(rounded):.2e}"
    )
    assert error(found) <= 2 * error(rounded) + 1e-3 * size
    for kind, true in exact.items():
        if kind.startswith(("heads.confidence", "heads.aligned_error")):
            continue  # they learn bins of what was predicted, which rounding moves
        off, rounding = ((some[kind] - true).norm() for some in (found, rounded))
        assert off <= 3 * rounding + 0.1 * true.norm() + 1e-6 * size, (
            f"{kind}: {off} of {true.norm()}, {rounding}"
        )
    torch.testing.assert_close(found_loss, exact_loss, rtol=2e-2, atol=1e-2)
    torch.testing.assert_close(rounded_loss, exact_loss, rtol=2e-2, atol=1e-2)


@kernel
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_gradients_of_a_step_by_kernels(monkeypatch):
    compare(narrow(), "cuda" if torch.cuda.is_available() else "cpu", monkeypatch)


@on_a_gpu
def test_gradients_of_a_step_of_the_demo_model(monkeypatch):
    compare(config.PRESETS["demo"].model, "cuda", monkeypatch)


@on_a_gpu
def test_what_is_recorded_computes_what_is_launched():
    features, labels = sample("cuda")
    torch.manual_seed(0)
    network = AlphaFold(config.PRESETS["demo"].model).cuda().to_precision(HALF).eval()
    wanted_loss, wanted = gradients(network, features, labels)
    recorded = step.Recorded(network, config.Loss())
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(2):  # the first records, the second only replays
        for p in network.parameters():
            p.grad.zero_()
        found = recorded([features, features], labels)
        torch.testing.assert_close(found.total, wanted_loss, rtol=1e-3, atol=1e-3)
        off = {kind: x - wanted[kind] for kind, x in by_kind(network).items() if kind in wanted}
        assert set(off) == set(wanted)
        size = sum(float(x.square().sum()) for x in wanted.values()) ** 0.5
        assert sum(float(x.square().sum()) for x in off.values()) ** 0.5 <= 1e-2 * size

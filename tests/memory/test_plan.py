"""What a plan predicts against what is measured; which plan is chosen; what is refused."""

import gc
import inspect
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from sizes import make_features, make_network, sizes_of

from axfold.config import PRESETS
from axfold.forecast import sizes_for
from axfold.memory.apply import apply
from axfold.memory.costs import KERNELS, costs
from axfold.memory.host import Bus
from axfold.memory.meter import Meter
from axfold.memory.plan import CPU, SETUPS, TIERS, DoesNotFit, max_length, plan, with_blocks
from axfold.model import alphafold, embed, evoformer, heads, layers, msa, pair, structure, template
from axfold.model.alphafold import AlphaFold
from axfold.model.layers import RowUpdate

GIB = 2**30
MODULES = (alphafold, embed, evoformer, heads, layers, msa, pair, structure, template)

# residues, clusters, extra sequences, templates, rows at once
SHAPES = [
    (64, 16, 96, 0, None),
    (70, 24, 40, 2, 24),  # blocks that don't divide anything
    (65, 20, 200, 1, 7),  # an extra MSA that is larger than the pair
]
CASES = [
    *((shape, dtype, i) for shape in SHAPES for dtype in ("float32", "bfloat16") for i in range(len(SETUPS))),
    *(((256, 8, 16, 0, 64), "float32", i) for i in (0, 5)),
    *(((64, 1, 1, 0, 1), "bfloat16", i) for i in (0, 5)),
]
CASES = [
    *((*case, 0, False) for case in CASES),
    *(
        (shape, dtype, 3, kept, handovers)
        for shape in (SHAPES[1], (256, 8, 16, 0, 64))
        for dtype in ("float32", "bfloat16")
        for kept, handovers in ((0, True), (30, False), (50, True))
    ),
]


def measured(network, features, found, device="cpu"):
    """Two passes: what the first leaves behind is there in the second."""
    bus = Bus(torch.device(device))
    apply(network, found, bus)
    with (
        torch.inference_mode(),
        Meter(network, torch.device(device), bus=bus, tensors=device == "cpu") as meter,
    ):
        recycled = None
        for _ in range(2):
            result = network([features], recycled)
            recycled = result.recycled()
            del result
    return meter


@pytest.mark.parametrize(("shape", "dtype", "setup", "kept", "handovers"), CASES, ids=str)
def test_the_peak_is_predicted(shape, dtype, setup, kept, handovers):
    *lengths, rows = shape
    network = make_network(lengths[-1], getattr(torch, dtype))
    sizes = sizes_of(network, *lengths)
    found = with_blocks(sizes, SETUPS[setup], rows, kept=kept, handovers=handovers)
    meter = measured(network, make_features(*lengths), found)
    beside = sizes.weights
    ratio = (found.peak_device_bytes - beside) / (meter.peak_bytes - beside)
    assert 0.95 <= ratio <= 1.05


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peak_with_a_context_in_parts_is_predicted(dtype):
    lengths = (130, 4, 2000, 0)
    network = make_network(0, getattr(torch, dtype))
    sizes = sizes_of(network, *lengths)
    stage = "extra MSA stack: outer product mean"
    whole, found = (
        with_blocks(sizes, SETUPS[0], 24, context_bytes=limit) for limit in (None, 64 * 2000 * 32 * 4)
    )
    assert found.peaks[stage] < whole.peaks[stage]
    meter = measured(network, make_features(*lengths), found)
    peak = meter.as_dict()["stages"][stage]["peak_bytes"]
    beside = sizes.weights
    assert 0.95 <= (found.peaks[stage] - beside) / (peak - beside) <= 1.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_peak_of_every_stage_is_predicted(dtype):
    """So that no line of the costs hides behind the largest."""
    lengths, rows = (96, 32, 200, 2), 24
    network = make_network(2, dtype)
    sizes = sizes_of(network, *lengths)
    found = with_blocks(sizes, CPU, rows)
    meter = measured(network, make_features(*lengths), found)
    for stage, peak in found.peaks.items():
        predicted, there = peak - sizes.weights, meter.readings[stage].peak_bytes - sizes.weights
        assert predicted == pytest.approx(there, rel=0.03), stage


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize(
    ("tier", "kept"), [*((tier, None) for tier in TIERS), ("offload", 0), ("offload", 100)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [256, 509])
def test_the_peak_is_predicted_on_a_gpu(n, dtype, tier, kept):
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()  # the plan counts one
    before = torch.cuda.memory_allocated()  # what earlier tests hold
    network = make_network(0, dtype, "cuda")
    sizes = sizes_of(network, n, 128, 1024, 0, on_gpu=True)
    found = plan(sizes, 8 * GIB, tier=tier, kept=kept)
    meter = measured(network, make_features(n, 128, 1024, 0, "cuda"), found, "cuda")
    assert 0.95 <= found.peak_device_bytes / (meter.peak_bytes - before) <= 1.05


def test_every_stage_has_a_cost_and_every_cost_a_stage():
    classes = {
        item
        for module in MODULES
        for _, item in inspect.getmembers(module, inspect.isclass)
        if issubclass(item, RowUpdate) and item is not RowUpdate
    }
    stages = {item.stage for item in classes}
    assert len(stages) == len(classes)
    everything = sizes_for(PRESETS["model_1_ptm"], 100, "fp32", templates=4)
    assert {cost.stage for cost in costs(everything)} == stages


@pytest.mark.parametrize("name", ["model_1_ptm", "model_3"])
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_weights_are_those_of_the_network(name, precision, dtype):
    with torch.device("meta"):
        network = AlphaFold(PRESETS[name].model).to_precision(dtype)
    expected = sum(p.nbytes for p in network.parameters())
    assert sizes_for(PRESETS[name], 10, precision).weights == expected


@pytest.mark.parametrize(
    ("length", "precision", "tier", "gib"),
    [
        (1200, "fp32", "lean", 2.2),
        (1200, "bf16", "resident", 2.0),
        (2048, "bf16", "resident", 4.3),
        (3072, "bf16", "resident", 8.0),
        (4096, "bf16", "resident", 13),
        (7000, "fp32", "resident", 62),
        (10000, "bf16", "resident", 60),
        (10000, "bf16", "offload", 34),
        (16000, "bf16", "offload", 79),
    ],
)
def test_what_is_promised(length, precision, tier, gib):
    """One pass of model_3 with 512 clusters and 5,120 extra sequences."""
    sizes = sizes_for(PRESETS["model_3"], length, precision)
    found = plan(sizes, int(gib * GIB), tier=tier)
    assert found.tier == tier
    assert found.peak_device_bytes <= gib * GIB


@pytest.mark.parametrize(("tier", "gib", "units"), [("resident", 80, 2.3), ("offload", 3.4, 1.4)])
def test_what_is_promised_in_pair_representations(tier, gib, units):
    found = plan(sizes_for(PRESETS["model_3"], 3072, "bf16"), int(gib * GIB), tier=tier, kept=0)
    beside = sum(found.parts.get(name, 0) for name in ("weights", "features", "MSA", "extra MSA"))
    assert found.peak_device_bytes - beside <= units * 3072**2 * 128 * 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("length", [1, 2, 63, 1000, 5000])
def test_a_plan_keeps_to_its_budget(length, precision):
    """And more memory is never slower."""
    sizes = sizes_for(PRESETS["model_1"], length, precision, templates=4)
    before = float("inf")
    for gib in (0.5, 1, 2, 4, 8, 16, 32, 64, 128):
        try:
            found = plan(sizes, int(gib * GIB))
        except DoesNotFit:
            assert before == float("inf")
            continue
        assert found.peak_device_bytes <= gib * GIB
        assert found.seconds <= before * 1.001
        assert all(rows >= 1 for rows in found.blocks.values())
        assert set(found.blocks) == {cost.stage for cost in costs(sizes)}
        assert found.peak_device_bytes == sum(found.parts.values())
        before = found.seconds
    assert found.tier == "resident"


@pytest.mark.parametrize("tier", [None, *TIERS])
@pytest.mark.parametrize("gib", [4, 80])
def test_the_longest_protein_fits_and_the_next_does_not(gib, tier):
    sizes = sizes_for(PRESETS["model_3"], 100, "bf16")
    longest = max_length(sizes, gib * GIB, tier=tier)
    assert plan(replace(sizes, residues=longest), gib * GIB, tier=tier)
    with pytest.raises(DoesNotFit) as refused:
        plan(replace(sizes, residues=longest + 1), gib * GIB, tier=tier)
    assert f"{longest} residues are the most that fit" in str(refused.value)
    assert refused.value.exit_code == 3


def test_a_protein_that_is_too_long_is_refused_in_numbers():
    with pytest.raises(DoesNotFit, match=r"needs 95.*GiB for one row of 20000 residues, and 7.*GiB are left"):
        plan(sizes_for(PRESETS["model_3"], 20000, "bf16"), 80 * 10**9)
    with pytest.raises(DoesNotFit, match="no protein fits"):
        plan(sizes_for(PRESETS["model_3"], 5, "bf16"), 10**7)


def test_host_memory_that_does_not_suffice_is_named():
    sizes = sizes_for(PRESETS["model_3"], 10000, "bf16")
    assert plan(sizes, 34 * GIB, host_bytes=64 * GIB).tier == "offload"
    with pytest.raises(DoesNotFit, match="host memory"):
        plan(sizes, 34 * GIB, host_bytes=16 * GIB)


def test_leaner_plans_end():
    """Each needs less than the one before, down to the last."""
    sizes = sizes_for(PRESETS["model_3"], 2000, "bf16")
    plans = [plan(sizes, 80 * GIB)]
    with suppress(DoesNotFit):
        while len(plans) < 40:
            plans.append(plan(sizes, 80 * GIB, leaner_than=plans[-1]))
    assert len(plans) < 40
    assert list(dict.fromkeys(found.tier for found in plans)) == ["resident", "lean", "offload"]
    for found, leaner in pairwise(plans):
        assert leaner.peak_device_bytes <= 0.9 * found.peak_device_bytes


def test_more_room_means_larger_blocks():
    sizes = sizes_for(PRESETS["model_3"], 4096, "bf16")
    tight, ample = (plan(sizes, int(gib * GIB), tier="resident") for gib in (11.2, 40))
    assert tight.blocks["triangle multiplication"] < ample.blocks["triangle multiplication"]


@pytest.mark.parametrize("residues", [1024, 1200, 2048, 4096])
def test_the_evoformers_products_take_the_room_that_the_extra_msa_leaves(residues):
    sizes = replace(sizes_for(PRESETS["model_5"], residues, "bf16"), on_gpu=True, kernels=KERNELS, extra=5120)
    found = plan(sizes, 79 * GIB)
    stage = "triangle multiplication"
    rows = found.wider[stage]
    assert rows % 128 == 0
    assert found.blocks[stage] < rows <= residues + 127
    assert found.direct == {stage}
    others = [peak for name, peak in found.peaks.items() if name != f"Evoformer: {stage}"]
    assert found.peaks[f"Evoformer: {stage}"] <= max(others) == found.peak_device_bytes


def test_as_many_rows_stay_as_there_is_room_for():
    sizes = sizes_for(PRESETS["model_3"], 4096, "bf16")
    away = plan(sizes, 12 * GIB, tier="offload", kept=0)
    some = plan(sizes, 9 * GIB, tier="offload")
    more = plan(sizes, 9.5 * GIB, tier="offload")
    assert 0 == away.kept < some.kept < more.kept <= 4096
    assert some.parts["pair"] == some.kept * 4096 * 128 * 2
    assert "pair" not in away.parts
    assert some.host_parts["pair"] == (4096 - some.kept) * 4096 * 128 * 2
    assert 9 * GIB * 0.96 < some.peak_device_bytes <= 9 * GIB * 0.97
    assert more.seconds < some.seconds < away.seconds
    assert plan(replace(sizes, ensembles=2), 12 * GIB, tier="offload").kept == 0


def test_contexts_are_made_ahead_where_memory_allows():
    """Small ones first: two whole contexts of the triangle multiplication take one U more."""
    sizes, twice = sizes_for(PRESETS["model_3"], 4096, "bf16"), ("triangle multiplication",) * 2
    tight, ample = (plan(sizes, int(gib * GIB), tier="offload", kept=0) for gib in (9.6, 40))
    assert tight.handovers
    assert twice not in tight.handovers
    assert tight.handovers < ample.handovers
    assert twice in ample.handovers
    assert ample.seconds < tight.seconds


def test_on_a_cpu_there_is_one_tier():
    sizes = sizes_for(PRESETS["model_3"], 200, "fp32", on_gpu=False)
    found = plan(sizes, 8 * GIB, cores=8)
    assert found.tier == "cpu"
    assert not found.host
    assert found.peak_host_bytes > found.peak_device_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("residues", [40, 300, 768])
def test_with_much_memory_a_plan_is_found_without_looking_at_all(residues, dtype, monkeypatch):
    """The one that is the fastest of all."""
    config = PRESETS["model_3_ptm"]
    sizes = replace(
        sizes_for(config, residues, "fp32", clusters=300, extra=700, templates=0, on_gpu=True),
        itemsize=dtype.itemsize,
    )
    for budget in (3 * GIB, 12 * GIB, 70 * GIB):
        with monkeypatch.context() as patch:
            quick = plan(sizes, budget, host_bytes=100 * GIB, device="NVIDIA H100 80GB HBM3")
            patch.setattr("axfold.memory.plan.ROOMY", 10**9)
            assert quick == plan(sizes, budget, host_bytes=100 * GIB, device="NVIDIA H100 80GB HBM3")
    assert quick.tier == "resident"

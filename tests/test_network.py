"""The network run from outside: devices, passes, hooks."""

import numpy as np
import pytest
import torch

from axfold import network
from axfold.config import PRESETS
from axfold.data import pipelines
from axfold.data.query import Query
from axfold.errors import AxfoldError, InputError
from axfold.weights.source import Source

CPU = torch.device("cpu")


@pytest.fixture
def run(small):
    """Runs a small model of this name on few residues; its passes."""

    def start(
        name: str = "model_1_ptm", report=None, recycles: int = 1, ensembles: int = 1, precision="fp32"
    ):
        config = PRESETS[name]
        model = network.load_network(config, Source(seed=0), CPU, precision)
        samples = pipelines.monomer_samples(Query(name="q", sequence="MKTAYIA"), config, 0)
        features = [next(samples) for _ in range((recycles + 1) * ensembles)]
        watched = network.watched(model, config, passes=recycles + 1, templates=False, report=report)
        with watched:
            for result in network.passes(model, network.on_device(features, ensembles, CPU)):
                atoms = result.structure.atom37.clone()
                yield atoms, result.pair.dtype
        assert not [module for module in model.modules() if module._forward_hooks]

    return start


def test_passes_recycle(run):
    first, second = (atoms for atoms, _ in run())
    assert not torch.equal(first, second)


def test_watching_changes_nothing(run):
    steps = []
    seen = [atoms for atoms, _ in run(report=steps.append)]
    unseen = [atoms for atoms, _ in run()]
    assert all(map(torch.equal, seen, unseen))
    assert [(step.number, step.stage) for step in steps] == [
        (number, stage) for number in (1, 2) for stage in ("extra MSA", "Evoformer", "Evoformer", "structure")
    ]
    assert steps[-1].share == 1
    assert steps[-1].remaining == 0


def test_bf16_is_the_trunk_alone(run):
    for atoms, trunk in run(precision="bf16"):
        assert (atoms.dtype, trunk) == (torch.float32, torch.bfloat16)


def test_fp16_is_nearer_to_fp32_than_bf16(run):
    (exact, _), *_ = run(recycles=0)
    (half, dtype), *_ = run(recycles=0, precision="fp16")
    (rounded, _), *_ = run(recycles=0, precision="bf16")
    assert dtype == torch.float16
    assert 0 < (half - exact).norm() < (rounded - exact).norm()


def test_numbers_beyond_fp16_are_refused(run, monkeypatch):
    """As a trunk with other parameters may make them."""
    load = network.load_network

    def large(*args):
        model = load(*args)
        model.trunk.single.bias.fill_(6e4)
        model.trunk.single.weight.mul_(6e4)
        return model

    monkeypatch.setattr(network, "load_network", large)
    assert all(atoms.isfinite().all() for atoms, _ in run(precision="bf16"))
    with pytest.raises(AxfoldError, match="range of fp16 in this protein: use --precision fp32"):
        list(run(precision="fp16"))


def test_as_many_samples_as_ensembles():
    samples = [{"aatype": np.full(3, i, np.int32), "unknown": np.zeros(1)} for i in range(4)]
    taken = list(network.on_device(samples, 2, CPU))
    assert [[int(sample["aatype"][0]) for sample in several] for several in taken] == [[0, 1], [2, 3]]
    assert set(taken[0][0]) == {"aatype"}


def test_float32_products_are_exact_and_settings_stay(run):
    torch.set_float32_matmul_precision("high")
    try:
        seen = []
        for _ in run(report=lambda step: seen.append(torch.get_float32_matmul_precision())):
            assert torch.get_float32_matmul_precision() == "high"
        assert set(seen) == {"highest"}
    finally:
        torch.set_float32_matmul_precision("highest")


def test_tf32_is_the_trunk_alone(small):
    config = PRESETS["model_1_ptm"]
    model = network.load_network(config, Source(seed=0), CPU, "tf32")
    samples = pipelines.monomer_samples(Query(name="q", sequence="MKTAYIA"), config, 0)
    seen = {}

    def note(name):
        return lambda *_: seen.update({name: torch.get_float32_matmul_precision()})

    modules = {"trunk": model.trunk.evoformer, "structure": model.structure, "network": model}
    for name, module in modules.items():
        module.register_forward_hook(note(name))
    for result in network.passes(model, network.on_device([next(samples)], 1, CPU)):
        assert result.pair.dtype == torch.float32
    assert seen == {"trunk": "high", "structure": "highest", "network": "highest"}

    model.trunk.evoformer.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(network.passes(model, network.on_device([next(samples)], 1, CPU)))
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", "mps", ""])
def test_unknown_devices_are_refused(name):
    with pytest.raises(InputError, match=f"--device {name}: choose auto, cpu, cuda or cuda:N"):
        network.find_device(name)


def test_cuda_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert network.find_device("auto") == CPU
    for name in ("cuda", "cuda:7"):
        with pytest.raises(InputError, match=f"--device {name}: PyTorch .* finds no CUDA device.*doctor"):
            network.find_device(name)


@pytest.mark.parametrize(("count", "known"), [(1, "only cuda:0"), (4, "cuda:0 to cuda:3")])
def test_a_cuda_device_that_is_not_there(monkeypatch, count, known):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(InputError, match=f"--device cuda:7: this machine has {known}"):
        network.find_device("cuda:7")


def test_precision_of_a_device(monkeypatch):
    cuda = torch.device("cuda", 0)
    for capability, precision in (((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert network.find_precision("auto", cuda) == precision
    assert network.find_precision("auto", CPU) == "fp32"
    assert network.find_precision("bf16", CPU) == "bf16"
    assert network.find_precision("tf32", CPU) == "fp32"
    assert network.find_precision("tf32", cuda) == "tf32"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert network.find_precision("tf32", cuda) == "fp32"
    assert network.find_precision("fp16", cuda) == "fp16"
    with pytest.raises(InputError, match="--precision fp8: choose one of auto, fp32, tf32, bf16, fp16"):
        network.find_precision("fp8", CPU)

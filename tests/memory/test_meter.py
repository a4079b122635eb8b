"""What is measured, counted by hand."""

import pytest
import torch
from sizes import make_features, make_network
from torch import nn

from axfold.memory.meter import Meter


class Doubled(nn.Module):
    """Makes two tensors of x's size while x is there, keeps one."""

    stage = "doubling"

    def forward(self, x):
        y = x + x
        z = y * y
        del y
        return z


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1000))
        self.doubled = Doubled()

    def forward(self, x):
        return self.doubled(x) + self.weight


SIZE = 4000


def test_bytes_are_counted_exactly():
    network, x = Network(), torch.ones(1000)
    with torch.inference_mode(), Meter(network, torch.device("cpu")) as meter:
        network(x)
        network(x)
    reading = meter.readings["pass: doubling"]
    assert reading.calls == 2
    assert reading.seconds > 0
    assert reading.peak_bytes == 4 * SIZE
    assert reading.alive == {"weights": SIZE, "features": SIZE, "add": SIZE, "mul": SIZE}
    assert meter.peak_bytes == 4 * SIZE
    assert [stage for stage, _ in meter.sequence] == ["pass: the rest", "pass: doubling"]
    assert meter.as_dict()["stages"]["pass: doubling"]["calls"] == 2


def test_copies_that_kernels_make_are_counted():
    x = torch.ones(8, 4, 16).transpose(0, 1)
    norm = nn.LayerNorm(16)
    norm.stage = "norm"
    with torch.inference_mode(), Meter(norm, torch.device("cpu")) as meter:
        norm(x)
    alive = meter.readings["pass: norm"].alive
    assert alive["clone"] == x.nbytes
    assert alive["native_layer_norm"] >= x.nbytes


def test_an_error_leaves_the_meter_usable():
    network = Network()
    with torch.inference_mode(), Meter(network, torch.device("cpu")) as meter:
        with pytest.raises(RuntimeError):
            network(torch.ones(7))
        network(torch.ones(1000))
    assert meter.readings["pass: doubling"].peak_bytes == 4 * SIZE


def test_it_changes_nothing():
    network, features = make_network(1, torch.float32), make_features(12, 4, 5, 1)
    with torch.inference_mode():
        expected = network([features])
        with Meter(network, torch.device("cpu")) as meter:
            result = network([features])
        again = network([features])
    assert torch.equal(result.pair, expected.pair)
    assert torch.equal(again.structure.atom37, expected.structure.atom37)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert {
        "Evoformer: MSA column attention",
        "extra MSA stack: global column attention",
        "templates: triangle attention",
        "structure: invariant point attention",
        "structure: the rest",
    } <= set(meter.readings)
    pair = result.pair.nbytes
    for stage in ("Evoformer: transition", "extra MSA stack: triangle multiplication"):
        assert meter.readings[stage].alive["pair"] == pair
    assert meter.readings["extra MSA stack: triangle multiplication"].alive["extra MSA"] == 5 * 12 * 64 * 4

"""Steps of training."""

import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from samples import TINY, TRAINING, Examples, make, stack
from two_ranks import steps

from axfold.model.alphafold import AlphaFold
from axfold.train.feed import Feed, order
from axfold.train.initial import initialise
from axfold.train.loop import DivergedError, Trainer, gradients, pass_losses
from axfold.train.ranks import Ranks
from axfold.train.recompute import keep, recompute

CPU = torch.device("cpu")


def trainer(seed: int = 0, precision: torch.dtype = torch.float32, **changes) -> Trainer:
    network = AlphaFold(TINY)
    initialise(network, seed)
    return Trainer(network, replace(TRAINING, **changes), precision=precision, seed=seed)


def run(made: Trainer, number: int) -> list[dict[str, float]]:
    training = made.training
    places = order(made.steps, training.batch, training.at_once)
    records = []
    with Feed(Examples(batch=training.batch), places, stack, CPU) as feed:
        for _ in range(number):
            made.step(feed)
            records += [record.values for record in made.records(behind=1)]
    return [*records, *(record.values for record in made.records())]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_the_loss_falls(precision):
    records = run(trainer(precision=precision, learning_rate=1e-2, warm_up=0, batch=2), 10)
    assert [record["samples"] for record in records] == list(range(2, 21, 2))
    assert records[-1]["distogram"] < 0.8 * records[0]["distogram"]
    assert all(record["gradient"] > 0 for record in records)


def test_a_sample_is_clipped_by_itself():
    made = trainer(at_once=1, clip=0.1, batch=2)
    examples = [stack([make(seed, 9, 12, 1)]) for seed in (1, 2)]
    made.network.eval()
    expected = torch.zeros_like(made.masters.values)
    for example in examples:
        made.masters.clear()
        gradients(made.network, example.passes, example.labels, made.training.loss)
        norm = made.masters.norm()
        assert norm > 0.1
        made.masters.add_gradient(expected, 0.1 / norm / 2)
    made.step(iter(examples))
    torch.testing.assert_close(made._gradient, expected, rtol=1e-5, atol=1e-8)
    (record,) = made.records()
    assert record.values["clipped"] == 1


def test_small_gradients_are_not_clipped():
    made = trainer(clip=1e6)
    (record,) = run(made, 1)
    assert record["clipped"] == 0


def test_samples_at_once_are_their_mean():
    """Of samples that drop nothing and are not clipped the gradient is the same, one by one or together."""
    found = []
    for at_once in (1, 4):
        made = trainer(clip=1e6, at_once=at_once, batch=4)
        made.network.eval()
        run(made, 1)
        found.append(made._gradient.clone())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_dropout_depends_on_seed_and_sample_alone():
    values = []
    for seed in (0, 0, 1):
        made = trainer()
        made.seed = seed
        torch.rand(seed + len(values))  # what else draws doesn't matter
        run(made, 1)
        values.append(made.masters.values.clone())
    assert values[0].equal(values[1])
    assert not values[0].equal(values[2])


def test_passes_before_the_last_recycle_without_gradient():
    network = trainer().network.eval()
    first, second = make(1, 9, 12, 2), make(1, 9, 12, 2)
    second.passes[0]["msa_feat"].requires_grad_()
    second.passes[1]["msa_feat"].requires_grad_()
    alone = pass_losses(network, first.passes[1:], first.labels, TRAINING.loss)
    both = pass_losses(network, second.passes, second.labels, TRAINING.loss)
    assert not both.total.equal(alone.total)
    both.total.backward()
    assert second.passes[0]["msa_feat"].grad is None
    assert second.passes[1]["msa_feat"].grad.any()


def test_recomputed_blocks_have_the_same_gradients():
    """Dropout included."""
    plain, again = trainer(), trainer()
    recompute(again.network)
    recompute(again.network)  # once more changes nothing
    calls = []
    block = again.network.trunk.evoformer.blocks[0]
    block.register_forward_hook(lambda *_: calls.append("forward"))
    inner = block.msa_transition.register_forward_hook(lambda *_: calls.append("inside"))
    first, second = run(plain, 1), run(again, 1)
    assert calls.count("inside") == 2 * calls.count("forward") > 0
    assert first == second
    assert plain.masters.values.equal(again.masters.values)
    inner.remove()
    calls.clear()
    with torch.no_grad():
        again.network([make(1, 9, 12, 1).passes[0]])
    assert calls == ["forward"]
    keep(again.network)
    assert "forward" not in vars(block)


def test_two_processes_are_one_with_twice_the_samples(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script, out = Path(__file__).with_name("two_ranks.py"), tmp_path / "out.safetensors"
    shared = {
        **os.environ,
        **{"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
    }
    processes = [
        subprocess.Popen([sys.executable, script, out], env={**shared, "RANK": rank, "LOCAL_RANK": rank})
        for rank in "01"
    ]
    alone, records = steps(Ranks(CPU))
    for process in processes:
        assert process.wait(timeout=120) == 0
    together = load_file(out)
    torch.testing.assert_close(together["values"], alone.masters.values, rtol=1e-5, atol=1e-6)
    loss = torch.tensor([record["loss"] for record in records])
    torch.testing.assert_close(together["loss"], loss, rtol=1e-5, atol=1e-5)
    assert together["asks"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("parameter", "the parameter trunk.single.weight holds NaN"),
        ("input", r"the input passes\.0\.msa_feat holds NaN"),
        ("output", r"the output of trunk\.evoformer\.blocks\.0\.pair holds infinity"),
        ("gradient", r"the gradient of \S+ holds NaN"),
        ("term", "the loss term plddt holds NaN"),
    ],
)
def test_what_is_not_finite_is_named(where, said, monkeypatch):
    made = trainer(batch=4, at_once=2)
    run(made, 1)
    before = made.masters.values.clone()
    network, example = made.network, None
    if where == "parameter":
        with torch.no_grad():
            network.trunk.single.weight[0, 0] = torch.nan
        before = made.masters.values.clone()
    elif where == "output":
        pair = network.trunk.evoformer.blocks[0].pair
        forward = pair.forward
        pair.forward = lambda z, mask: forward(z, mask) / 0
    elif where == "gradient":
        network.trunk.evoformer.blocks[0].pair.register_full_backward_hook(
            lambda module, inputs, outputs: tuple(x * torch.nan for x in inputs)
        )
    elif where == "term":
        monkeypatch.setattr("axfold.train.loss.plddt", lambda logits, *_: logits.sum((-1, -2)) * torch.nan)
    examples = Examples()

    def example_at(indices):
        example = stack([examples[i] for i in indices])
        if where == "input" and 6 in indices:
            example.passes[0]["msa_feat"][0, 0, 0, 0] = torch.nan
        return example

    made.step(map(example_at, islice(order(1, 4, 2), 2)))
    made.step(map(example_at, islice(order(2, 4, 2), 2)))  # goes on before anyone looks
    with pytest.raises(DivergedError) as error:
        list(made.records())
    assert error.value.step == 2
    assert made.masters.values.equal(before) or where == "parameter"
    assert example is None
    found = made.diagnose(error.value.step, example_at)
    assert re.match(said, found), found
    assert re.search(r"of the samples (4, 5|6, 7)$", found)

"""Masters, Adam, the learning rate and the moving average."""

from dataclasses import replace

import pytest
import torch
from samples import TINY, TRAINING

from axfold.config import TRAININGS, Training
from axfold.model.alphafold import AlphaFold
from axfold.train.initial import initialise
from axfold.train.optim import Masters, Optimizer, kept, learning_rate


def network(seed: int = 0) -> AlphaFold:
    made = AlphaFold(TINY)
    initialise(made, seed)
    return made


def test_learning_rate_is_the_supplements():
    training = Training()
    rates = {n: learning_rate(n, training) for n in (128, 64_000, 128_000, 6_400_000, 6_400_128)}
    assert rates == pytest.approx(
        {128: 1e-6, 64_000: 5e-4, 128_000: 1e-3, 6_400_000: 1e-3, 6_400_128: 9.5e-4}
    )
    assert learning_rate(128, TRAININGS["fine_tuning"]) == 5e-4


def test_the_average_keeps_less_while_it_is_young():
    shares = [kept(step, Training()) for step in (1, 10, 100, 10_000)]
    assert shares == pytest.approx([0.1, 10 / 19, 100 / 109, 0.999])


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_a_network_computes_with_its_masters(precision):
    plain = dict(network().to_precision(precision).named_parameters())
    exact = dict(network().named_parameters())
    made = network()
    masters = Masters(made, precision)
    assert masters.parameters == sum(p.numel() for p in exact.values())
    for name, p in made.named_parameters():
        assert p.dtype == plain[name].dtype, name
        assert p.equal(plain[name]), name
        assert masters.view(masters.values, name).equal(exact[name]), name
        assert p.grad.shape == p.shape
        assert p.data_ptr() % 64 == 0, name
    masters.values.mul_(1.5)
    masters.publish()
    for name, p in made.named_parameters():
        assert p.equal((1.5 * exact[name]).to(p.dtype)), name


def test_gradients_are_written_into_the_views():
    made = network()
    masters = Masters(made, torch.float32)
    sum(p.square().sum() for p in made.parameters()).backward()
    total = torch.zeros_like(masters.values)
    masters.add_gradient(total, torch.tensor(0.5))
    norm = torch.stack([p.square().sum() for p in made.parameters()]).sum().sqrt()
    torch.testing.assert_close(masters.norm(), 2 * norm.detach())
    for name, p in made.named_parameters():
        torch.testing.assert_close(masters.view(total, name), p.detach())
    masters.clear()
    assert all(not p.grad.any() for p in made.parameters())


def test_steps_are_adams():
    made, other = network(), network()
    training = replace(TRAINING, batch=4, warm_up=16)
    optimizer = Optimizer(masters := Masters(made, torch.float32), training)
    adam = torch.optim.Adam(other.parameters(), betas=(0.9, 0.999), eps=1e-6)
    average = {name: p.detach().clone() for name, p in other.named_parameters()}
    for step in range(1, 6):
        g = torch.Generator().manual_seed(step)
        gradient = torch.zeros_like(masters.values)
        for name, p in other.named_parameters():
            p.grad = torch.randn(p.shape, generator=g)
            masters.view(gradient, name).copy_(p.grad)
        optimizer.step(gradient, torch.tensor(0.0))
        adam.param_groups[0]["lr"] = learning_rate(4 * step, training)
        adam.step()
        for name, p in other.named_parameters():
            average[name].lerp_(p.detach(), 1 - kept(step, training))
    for (name, ours), theirs in zip(made.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(masters.view(optimizer.average, name), average[name], rtol=1e-5, atol=1e-6)


def test_after_a_failure_no_step_changes_anything():
    optimizer = Optimizer(masters := Masters(network(), torch.float32), TRAINING)
    gradient = torch.ones_like(masters.values)
    optimizer.step(gradient.clone(), torch.tensor(0.0))
    state = [x.clone() for x in (masters.values, optimizer.average, *optimizer.moments)]
    optimizer.step(gradient.clone().fill_(torch.nan), torch.tensor(1.0))
    optimizer.step(gradient.clone(), torch.tensor(0.0))
    for before, now in zip(state, (masters.values, optimizer.average, *optimizer.moments), strict=True):
        assert now.equal(before)


def test_small_updates_are_not_lost_in_bfloat16():
    masters = Masters(network(), torch.bfloat16)
    optimizer = Optimizer(masters, replace(TRAINING, warm_up=0, learning_rate=1e-5))
    before = masters.values.clone()
    for _ in range(20):
        optimizer.step(torch.ones_like(before), torch.tensor(0.0))
    torch.testing.assert_close(masters.values, before - 20e-5, rtol=0, atol=2e-6)

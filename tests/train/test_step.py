"""A batch of padded proteins is each of them by itself: what is predicted, losses, and gradients."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from axfold import config, residues
from axfold.train import step
from axfold.train.labels import Labels, label

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
from small import make_features, small_model

CROP, CLUSTERS, EXTRA = 19, 6, 8
WEIGHTS = config.FINE_TUNING


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = small_model()
    for p in network.parameters():  # what starts as nothing would hide mistakes
        p.data += 0.02 * torch.randn_like(p)
    return network


def features_of(n: int, seed: int) -> dict[str, torch.Tensor]:
    return make_features(n, clusters=5 - seed, extra=7 - seed, seed=seed)


def known_of(features: dict[str, torch.Tensor], seed: int) -> tuple[torch.Tensor, ...]:
    """What `label` wants of a protein: a noisy chain of atoms, some of which are missing."""
    g = torch.Generator().manual_seed(100 + seed)
    aatype = features["aatype"]
    n, rows = len(aatype), len(features["msa_feat"])
    chain = 3.8 * torch.randn(n, 1, 3, generator=g, dtype=torch.float64).cumsum(0)
    positions = chain + 1.5 * torch.randn(n, 37, 3, generator=g, dtype=torch.float64)
    mask = torch.as_tensor(residues.ATOM37_MASK, dtype=torch.float64)[aatype]
    mask = mask * (torch.rand(n, 37, generator=g) > 0.1)
    true_msa = torch.randint(0, 22, (rows, n), generator=g)
    masked = (torch.rand(rows, n, generator=g) > 0.7).double()
    numbers = torch.tensor(2.0 + seed, dtype=torch.float64), torch.tensor(float(seed), dtype=torch.float64)
    return (
        aatype,
        features["residue_index"],
        features["seq_mask"],
        positions,
        mask,
        *numbers,
        true_msa,
        masked,
    )


def fill(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Padded at the ends with zeros, or with whole numbers that mean something elsewhere."""
    whole = x.new_zeros(shape) if x.is_floating_point() else torch.full(shape, 3, dtype=x.dtype)
    whole[tuple(slice(size) for size in x.shape)] = x
    return whole


def padded(features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    n = len(features["aatype"])

    def shape(name: str, x: torch.Tensor) -> tuple[int, ...]:
        rows = {"extra": EXTRA, "msa_f": CLUSTERS, "msa_m": CLUSTERS}.get(name[:5])
        sizes = [CROP if size == n else size for size in x.shape]
        return tuple([rows, *sizes[1:]] if rows else sizes)

    return {name: fill(x, shape(name, x)) for name, x in features.items()}


def stacked(many):
    return {name: torch.stack([one[name] for one in many]) for name in many[0]}


def labels_together(known) -> Labels:
    def together(i: int) -> torch.Tensor:
        shapes = {0: (CROP,), 1: (CROP,), 2: (CROP,), 3: (CROP, 37, 3), 4: (CROP, 37), 5: (), 6: ()}
        return torch.stack([fill(one[i], shapes.get(i, (CLUSTERS, CROP))) for one in known])

    return label(*(together(i) for i in range(9)))


@pytest.fixture(scope="module")
def proteins():
    passes = [[features_of(n, seed) for seed, n in enumerate((17, 11))] for _ in range(2)]
    return passes, [known_of(features, seed) for seed, features in enumerate(passes[0])]


def test_a_padded_batch_is_each_protein_alone(network, proteins):
    passes, _ = proteins
    batch = [stacked([padded(features) for features in both]) for both in passes]
    recycled = step.recycle(network, batch[0], None)
    together = network([batch[1]], recycled)
    for i, n in enumerate((17, 11)):
        alone = network([passes[1][i]], step.recycle(network, passes[0][i], None))
        rows = len(passes[1][i]["msa_feat"])
        assert_near(together.msa[i, :rows, :n], alone.msa)
        assert_near(together.pair[i, :n, :n], alone.pair)
        assert_near(together.single[i, :n], alone.single)
        assert_near(together.structure.atom14[i, :n], alone.structure.atom14)


def assert_near(found: torch.Tensor, expected: torch.Tensor):
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8 * expected.abs().max().item())


def test_losses_and_gradients_of_a_batch_are_the_mean_of_its_proteins(network, proteins):
    passes, known = proteins
    batch = [stacked([padded(features) for features in both]) for both in passes]
    expected, terms, gradients = [], [], {}
    for i in range(2):
        network.zero_grad()
        found = step.gradients(network, [both[i] for both in passes], label(*known[i]), WEIGHTS)
        expected.append(found.total)
        terms.append(found.terms)
        for name, p in network.named_parameters():
            if p.grad is not None:
                gradients[name] = gradients.get(name, 0) + p.grad / 2
    network.zero_grad()
    found = step.gradients(network, batch, labels_together(known), WEIGHTS)
    for name in found.terms:
        assert_near(found.terms[name], torch.stack([t[name] for t in terms]))
    assert_near(found.total, torch.stack(expected))
    largest = max(g.abs().max().item() for g in gradients.values())
    assert {name for name, p in network.named_parameters() if p.grad is not None} == set(gradients)
    for name, p in network.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, gradients[name], rtol=1e-6, atol=1e-9 * largest, msg=name)


def test_recycling_leaves_no_gradient_and_trains_again(network, proteins):
    passes, _ = proteins
    recycled = step.recycle(network, passes[0][0], None)
    assert not any(x.requires_grad for x in (recycled.pair, recycled.msa_first_row, recycled.positions))
    assert all(p.requires_grad for p in network.parameters())


COMPILED = """
import torch
from small import make_features, small_model
from axfold.train import step

step.COMPILE = {"backend": "aot_eager", "dynamic": False, "fullgraph": True}  # Inductor would take minutes here
features = make_features(9, templates=0)
found = []
for compiled in (False, True):
    network = small_model()
    if compiled:
        step.compile_blocks(network)
    passed = network([features], step.recycle(network, features, None))
    loss = passed.pair.square().mean() + passed.structure.atom14.square().mean() + passed.msa.square().mean()
    loss.backward()
    found.append([loss.detach(), *(p.grad for p in network.parameters() if p.grad is not None)])
largest = max(g.abs().max().item() for g in found[0][1:])
assert len(found[0]) == len(found[1]) > 100
for one, other in zip(*found):
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8 * largest)
"""


def test_compiled_blocks_compute_the_same():
    """In a process of its own: shapes are not checked there, which PyTorch can't compile."""
    paths = [str(Path(__file__).parents[1] / "model"), *sys.path]
    run = subprocess.run(
        [sys.executable, "-c", COMPILED],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr

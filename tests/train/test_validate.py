"""Scores of predicted chains."""

import math
from dataclasses import replace

import pytest
import torch
from samples import TINY, make, stack

from axfold import metrics
from axfold.model.alphafold import AlphaFold
from axfold.model.atoms import CA
from axfold.train.initial import initialise
from axfold.train.ranks import Ranks
from axfold.train.validate import NAMES, Score, by_class, groups, mean, score, validate

ALONE = Ranks(torch.device("cpu"))


class Chains(torch.utils.data.Dataset):
    """Some padded, some of another length."""

    def __len__(self):
        return 5

    def __getitem__(self, i):
        return make(i, 8 + i, 16, 2)


@pytest.fixture(scope="module")
def network() -> AlphaFold:
    made = AlphaFold(TINY)
    initialise(made, 0)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return made.requires_grad_(False).eval()


def test_the_truth_is_perfect():
    example = make(3, 10, 14, 1)
    labels = example.labels
    found = score(labels.atom37, labels.atom14, torch.full((14,), 0.75), labels)
    assert (found.lddt_ca, found.lddt, found.plddt, found.length) == (1, 1, 0.75, 10)
    assert (found.tm, found.gdt_ts, found.gdt_ha) == pytest.approx((1, 1, 1))
    assert found.rmsd < 1e-4
    assert found.side_chains == 1
    assert (
        score(
            labels.atom37, labels.atom14, torch.ones(14), replace(labels, backbone_only=torch.tensor(1.0))
        ).side_chains
        == 0
    )


def test_equal_atoms_may_be_exchanged():
    """The prediction has the other names of the atoms that are the same."""
    labels = make(3, 10, 14, 1).labels
    g = torch.Generator().manual_seed(0)
    names = replace(
        labels,
        atom14=10 * torch.randn(14, 14, 3, generator=g),
        alternative_atom14=10 * torch.randn(14, 14, 3, generator=g),
        atom14_mask=torch.ones(14, 14),
        alternative_atom14_mask=torch.ones(14, 14),
        aatype=torch.full((14,), 13),  # phenylalanine
    )
    alternative = score(labels.atom37, names.alternative_atom14, torch.ones(14), names).lddt
    assert score(labels.atom37, names.atom14, torch.ones(14), names).lddt == 1
    assert alternative == 1


def test_a_chain_scores_the_same_alone_and_with_others(network):
    alone = validate(network, Chains(), [[i] for i in range(5)], stack, ALONE)
    together = validate(network, Chains(), [[4, 2, 0], [1, 3]], stack, ALONE)
    assert sorted(alone) == sorted(together) == list(range(5))
    for i, one in alone.items():
        assert one.length == 8 + i
        for name in NAMES:
            assert getattr(together[i], name) == pytest.approx(getattr(one, name), abs=1e-3), name


def test_scores_are_those_of_the_last_pass(network):
    example = Chains()[1]
    found = validate(network, Chains(), [[1]], stack, ALONE)[1]
    with torch.inference_mode():
        first = network([example.passes[0]])
        last = network([example.passes[1]], first.recycled())
    labels = example.labels
    x, y, mask = last.structure.atom37[:, CA], labels.atom37[:, CA], labels.atom37_mask[:, CA]
    assert found.lddt_ca == float(metrics.lddt(x[:, None], y[:, None], mask[:, None]))
    assert found.rmsd == pytest.approx(metrics.rmsd(x, y, mask), rel=1e-5)
    assert 0 < found.plddt < 1


def test_chains_of_one_size_go_together():
    assert groups([128, 64, 128, 64, 64, 256], pairs=2 * 128**2) == [[1, 3, 4], [0, 2], [5]]
    assert groups([512, 512], pairs=10) == [[0], [1]]
    assert groups([]) == []


def test_means_leave_out_what_is_undefined():
    nan = math.nan
    some = {
        "a": Score(50.0, 0.5, 0.4, 0.3, 0.2, 0.6, 3.0, 0.7, 1.0),
        "b": Score(100.0, 0.7, nan, 0.5, 0.4, 0.8, 1.0, 0.9, 0.0),
        "c": Score(300.0, 0.9, nan, 0.5, 0.4, 0.8, 2.0, 0.9, 0.0),
    }
    found = mean(some.values())
    assert found["chains"] == 3
    assert found["lddt_ca"] == pytest.approx(0.7)
    assert found["lddt"] == pytest.approx(0.4)
    classes = by_class(some)
    assert {name: means["chains"] for name, means in classes.items()} == {
        **{"all": 3, "full atom": 1, "backbone": 2},
        **{"1 to 64 residues": 1, "65 to 128 residues": 1, "over 256 residues": 1},
    }
    assert math.isnan(mean([])["lddt_ca"])

"""Labels of a structure that the network's own functions built."""

import torch

from axfold.model.atoms import atom14_of_frames, atom37_of_atom14, frames_of_torsions
from axfold.model.rigid import Rigid, rotation_of
from axfold.train import loss
from axfold.train.labels import group_frames, label


def structure():
    """All 20 amino acids and an unknown one, with random frames and torsions."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.nn.functional.normalize(
            torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1
        )

    aatype = torch.arange(21)
    backbone = Rigid(rotation_of(draw(21, 4)), 20 * draw(21, 3))
    torsions = draw(21, 7, 2)
    frames = frames_of_torsions(backbone, torsions, aatype)
    atom37, mask = atom37_of_atom14(atom14_of_frames(frames, aatype), aatype)
    return aatype, torsions, frames, atom37, mask


def test_frames_of_groups_invert_the_building_of_atoms():
    aatype, _, frames, atom37, mask = structure()
    found, _, defined = group_frames(atom37, mask, aatype)
    known = defined[..., None] != 0
    # ideal atoms lie in their planes to a few thousandths of an Å
    torch.testing.assert_close(found.translation, frames.translation * known, atol=1e-2, rtol=0)
    wanted = torch.where(known[..., None], frames.rotation, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(found.rotation, wanted, atol=1e-2, rtol=0)
    assert defined[:20, 0].all()
    assert not defined[:, 1:3].any()
    assert not defined[20].any()


def test_a_perfect_prediction_has_only_what_epsilons_leave():
    aatype, torsions, _, atom37, mask = structure()
    n = len(aatype)
    msa, ones = torch.zeros(1, n, dtype=torch.long), torch.ones(n, dtype=torch.float64)
    one = ones[0]
    labels = label(aatype, torch.arange(n), ones, atom37, mask, one, one, msa, msa.double())
    assert loss.backbone_fape(labels.backbone, labels) < 1.1e-3
    assert loss.side_chain_fape(labels.frames, labels.atom14, labels) < 1.1e-3
    assert not loss.alternative_is_better(labels.atom14, labels).any()
    assert loss.alternative_is_better(labels.alternative_atom14, labels).sum() == 4  # Asp, Glu, Phe, Tyr
    exchanged = loss.side_chain_fape(labels.alternative_frames, labels.alternative_atom14, labels)
    assert exchanged < 1.1e-3
    assert loss.torsion_loss(torsions, labels) < 1e-4
    assert loss.torsion_norm(torsions, labels.mask) < 1e-6

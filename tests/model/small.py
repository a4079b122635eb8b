"""A small AlphaFold of the same code, and features for it."""

from dataclasses import replace

import torch

from axfold.config import Heads, Model, MsaStack, StructureModule, Templates, TriangleStack
from axfold.model.alphafold import AlphaFold
from axfold.weights import synthetic
from axfold.weights.names import assemble, parameters, released_shapes

PAIR = TriangleStack(heads=2, c_attention=8, c_multiplication=16, transition_factor=2)
STACK = MsaStack(blocks=2, heads=2, c_attention=8, c_outer_product=8, transition_factor=2, pair=PAIR)
SMALL = Model(
    c_m=32,
    c_z=24,
    c_e=16,
    c_s=40,
    templates=Templates(c_t=16, blocks=1, pair=PAIR, heads=2, c_attention=8),
    extra_stack=replace(STACK, blocks=1, global_column_attention=True),
    evoformer=STACK,
    structure=StructureModule(layers=3, heads=4, c_hidden=8, c_angles=16),
    heads=Heads(aligned_error=True),
)


def small_model() -> AlphaFold:
    """With synthetic parameters, float64."""
    stored = synthetic.parameters(released_shapes(SMALL), seed=0)
    model = AlphaFold(SMALL)
    pieces = parameters(SMALL)
    model.load_state_dict({name: torch.tensor(assemble(pieces[name], stored)) for name in model.state_dict()})
    return model.double().eval()


def make_features(
    n: int, clusters: int = 5, extra: int = 7, templates: int = 2, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random features of N residues in float64, with unaligned residues in the templates and gaps in the masks."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(shape, generator=g, dtype=torch.float64)

    def integers(high, *shape):
        return torch.randint(0, high, shape, generator=g)

    aatype = integers(20, n)
    masks = (rand(templates, n, 37) > 0.2).double() * (rand(templates, n, 1) > 0.2)
    beta_mask = masks[..., 3]
    return {
        "aatype": aatype,
        "residue_index": torch.arange(n),
        "seq_mask": torch.ones(n, dtype=torch.float64),
        "target_feat": torch.nn.functional.one_hot(aatype + 1, 22).double(),
        "msa_feat": rand(clusters, n, 49),
        "msa_mask": (rand(clusters, n) > 0.1).double(),
        "extra_msa": integers(22, extra, n),
        "extra_has_deletion": (rand(extra, n) > 0.8).double(),
        "extra_deletion_value": rand(extra, n),
        "extra_msa_mask": (rand(extra, n) > 0.1).double(),
        "template_aatype": integers(21, templates, n),
        "template_all_atom_positions": 20 * rand(templates, n, 37, 3),
        "template_all_atom_masks": masks,
        "template_pseudo_beta": 20 * rand(templates, n, 3) * beta_mask[..., None],
        "template_pseudo_beta_mask": beta_mask,
        "template_mask": torch.ones(templates, dtype=torch.float64),
    }

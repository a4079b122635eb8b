"""Networks of AlphaFold's widths with one block of each stack, and features for them."""

from dataclasses import replace

import torch

from axfold.config import PRESETS, Model
from axfold.memory.costs import Sizes
from axfold.model.alphafold import AlphaFold
from axfold.planning import kernels_of

MSA_FEATURES = (49 * 4, 3 * 4)  # bytes of an element on the device: float32, int32


def few_blocks(name: str) -> Model:
    model = PRESETS[name].model
    return replace(
        model,
        evoformer=replace(model.evoformer, blocks=1),
        extra_stack=replace(model.extra_stack, blocks=1),
        templates=model.templates and replace(model.templates, blocks=1),
        structure=replace(model.structure, layers=2),
    )


def make_network(templates: int, dtype: torch.dtype, device: str = "cpu") -> AlphaFold:
    torch.manual_seed(0)
    network = AlphaFold(few_blocks("model_1" if templates else "model_3"))
    return network.to_precision(dtype).to(device).eval().requires_grad_(False)


def make_features(
    n: int, clusters: int, extra: int, templates: int, device: str = "cpu"
) -> dict[str, torch.Tensor]:
    """Random features whose alignment hides nothing; a third of the templates' residues is not aligned."""
    generator = torch.Generator().manual_seed(n)

    def rand(*shape):
        return torch.rand(shape, generator=generator)

    features = {
        "aatype": torch.randint(0, 20, (n,), generator=generator, dtype=torch.int32),
        "residue_index": torch.arange(n, dtype=torch.int32),
        "seq_mask": torch.ones(n),
        "target_feat": rand(n, 22),
        "msa_feat": rand(clusters, n, 49),
        "msa_mask": torch.ones(clusters, n),
        "extra_msa": torch.randint(0, 22, (extra, n), generator=generator, dtype=torch.int32),
        "extra_has_deletion": rand(extra, n),
        "extra_deletion_value": rand(extra, n),
        "extra_msa_mask": torch.ones(extra, n),
    }
    if templates:
        masks = torch.ones(templates, n, 37)
        masks[:, ::3] = 0
        features |= {
            "template_aatype": torch.zeros(templates, n, dtype=torch.int32),
            "template_all_atom_positions": 20 * rand(templates, n, 37, 3),
            "template_all_atom_masks": masks,
            "template_pseudo_beta": 20 * rand(templates, n, 3),
            "template_pseudo_beta_mask": masks[..., 3],
            "template_mask": torch.ones(templates),
        }
    return {name: x.to(device) for name, x in features.items()}


def sizes_of(
    network: AlphaFold, n: int, clusters: int, extra: int, templates: int, on_gpu: bool = False
) -> Sizes:
    return Sizes(
        residues=n,
        clusters=clusters,
        extra=extra,
        templates=templates,
        model=network.sizes,
        itemsize=network.trunk.single.weight.itemsize,
        weights=sum(p.nbytes for p in network.parameters()),
        on_gpu=on_gpu,
        kernels=kernels_of(network) if on_gpu else frozenset(),
        msa_features=MSA_FEATURES,
    )

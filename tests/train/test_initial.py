"""Parameters before training."""

import math
from dataclasses import replace

import torch
from samples import TINY

from axfold.config import Templates
from axfold.model.alphafold import AlphaFold
from axfold.train.initial import initialise


def test_first_values_are_the_supplements():
    """Supplement 1.11.4: one linear map of each kind, open gates, residual updates that begin with nothing."""
    sizes = replace(TINY, c_m=256, c_z=192, templates=Templates(blocks=1))
    network, again, other = (AlphaFold(sizes) for _ in range(3))
    for made, seed in ((network, 0), (again, 0), (other, 1)):
        initialise(made, seed)
    found = {name: p.detach() for name, p in network.named_parameters()}
    assert all(p.equal(found[name]) for name, p in again.named_parameters())
    assert any(not p.equal(found[name]) for name, p in other.named_parameters())
    block = "trunk.evoformer.blocks.0"
    for name, deviation in (
        ("trunk.single.weight", 256**-0.5),  # LeCun's
        (f"{block}.msa_transition.expand.weight", (2 / 256) ** 0.5),  # He's
        (
            f"{block}.row_attention.attention.qkv.weight",
            (2 / (256 + 8)) ** 0.5,
        ),  # Glorot's, each of the three alone
        ("structure.attention.kv.weight", TINY.c_s**-0.5),
    ):
        assert math.isclose(found[name].std(), deviation, rel_tol=0.1), name
    zero = (
        *(f"{block}.{x}.output.weight" for x in ("row_attention.attention", "column_attention.attention")),
        *(f"{block}.{x}.output.weight" for x in ("msa_transition", "outer_product_mean", "pair.transition")),
        *(
            f"{block}.pair.{x}.weight"
            for x in ("multiplication_incoming.output", "multiplication_outgoing.output_gate")
        ),
        *(
            "trunk.template_pair.output.weight",
            "structure.attention.output.weight",
            "structure.backbone.weight",
        ),
        *("structure.transition.2.weight", "structure.angles.blocks.1.3.weight"),
        *("heads.distogram.project.weight", "heads.masked_msa.weight", "heads.confidence.layers.4.weight"),
        *("heads.aligned_error.project.weight", "heads.resolved.weight"),
    )
    for name in zero:
        assert not found[name].any(), name
    own = found[f"{block}.pair.multiplication_outgoing.own.linear.weight"]
    assert own[: len(own) // 2].any()
    assert not own[len(own) // 2 :].any()
    for name, p in found.items():
        if name.endswith("gate.bias"):
            assert (p == 1).all(), name
        elif "norm" in name:
            assert (p == (1 if name.endswith("weight") else 0)).all(), name
    assert torch.nn.functional.softplus(found["structure.attention.point_weights"]).allclose(torch.ones(2))
    assert sum(not p.any() for name, p in found.items() if name.endswith("weight")) < len(found) / 3

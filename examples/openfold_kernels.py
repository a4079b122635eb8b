"""axfold's kernels in OpenFold's and OpenFold-3's models, in one call: `replace(model)`.

It swaps the `forward` of their blocks for one that runs `axfold.ops` with the blocks' own parameters: in OpenFold the
Evoformer's, the extra MSA's and the templates' blocks, in OpenFold-3 those of its pairs (in the Pairformer, the MSA
module and the templates) and its outer product means. Parameters stay where they are, so that weights may be loaded
before or after, and moved to another device or precision.

Where gradients are recorded their own code runs. So it does with `_offload_inference`, in which they move
representations to the host themselves.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from axfold import ops

PAIR_BLOCK = {"tri_mul_out", "tri_mul_in", "tri_att_start", "tri_att_end", "pair_transition"}
MSA_BLOCK = {"msa_att_row", "msa_transition", "outer_product_mean", "pair_stack"}
"""Submodules by which blocks are known, whatever their classes are called."""


def replace(model: nn.Module) -> int:
    """Run the blocks of `model` by axfold's kernels from now on; returns how many blocks that are."""
    blocks = 0
    for module in model.modules():
        parts = {name for name, part in module.named_children() if part is not None}
        if parts >= PAIR_BLOCK:
            module.forward = partial(pair_block, module, module.forward)
        elif parts >= MSA_BLOCK and hasattr(module.msa_att_row, "mha"):
            module.forward = partial(msa_block, module, module.forward)
        elif "outer_product_mean" in parts and hasattr(module, "_compute_opm"):  # of AlphaFold 3's MSA module
            module._compute_opm = partial(compute_opm, module, module._compute_opm)
        else:
            continue
        blocks += 1
    return blocks


def pair_block(block: Any, theirs: Any, z: Tensor, pair_mask: Tensor | None = None, **options: Any) -> Tensor:
    """Two triangle multiplications, two triangle attentions, a transition; z [*, N, N, c], its mask [*, N, N]."""
    if torch.is_grad_enabled():
        return theirs(z, *(() if pair_mask is None else (pair_mask,)), **options)
    mask = options.get("mask", pair_mask)  # as the templates' blocks call it
    masked = mask if options.get("_mask_trans", True) else None
    mask = shown(mask)
    if not options.get("inplace_safe"):
        z = z.clone()
    multiplications = ("outgoing", block.tri_mul_out), ("incoming", block.tri_mul_in)
    attentions = ("starting", block.tri_att_start), ("ending", block.tri_att_end)

    def multiply(z: Tensor) -> Tensor:
        for edges, module in multiplications:
            z = ops.triangle_multiplication(z, mask, edges=edges, **multiplication_layers(module))
        return z

    def attend(z: Tensor) -> Tensor:
        for node, module in attentions:
            bias = module.linear if hasattr(module, "linear") else module.linear_z
            layers = attention_layers(module.mha)
            z = ops.triangle_attention(z, mask, node=node, norm=module.layer_norm, bias=bias, **layers)
        return z

    z = attend(multiply(z)) if getattr(block, "tri_mul_first", True) else multiply(attend(z))
    return transition(block.pair_transition, z, masked)


def msa_block(
    block: Any, theirs: Any, m: Tensor, z: Tensor, msa_mask: Tensor, pair_mask: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """A block of the Evoformer or of the extra MSA: m [*, S, N, c_m], z [*, N, N, c_z]."""
    if torch.is_grad_enabled() or options.get("_offload_inference"):
        return theirs(m, z, msa_mask, pair_mask, **options)
    if not options.get("inplace_safe"):
        m, z = m.clone(), z.clone()
    mask = shown(msa_mask)
    masked = options.get("_mask_trans", True)
    if block.opm_first:
        z = add_outer_product_mean(block, z, m, mask)
    row = block.msa_att_row
    layers = attention_layers(row.mha) | {"norm_pair": row.layer_norm_z, "bias": row.linear_z}
    m = ops.msa_row_attention(m, z, mask, norm=row.layer_norm_m, **layers)
    column = getattr(block, "msa_att_col", None)
    if hasattr(column, "global_attention"):
        layers = attention_layers(column.global_attention)
        del layers["heads"]
        m = ops.msa_global_column_attention(m, mask, norm=column.layer_norm_m, **layers)
        masked = True  # the extra MSA's transitions always are
    elif column is not None:
        column = column._msa_att
        m = ops.msa_column_attention(m, mask, norm=column.layer_norm_m, **attention_layers(column.mha))
    m = transition(block.msa_transition, m, msa_mask if masked else None)
    if not block.opm_first:
        z = add_outer_product_mean(block, z, m, mask)
    return m, block.pair_stack(z, pair_mask=pair_mask, **{**options, "inplace_safe": True})


def compute_opm(
    block: Any, theirs: Any, input_tensors: list[Tensor], msa_mask: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """Their step that adds the outer product mean of m to z."""
    if torch.is_grad_enabled() or options.get("_offload_inference"):
        return theirs(input_tensors=input_tensors, msa_mask=msa_mask, **options)
    m, z = input_tensors
    z = z if options.get("inplace_safe") else z.clone()
    return m, add_outer_product_mean(block, z, m, shown(msa_mask))


def add_outer_product_mean(block: Any, z: Tensor, m: Tensor, mask: Tensor | None) -> Tensor:
    mean = block.outer_product_mean
    layers = {"norm": mean.layer_norm, "a": mean.linear_1, "b": mean.linear_2, "output": mean.linear_out}
    return ops.outer_product_mean(z, m, mask, **layers)


def transition(module: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """x [*, i, j, c] with its transition, which a mask [*, i, j] hides where it is 0."""
    if hasattr(module, "linear_1"):
        layers = module.layer_norm, module.linear_1, module.linear_2
    elif (
        hasattr(module, "transition_mlp") and len(module.transition_mlp.layers) == 1
    ):  # OpenFold-3's name for it
        mlp = module.transition_mlp
        layers = module.layer_norm, mlp.layers[0][0], mlp.linear_out
    else:  # AlphaFold 3's has another form
        x += module(x, mask=mask)
        return x
    parameters = (p.to(x.dtype) for layer in layers for p in (layer.weight, layer.bias))
    return ops.transition(x, *parameters, None if mask is None else mask[..., None].to(x.dtype))


def multiplication_layers(module: Any) -> dict[str, Any]:
    """The layers of a triangle multiplication, whether a and b have projections of their own or share them."""
    if hasattr(module, "linear_ab_p"):
        (a, b), (a_gate, b_gate) = halves(module.linear_ab_p), halves(module.linear_ab_g)
    else:
        a, a_gate, b, b_gate = module.linear_a_p, module.linear_a_g, module.linear_b_p, module.linear_b_g
    return {
        "norm": module.layer_norm_in,
        "a": a,
        "a_gate": a_gate,
        "b": b,
        "b_gate": b_gate,
        "norm_product": module.layer_norm_out,
        "output": module.linear_z,
        "gate": module.linear_g,
    }


def attention_layers(mha: Any) -> dict[str, Any]:
    """The projections of an attention module and its number of heads."""
    names = {"q": "linear_q", "k": "linear_k", "v": "linear_v", "gate": "linear_g", "output": "linear_o"}
    return {"heads": mha.no_heads, **{ours: getattr(mha, name) for ours, name in names.items()}}


def halves(layer: nn.Linear) -> tuple[ops.Weights, ops.Weights]:
    """The upper and the lower half of a layer's outputs, as layers."""
    biases = (None, None) if layer.bias is None else layer.bias.chunk(2)
    upper, lower = map(ops.Weights, layer.weight.chunk(2), biases)
    return upper, lower


def shown(mask: Tensor | None) -> Tensor | None:
    """The mask, or None for one that hides nothing, which is faster."""
    return None if mask is None or bool((mask == 1).all()) else mask

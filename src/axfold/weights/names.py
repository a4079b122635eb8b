"""How the tensors of DeepMind's released files become axfold's parameters.

A released tensor is named `scope//name`; the tensors of all blocks of a stack are one, stacked in front. Linear
weights are (inputs..., outputs...), ours are PyTorch's (outputs, inputs); projections that we fuse are joined.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from axfold.config import Model, MsaStack, StructureModule, Templates, TriangleStack

ROOT = "alphafold/alphafold_iteration"
EVOFORMER = f"{ROOT}/evoformer"


@dataclass(frozen=True)
class Piece:
    """A released tensor, or one block's part of a stacked one, as outputs of a parameter.

    shape: without the blocks; inputs: how many of its leading axes are inputs of a linear map (0: a vector)
    """

    key: str
    shape: tuple[int, ...]
    inputs: int = 0
    block: int | None = None
    blocks: int | None = None

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in the released file."""
        return self.shape if self.blocks is None else (self.blocks, *self.shape)

    def take(self, stored: np.ndarray) -> np.ndarray:
        """This piece of the stored tensor, (outputs,) or (outputs, inputs)."""
        array = stored if self.block is None else stored[self.block]
        fan_in = int(np.prod(self.shape[: self.inputs]))
        return array.reshape(fan_in, -1).T if self.inputs else array.reshape(-1)


Parameters = dict[str, tuple[Piece, ...]]
"""Name of each parameter of the model -> the pieces that are joined along its outputs."""


def assemble(
    pieces: tuple[Piece, ...],
    stored: Mapping[str, np.ndarray],
    empty: Callable[[tuple[int, ...], np.dtype], np.ndarray] = np.empty,
) -> np.ndarray:
    """The parameter that the pieces make, in an array of `empty`: every number is copied once."""
    taken = [piece.take(stored[piece.key]) for piece in pieces]
    whole = empty((sum(map(len, taken)), *taken[0].shape[1:]), taken[0].dtype)
    return np.concatenate(taken, out=whole)


def parameters(sizes: Model) -> Parameters:
    """Every parameter of `model.alphafold.AlphaFold(sizes)` and where it comes from."""
    return dict(_model(sizes))


def released_shapes(sizes: Model) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the released file of a model of these sizes."""
    return {piece.key: piece.stored_shape for pieces in parameters(sizes).values() for piece in pieces}


Named = Iterator[tuple[str, tuple[Piece, ...]]]


def _linear(ours: str, scopes: str | tuple[str, ...], c_in: int, *c_out: int, bias: bool = True) -> Named:
    """One linear map, or several with the same input side by side."""
    scopes = (scopes,) if isinstance(scopes, str) else scopes
    c_out = c_out if len(c_out) == len(scopes) else c_out * len(scopes)
    each = list(zip(scopes, c_out, strict=True))
    yield f"{ours}.weight", tuple(Piece(f"{scope}//weights", (c_in, c), 1) for scope, c in each)
    if bias:
        yield f"{ours}.bias", tuple(Piece(f"{scope}//bias", (c,)) for scope, c in each)


def _norm(ours: str, scope: str, c: int) -> Named:
    yield f"{ours}.weight", (Piece(f"{scope}//scale", (c,)),)
    yield f"{ours}.bias", (Piece(f"{scope}//offset", (c,)),)


def _gated_attention(ours: str, scope: str, c: int, heads: int, c_head: int) -> Named:
    split = (c, heads, c_head)
    yield f"{ours}.qkv.weight", tuple(Piece(f"{scope}//{x}_w", split, 1) for x in ("query", "key", "value"))
    yield f"{ours}.gate.weight", (Piece(f"{scope}//gating_w", split, 1),)
    yield f"{ours}.gate.bias", (Piece(f"{scope}//gating_b", (heads, c_head)),)
    yield from _attention_output(ours, scope, c, heads, c_head)


def _attention_output(ours: str, scope: str, c: int, heads: int, c_head: int) -> Named:
    yield f"{ours}.output.weight", (Piece(f"{scope}//output_w", (heads, c_head, c), 2),)
    yield f"{ours}.output.bias", (Piece(f"{scope}//output_b", (c,)),)


def _transition(ours: str, scope: str, c: int, factor: int) -> Named:
    yield from _norm(f"{ours}.norm", f"{scope}/input_layer_norm", c)
    yield from _linear(f"{ours}.expand", f"{scope}/transition1", c, factor * c)
    yield from _linear(f"{ours}.output", f"{scope}/transition2", factor * c, c)


def _pair_block(ours: str, scope: str, c: int, sizes: TriangleStack) -> Named:
    hidden = sizes.c_multiplication
    for edges in ("outgoing", "incoming"):
        mine, theirs = f"{ours}.multiplication_{edges}", f"{scope}/triangle_multiplication_{edges}"
        yield from _norm(f"{mine}.norm", f"{theirs}/layer_norm_input", c)
        for x, side in (("own", "left"), ("others", "right")):
            yield from _linear(
                f"{mine}.{x}.linear", (f"{theirs}/{side}_projection", f"{theirs}/{side}_gate"), c, hidden
            )
        yield from _norm(f"{mine}.norm_product", f"{theirs}/center_layer_norm", hidden)
        yield from _linear(f"{mine}.output", f"{theirs}/output_projection", hidden, c)
        yield from _linear(f"{mine}.output_gate", f"{theirs}/gating_linear", c, c)
    for node in ("starting", "ending"):
        mine, theirs = f"{ours}.attention_{node}", f"{scope}/triangle_attention_{node}_node"
        yield from _norm(f"{mine}.norm", f"{theirs}/query_norm", c)
        yield f"{mine}.bias.weight", (Piece(f"{theirs}//feat_2d_weights", (c, sizes.heads), 1),)
        yield from _gated_attention(
            f"{mine}.attention", f"{theirs}/attention", c, sizes.heads, sizes.c_attention
        )
    yield from _transition(f"{ours}.transition", f"{scope}/pair_transition", c, sizes.transition_factor)


def _evoformer_block(ours: str, scope: str, c_m: int, c_z: int, sizes: MsaStack) -> Named:
    heads, c_head = sizes.heads, sizes.c_attention
    mine, theirs = f"{ours}.row_attention", f"{scope}/msa_row_attention_with_pair_bias"
    yield from _norm(f"{mine}.norm", f"{theirs}/query_norm", c_m)
    yield from _norm(f"{mine}.norm_pair", f"{theirs}/feat_2d_norm", c_z)
    yield f"{mine}.bias.weight", (Piece(f"{theirs}//feat_2d_weights", (c_z, heads), 1),)
    yield from _gated_attention(f"{mine}.attention", f"{theirs}/attention", c_m, heads, c_head)

    mine = f"{ours}.column_attention"
    if sizes.global_column_attention:
        theirs = f"{scope}/msa_column_global_attention"
        inner = f"{theirs}/attention"
        yield f"{mine}.q.weight", (Piece(f"{inner}//query_w", (c_m, heads, c_head), 1),)
        yield f"{mine}.kv.weight", tuple(Piece(f"{inner}//{x}_w", (c_m, c_head), 1) for x in ("key", "value"))
        yield f"{mine}.gate.weight", (Piece(f"{inner}//gating_w", (c_m, heads, c_head), 1),)
        yield f"{mine}.gate.bias", (Piece(f"{inner}//gating_b", (heads, c_head)),)
        yield from _attention_output(mine, inner, c_m, heads, c_head)
    else:
        theirs = f"{scope}/msa_column_attention"
        yield from _gated_attention(f"{mine}.attention", f"{theirs}/attention", c_m, heads, c_head)
    yield from _norm(f"{mine}.norm", f"{theirs}/query_norm", c_m)

    yield from _transition(f"{ours}.msa_transition", f"{scope}/msa_transition", c_m, sizes.transition_factor)

    mine, theirs, c = f"{ours}.outer_product_mean", f"{scope}/outer_product_mean", sizes.c_outer_product
    yield from _norm(f"{mine}.norm", f"{theirs}/layer_norm_input", c_m)
    yield from _linear(f"{mine}.a", f"{theirs}/left_projection", c_m, c)
    yield from _linear(f"{mine}.b", f"{theirs}/right_projection", c_m, c)
    yield f"{mine}.output.weight", (Piece(f"{theirs}//output_w", (c, c, c_z), 2),)
    yield f"{mine}.output.bias", (Piece(f"{theirs}//output_b", (c_z,)),)
    yield from _pair_block(f"{ours}.pair", scope, c_z, sizes.pair)


def _stack(ours: str, blocks: int, of_block: Named) -> Named:
    """The parameters of all blocks from those of one, whose names begin with "block"."""
    for name, pieces in of_block:
        for i in range(blocks):
            numbered = tuple(replace(piece, block=i, blocks=blocks) for piece in pieces)
            yield name.replace("block", f"{ours}.{i}", 1), numbered


def _templates(ours: str, c_m: int, c_z: int, sizes: Templates) -> Named:
    mine, theirs = f"{ours}.template_pair", f"{EVOFORMER}/template_embedding"
    single = f"{theirs}/single_template_embedding"
    c_t, heads, c_head = sizes.c_t, sizes.heads, sizes.c_attention
    yield from _linear(f"{mine}.embed.features", f"{single}/embedding2d", sizes.bins + 49, c_t)
    stack = f"{single}/template_pair_stack/__layer_stack_no_state"
    yield from _stack(f"{mine}.embed.blocks", sizes.blocks, _pair_block("block", stack, c_t, sizes.pair))
    yield from _norm(f"{mine}.embed.norm", f"{single}/output_layer_norm", c_t)
    attention = f"{theirs}/attention"
    yield f"{mine}.q.weight", (Piece(f"{attention}//query_w", (c_z, heads, c_head), 1),)
    kv = (Piece(f"{attention}//{x}_w", (c_t, heads, c_head), 1) for x in ("key", "value"))
    yield f"{mine}.kv.weight", tuple(kv)
    yield from _attention_output(mine, attention, c_z, heads, c_head)
    if sizes.torsion_angles:
        rows = f"{ours}.template_torsions"
        yield from _linear(f"{rows}.features", f"{EVOFORMER}/template_single_embedding", 57, c_m)
        yield from _linear(f"{rows}.output", f"{EVOFORMER}/template_projection", c_m, c_m)


def _trunk(sizes: Model) -> Named:
    mine, theirs = "trunk", EVOFORMER
    c_m, c_z, c_e = sizes.c_m, sizes.c_z, sizes.c_e
    yield from _linear(f"{mine}.embed_msa.msa", f"{theirs}/preprocess_msa", sizes.msa_features, c_m)
    yield from _linear(f"{mine}.embed_msa.target", f"{theirs}/preprocess_1d", sizes.target_features, c_m)
    yield from _norm(f"{mine}.embed_msa.norm_recycled", f"{theirs}/prev_msa_first_row_norm", c_m)
    pair = f"{mine}.embed_pair"
    yield from _linear(f"{pair}.left", f"{theirs}/left_single", sizes.target_features, c_z)
    yield from _linear(f"{pair}.right", f"{theirs}/right_single", sizes.target_features, c_z)
    relative = f"{theirs}/pair_activiations"  # AlphaFold's spelling
    yield from _linear(f"{pair}.relative", relative, 2 * sizes.max_relative + 1, c_z)
    yield from _linear(f"{pair}.distances", f"{theirs}/prev_pos_linear", sizes.recycle_bins, c_z)
    yield from _norm(f"{pair}.norm_recycled", f"{theirs}/prev_pair_norm", c_z)
    yield from _linear(
        f"{mine}.embed_extra.features", f"{theirs}/extra_msa_activations", sizes.extra_msa_features, c_e
    )
    if sizes.templates:
        yield from _templates(mine, c_m, c_z, sizes.templates)
    extra = _evoformer_block("block", f"{theirs}/extra_msa_stack", c_e, c_z, sizes.extra_stack)
    yield from _stack(f"{mine}.extra_stack.blocks", sizes.extra_stack.blocks, extra)
    main = _evoformer_block("block", f"{theirs}/evoformer_iteration", c_m, c_z, sizes.evoformer)
    yield from _stack(f"{mine}.evoformer.blocks", sizes.evoformer.blocks, main)
    yield from _linear(f"{mine}.single", f"{theirs}/single_activations", c_m, sizes.c_s)


def _structure(sizes: StructureModule, c_s: int, c_z: int) -> Named:
    mine, theirs = "structure", f"{ROOT}/structure_module"
    fold = f"{theirs}/fold_iteration"
    yield from _norm(f"{mine}.norm_single", f"{theirs}/single_layer_norm", c_s)
    yield from _norm(f"{mine}.norm_pair", f"{theirs}/pair_layer_norm", c_z)
    yield from _linear(f"{mine}.project", f"{theirs}/initial_projection", c_s, c_s)

    attention, scope = f"{mine}.attention", f"{fold}/invariant_point_attention"
    heads, points = sizes.heads, sizes.query_points + sizes.value_points
    yield from _linear(f"{attention}.q", f"{scope}/q_scalar", c_s, heads * sizes.c_hidden)
    yield from _linear(f"{attention}.kv", f"{scope}/kv_scalar", c_s, 2 * heads * sizes.c_hidden)
    yield from _linear(f"{attention}.q_points", f"{scope}/q_point_local", c_s, 3 * heads * sizes.query_points)
    yield from _linear(f"{attention}.kv_points", f"{scope}/kv_point_local", c_s, 3 * heads * points)
    yield from _linear(f"{attention}.bias", f"{scope}/attention_2d", c_z, heads)
    yield f"{attention}.point_weights", (Piece(f"{scope}//trainable_point_weights", (heads,)),)
    features = heads * (sizes.c_hidden + 4 * sizes.value_points + c_z)
    yield from _linear(f"{attention}.output", f"{scope}/output_projection", features, c_s)

    yield from _norm(f"{mine}.norm_attention", f"{fold}/attention_layer_norm", c_s)
    yield from _norm(f"{mine}.norm_transition", f"{fold}/transition_layer_norm", c_s)
    for i in range(sizes.transition_layers):
        yield from _linear(f"{mine}.transition.{i}", f"{fold}/transition{_suffix(i)}", c_s, c_s)
    yield from _linear(f"{mine}.backbone", f"{fold}/affine_update", c_s, 6)

    angles, scope, c = f"{mine}.angles", f"{fold}/rigid_sidechain", sizes.c_angles
    yield from _linear(f"{angles}.current", f"{scope}/input_projection", c_s, c)
    yield from _linear(f"{angles}.initial", f"{scope}/input_projection_1", c_s, c)
    for i in range(sizes.angle_blocks):
        yield from _linear(f"{angles}.blocks.{i}.1", f"{scope}/resblock1{_suffix(i)}", c, c)
        yield from _linear(f"{angles}.blocks.{i}.3", f"{scope}/resblock2{_suffix(i)}", c, c)
    yield from _linear(f"{angles}.output", f"{scope}/unnormalized_angles", c, 14)


def _suffix(i: int) -> str:
    """Of the i-th module that Haiku saw under one name."""
    return f"_{i}" if i else ""


def _heads(sizes: Model) -> Named:
    heads, c_s = sizes.heads, sizes.c_s
    confidence, scope, c = "heads.confidence", f"{ROOT}/predicted_lddt_head", heads.c_plddt
    yield from _norm(f"{confidence}.norm", f"{scope}/input_layer_norm", c_s)
    yield from _linear(f"{confidence}.layers.0", f"{scope}/act_0", c_s, c)
    yield from _linear(f"{confidence}.layers.2", f"{scope}/act_1", c, c)
    yield from _linear(f"{confidence}.layers.4", f"{scope}/logits", c, heads.plddt_bins)
    half = f"{ROOT}/distogram_head/half_logits"
    yield from _linear("heads.distogram.project", half, sizes.c_z, heads.distogram_bins)
    masked = f"{ROOT}/masked_msa_head/logits"
    yield from _linear("heads.masked_msa", masked, sizes.c_m, heads.masked_msa_classes)
    yield from _linear("heads.resolved", f"{ROOT}/experimentally_resolved_head/logits", c_s, 37)
    if heads.aligned_error:
        error = f"{ROOT}/predicted_aligned_error_head/logits"
        yield from _linear("heads.aligned_error.project", error, sizes.c_z, heads.aligned_error_bins)


def _model(sizes: Model) -> Named:
    yield from _trunk(sizes)
    yield from _structure(sizes.structure, sizes.c_s, sizes.c_z)
    yield from _heads(sizes)

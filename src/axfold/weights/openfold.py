"""OpenFold's state dict -> DeepMind's tensors.

OpenFold keeps each block of a stack apart and flattens every weight to (outputs, inputs). So a tensor of a
DeepMind file is the stack of its blocks, each transposed and reshaped. Only the names need a table: `_PLACES`
says under which module of OpenFold's a scope of DeepMind's lies, `_PARAMETERS` what its tensors are called there.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from axfold.config import Model
from axfold.weights import fit
from axfold.weights import names as released
from axfold.weights.tensors import Shape, Shapes, Tensors

_TRIANGLE_ATTENTION = {"": "", "/query_norm": ".layer_norm", "/attention": ".mha"}


def _triangle_multiplication(left: str, right: str) -> dict[str, str]:
    """OpenFold's a and b are the supplement's; DeepMind's left and right are swapped for incoming edges."""
    return {
        "/layer_norm_input": ".layer_norm_in",
        "/center_layer_norm": ".layer_norm_out",
        "/left_projection": f".linear_{left}_p",
        "/left_gate": f".linear_{left}_g",
        "/right_projection": f".linear_{right}_p",
        "/right_gate": f".linear_{right}_g",
        "/output_projection": ".linear_z",
        "/gating_linear": ".linear_g",
    }


_TRANSITION = {"/input_layer_norm": ".layer_norm", "/transition1": ".linear_1", "/transition2": ".linear_2"}


def _under(scope: str, module: str, places: Mapping[str, str]) -> dict[str, str]:
    return {scope + ours: module + theirs for ours, theirs in places.items()}


_PAIR_STACK = (
    _under("/triangle_multiplication_outgoing", ".tri_mul_out", _triangle_multiplication("a", "b"))
    | _under("/triangle_multiplication_incoming", ".tri_mul_in", _triangle_multiplication("b", "a"))
    | _under("/triangle_attention_starting_node", ".tri_att_start", _TRIANGLE_ATTENTION)
    | _under("/triangle_attention_ending_node", ".tri_att_end", _TRIANGLE_ATTENTION)
    | _under("/pair_transition", ".pair_transition", _TRANSITION)
)

_MSA_STACK = (
    {
        "/msa_row_attention_with_pair_bias": ".msa_att_row",
        "/msa_row_attention_with_pair_bias/query_norm": ".msa_att_row.layer_norm_m",
        "/msa_row_attention_with_pair_bias/feat_2d_norm": ".msa_att_row.layer_norm_z",
        "/msa_row_attention_with_pair_bias/attention": ".msa_att_row.mha",
        "/msa_column_attention/query_norm": ".msa_att_col._msa_att.layer_norm_m",
        "/msa_column_attention/attention": ".msa_att_col._msa_att.mha",
        "/msa_column_global_attention/query_norm": ".msa_att_col.layer_norm_m",
        "/msa_column_global_attention/attention": ".msa_att_col.global_attention",
        "/outer_product_mean": ".outer_product_mean",
        "/outer_product_mean/layer_norm_input": ".outer_product_mean.layer_norm",
        "/outer_product_mean/left_projection": ".outer_product_mean.linear_1",
        "/outer_product_mean/right_projection": ".outer_product_mean.linear_2",
    }
    | _under("/msa_transition", ".msa_transition", _TRANSITION)
    | _under("", ".pair_stack", _PAIR_STACK)
)

_TEMPLATE = "evoformer/template_embedding/single_template_embedding"

_PLACES = (  # scope of DeepMind's (below names.ROOT) -> module of OpenFold's; * is a block's number
    {
        "evoformer/preprocess_1d": "input_embedder.linear_tf_m",
        "evoformer/preprocess_msa": "input_embedder.linear_msa_m",
        "evoformer/left_single": "input_embedder.linear_tf_z_i",
        "evoformer/right_single": "input_embedder.linear_tf_z_j",
        "evoformer/pair_activiations": "input_embedder.linear_relpos",
        "evoformer/prev_pos_linear": "recycling_embedder.linear",
        "evoformer/prev_msa_first_row_norm": "recycling_embedder.layer_norm_m",
        "evoformer/prev_pair_norm": "recycling_embedder.layer_norm_z",
        "evoformer/extra_msa_activations": "extra_msa_embedder.linear",
        "evoformer/single_activations": "evoformer.linear",
        "evoformer/template_single_embedding": "template_embedder.template_single_embedder.linear_1",
        "evoformer/template_projection": "template_embedder.template_single_embedder.linear_2",
        "evoformer/template_embedding/attention": "template_embedder.template_pointwise_att.mha",
        f"{_TEMPLATE}/embedding2d": "template_embedder.template_pair_embedder.linear",
        f"{_TEMPLATE}/output_layer_norm": "template_embedder.template_pair_stack.layer_norm",
        "structure_module/single_layer_norm": "structure_module.layer_norm_s",
        "structure_module/initial_projection": "structure_module.linear_in",
        "structure_module/pair_layer_norm": "structure_module.layer_norm_z",
        "predicted_lddt_head/input_layer_norm": "aux_heads.plddt.layer_norm",
        "predicted_lddt_head/act_0": "aux_heads.plddt.linear_1",
        "predicted_lddt_head/act_1": "aux_heads.plddt.linear_2",
        "predicted_lddt_head/logits": "aux_heads.plddt.linear_3",
        "distogram_head/half_logits": "aux_heads.distogram.linear",
        "experimentally_resolved_head/logits": "aux_heads.experimentally_resolved.linear",
        "masked_msa_head/logits": "aux_heads.masked_msa.linear",
        "predicted_aligned_error_head/logits": "aux_heads.tm.linear",
    }
    | _under("evoformer/evoformer_iteration", "evoformer.blocks.*", _MSA_STACK)
    | _under("evoformer/extra_msa_stack", "extra_msa_stack.blocks.*", _MSA_STACK)
    | _under(
        f"{_TEMPLATE}/template_pair_stack/__layer_stack_no_state",
        "template_embedder.template_pair_stack.blocks.*",
        _PAIR_STACK,
    )
    | _under(
        "structure_module/fold_iteration",
        "structure_module",
        {
            "/attention_layer_norm": ".layer_norm_ipa",
            "/invariant_point_attention": ".ipa",
            "/invariant_point_attention/q_scalar": ".ipa.linear_q",
            "/invariant_point_attention/kv_scalar": ".ipa.linear_kv",
            "/invariant_point_attention/q_point_local": ".ipa.linear_q_points.linear",
            "/invariant_point_attention/kv_point_local": ".ipa.linear_kv_points.linear",
            "/invariant_point_attention/attention_2d": ".ipa.linear_b",
            "/invariant_point_attention/output_projection": ".ipa.linear_out",
            "/transition": ".transition.layers.0.linear_1",
            "/transition_1": ".transition.layers.0.linear_2",
            "/transition_2": ".transition.layers.0.linear_3",
            "/transition_layer_norm": ".transition.layer_norm",
            "/affine_update": ".bb_update.linear",
            "/rigid_sidechain/input_projection": ".angle_resnet.linear_in",
            "/rigid_sidechain/input_projection_1": ".angle_resnet.linear_initial",
            "/rigid_sidechain/resblock1": ".angle_resnet.layers.0.linear_1",
            "/rigid_sidechain/resblock2": ".angle_resnet.layers.0.linear_2",
            "/rigid_sidechain/resblock1_1": ".angle_resnet.layers.1.linear_1",
            "/rigid_sidechain/resblock2_1": ".angle_resnet.layers.1.linear_2",
            "/rigid_sidechain/unnormalized_angles": ".angle_resnet.linear_out",
        },
    )
)

_PARAMETERS = {
    "weights": "weight",
    "bias": "bias",
    "scale": "weight",
    "offset": "bias",
    "query_w": "linear_q.weight",
    "key_w": "linear_k.weight",
    "value_w": "linear_v.weight",
    "gating_w": "linear_g.weight",
    "gating_b": "linear_g.bias",
    "output_w": "linear_o.weight",
    "output_b": "linear_o.bias",
    "trainable_point_weights": "head_weights",
}
_PARAMETERS_HERE = {  # where a module calls them otherwise
    ("msa_row_attention_with_pair_bias", "feat_2d_weights"): "linear_z.weight",
    ("triangle_attention_starting_node", "feat_2d_weights"): "linear.weight",
    ("triangle_attention_ending_node", "feat_2d_weights"): "linear.weight",
    ("outer_product_mean", "output_w"): "linear_out.weight",
    ("outer_product_mean", "output_b"): "linear_out.bias",
}

_WRAPPERS = re.compile(r"^(module\.|model\.)+")  # of DeepSpeed, DistributedDataParallel and Lightning
_FIRST_VERSION = (  # names of OpenFold 1, in which its released parameters are written
    (re.compile(r"^template_angle_embedder\."), "template_embedder.template_single_embedder."),
    (re.compile(r"^template_(pair_embedder|pair_stack|pointwise_att)\."), r"template_embedder.template_\1."),
    (re.compile(r"\.core\.(tri_|pair_transition)"), r".pair_stack.\1"),
    (re.compile(r"\.core\.(msa_transition|outer_product_mean)"), r".\1"),
    (re.compile(r"\.ipa\.(linear_(?:q|kv)_points)\.(weight|bias)$"), r".ipa.\1.linear.\2"),
)


def parameters(where: str, state: Mapping[str, Any], model: Model) -> Tensors:
    """DeepMind's tensors of `model` from OpenFold's state dict of torch tensors.

    `where` names the file in messages. Raises WeightsError, with OpenFold's name, for the first tensor that is
    missing, has another shape or is one too many.
    """
    renamed = {_present_name(name): tensor for name, tensor in state.items()}
    fit.check(where, {name: tuple(tensor.shape) for name, tensor in renamed.items()}, model, shapes)
    wanted = released.released_shapes(model)

    def read(name: str) -> np.ndarray:
        blocks = [renamed[theirs].detach().float().numpy().T for theirs in names(name, wanted[name])]
        return np.stack(blocks).reshape(wanted[name])

    return Tensors(where, wanted, read)


def shapes(model: Model) -> Shapes:
    """Every tensor of OpenFold's state dict of `model`."""
    return {
        theirs: _flat(key, shape)
        for key, shape in released.released_shapes(model).items()
        for theirs in names(key, shape)
    }


def names(key: str, shape: Shape) -> list[str]:
    """OpenFold's names of the released tensor `key`: one, or one for each block of a stack."""
    module, scope, parameter = _place(key)
    called = _PARAMETERS_HERE.get((scope.rsplit("/", 1)[-1], parameter)) or _PARAMETERS[parameter]
    name = f"{module}.{called}"
    return [name.replace("*", str(block)) for block in range(shape[0])] if "*" in name else [name]


def _place(key: str) -> tuple[str, str, str]:
    """OpenFold's module, DeepMind's scope and the parameter of a released tensor."""
    scope, parameter = key.removeprefix(f"{released.ROOT}/").split("//")
    return _PLACES[scope], scope, parameter


def _flat(key: str, shape: Shape) -> Shape:
    """Shape in OpenFold's layout of one block of the released tensor `key`: (outputs, inputs) or (outputs,)."""
    module, _, parameter = _place(key)
    one = shape[1:] if "*" in module else shape
    if parameter == "output_w":
        return one[-1], math.prod(one[:-1])
    if parameter.endswith(("_w", "weights")) and len(one) > 1:
        return math.prod(one[1:]), one[0]
    return (math.prod(one),)


def _present_name(name: str) -> str:
    name = _WRAPPERS.sub("", name)
    for former, present in _FIRST_VERSION:
        name = former.sub(present, name)
    return name

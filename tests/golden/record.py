"""Runs the model on recorded inputs and takes down the intermediates that DeepMind's runs recorded, by their names."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from axfold.model.alphafold import AlphaFold, Pass, Recycled

SUBMODULES = {
    "row_attention": "msa_row_attention_with_pair_bias",
    "column_attention": "msa_column_attention",
    "msa_transition": "msa_transition",
    "outer_product_mean": "outer_product_mean",
    "pair.multiplication_outgoing": "triangle_multiplication_outgoing",
    "pair.multiplication_incoming": "triangle_multiplication_incoming",
    "pair.attention_starting": "triangle_attention_starting_node",
    "pair.attention_ending": "triangle_attention_ending_node",
    "pair.transition": "pair_transition",
}


class Recorder:
    """Attaches to a model; `taken` holds copies of what passed by during the last pass."""

    def __init__(self, model: AlphaFold):
        self.model = model
        self.taken: dict[str, Tensor] = {}
        self._rows: dict[str, list[Tensor]] = {}

    def _take(self, name: str, value: Tensor) -> None:
        self.taken[name] = value.detach().clone()

    def _take_first(self, name: str, value: Tensor) -> None:
        if name not in self.taken:
            self._take(name, value)

    @contextmanager
    def attached(self) -> Iterator[None]:
        trunk, structure = self.model.trunk, self.model.structure
        self.taken, self._rows = {}, {}
        with ExitStack() as stack:

            def after(module: nn.Module, function) -> None:
                stack.callback(module.register_forward_hook(function).remove)

            def before(module: nn.Module, function) -> None:
                stack.callback(module.register_forward_pre_hook(function).remove)

            after(trunk.embed_pair, lambda _, i, out: self._take("pair_embedded", out))
            after(trunk.embed_extra, lambda _, i, out: self._take("extra_msa_embedded", out))
            if trunk.template_pair is not None:
                after(
                    trunk.template_pair,
                    lambda _, i, out: self._take("template_pair_update", out - self.taken["pair_embedded"]),
                )
            before(trunk.evoformer, lambda _, i: self._take("msa_embedded", i[0]))
            before(trunk.evoformer, lambda _, i: self._take("evo_in_msa_mask", i[2]))
            before(trunk.evoformer, lambda _, i: self._take("pair_after_extra", i[1]))
            for stage, blocks in (("extra", trunk.extra_stack.blocks), ("evo", trunk.evoformer.blocks)):
                for block in blocks:
                    after(block, lambda _, i, out, stage=stage: self._trace(stage, *out))
                self._submodules(f"{stage}_block1_sub", blocks[0], before, after)
            first = trunk.evoformer.blocks[0]
            after(first, lambda _, i, out: self._take("msa_after_block1", out[0]))
            after(first, lambda _, i, out: self._take("pair_after_block1", out[1]))
            after(
                structure.attention, lambda _, i, out: self._take_first("structure/ipa_out_iter1", out - i[0])
            )
            after(
                structure.norm_transition,
                lambda _, i, out: self._rows.setdefault("structure/act", []).append(out),
            )
            yield
        for name, rows in self._rows.items():
            self.taken[name] = torch.stack(rows)

    def _submodules(self, prefix: str, block: nn.Module, before, after) -> None:
        for ours, theirs in SUBMODULES.items():
            module = block.get_submodule(ours)
            if theirs == "msa_column_attention" and hasattr(module, "kv"):
                theirs = "msa_column_global_attention"
            key = f"{prefix}/{theirs}"

            def keep(_, inputs, key=key):
                self._take(key, inputs[0])

            def change(_, inputs, out, key=key):  # the update is what has changed
                self._take(key, out - self.taken[key])

            before(module, keep)
            after(module, change)

    def _trace(self, stage: str, m: Tensor, z: Tensor) -> None:
        for name, x in (("msa", m), ("pair", z)):
            corner = torch.cat(
                [x.square().mean().sqrt()[None], x.abs().max()[None], x[0, 0, :8], x[-1, 1, :8]]
            )
            self._rows.setdefault(f"{stage}_trace_{name}", []).append(corner)


@torch.no_grad()
def outputs_of(model: AlphaFold, result: Pass) -> dict[str, Tensor]:
    """A pass's results by the recorded names."""
    structure, heads, scale = result.structure, model.heads, model.structure.sizes.position_scale
    layers = structure.layers
    frames = [
        torch.cat([layer["frames_rotation"].flatten(-2), layer["frames_translation"]], dim=-1)
        for layer in layers
    ]
    affine = [torch.cat([layer["quaternion"], layer["translation"] / scale], dim=-1) for layer in layers]
    named = {
        "final_atom_positions": structure.atom37,
        "final_atom_mask": structure.mask,
        "single": result.single,
        "pair": result.pair,
        "msa": result.msa,
        "msa_first_row": result.msa_first_row,
        "predicted_lddt_logits": heads.confidence(structure.single),
        "distogram_logits": heads.distogram(result.pair),
        "masked_msa_logits": heads.masked_msa(result.msa),
        "experimentally_resolved_logits": heads.resolved(result.single),
        "structure/affine": torch.stack(affine),
        "structure/angles_sin_cos": torch.stack([layer["torsions"] for layer in layers]),
        "structure/unnormalized_angles_sin_cos": torch.stack(
            [layer["unnormalised_torsions"] for layer in layers]
        ),
        "structure/frames": torch.stack([frames[0], frames[-1]]),
        "structure/atom14_pos": torch.stack([layers[0]["atom14"], layers[-1]["atom14"]]),
    }
    if heads.aligned_error is not None:
        named["predicted_aligned_error_logits"] = heads.aligned_error(result.pair)
    return named


def _array(x: Tensor) -> np.ndarray:
    """A copy: the next pass consumes some of these tensors."""
    return np.array(x.to(torch.promote_types(x.dtype, torch.float32)).cpu().numpy())


@torch.no_grad()
def run_case(model: AlphaFold, inputs: dict[str, np.ndarray], passes: int) -> dict[str, np.ndarray]:
    """All that was recorded of each pass, as r0/..., r1/..., ..."""
    recorder, recycled, everything = Recorder(model), None, {}
    weight = model.trunk.single.weight
    exact = torch.promote_types(weight.dtype, torch.float32)
    for index in range(passes):
        sample = {name: torch.as_tensor(x[index], device=weight.device) for name, x in inputs.items()}
        sample = {name: x.to(exact) if x.is_floating_point() else x for name, x in sample.items()}
        with recorder.attached():
            result = model([sample], recycled)
        named = {**recorder.taken, **outputs_of(model, result)}
        everything |= {f"r{index}/{name}": _array(x) for name, x in named.items()}
        recycled: Recycled = result.recycled()
    return everything

"""OpenFold (PyTorch), as it is set, in other chunks, and with cuEquivariance's kernels in place of its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from axfold.config import Config
from peers import Pass
from peers.torches import DTYPES, batch_of, forget_peak, peak_bytes, randomize, stand_in, wait

__all__ = ["ENVIRONMENT", "NAME", "PACKAGES", "SETTINGS", "build", "forget_peak", "peak_bytes", "why_not"]

NAME = "OpenFold"
PACKAGES = ("openfold", "torch", "cuequivariance-ops-torch-cu13")
ENVIRONMENT: Mapping[str, str] = {}
_OPTIONS: dict[str, dict[str, Any]] = {
    "as it is set": {},
    "no chunks": {"chunk_size": None},
    "chunks of 64": {"chunk_size": 64, "tune_chunk_size": False},
    "cuEquivariance, no chunks": {"chunk_size": None},
}
SETTINGS = tuple(_OPTIONS)
"""As it is set, it begins with chunks of 4 and tries larger ones in its first pass of a length. With cuEquivariance it
is made here of the two packages, which ship no such thing together."""
_EXTENSION = "attn_core_inplace_cuda"


def why_not(setting: str, config: Config, device: str, precision: str) -> str | None:
    if find_spec("openfold") is None:
        return "openfold is not installed"
    if setting.startswith("cuEquivariance"):
        if device == "cpu":
            return "cuEquivariance's kernels need a GPU"
        if find_spec("cuequivariance_ops_torch") is None:
            return "cuequivariance_ops_torch is not installed"
    elif device != "cpu" and find_spec(_EXTENSION) is None:
        return f"its CUDA extension, {_EXTENSION}, is not built"
    return None


def training_block(
    setting: str, config: Config, device: str
) -> tuple[torch.nn.Module, Callable[..., tuple[torch.Tensor, torch.Tensor]]]:
    """An Evoformer block in training, in bfloat16, and how it is called with m, z and their masks."""
    stand_in(_EXTENSION, forward_=_softmax_)
    from openfold.config import model_config
    from openfold.model.model import AlphaFold

    fused = setting.startswith("cuEquivariance")
    theirs = model_config(config.name, train=True)
    theirs.model.evoformer_stack.no_blocks = 1
    if fused:
        _take_cuequivariance()
    torch.manual_seed(0)
    model = AlphaFold(theirs)
    randomize(model)
    block = model.evoformer.blocks[0].to(device, torch.bfloat16).train()

    def call(
        m: torch.Tensor, z: torch.Tensor, over_m: torch.Tensor, over_z: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        m, z = block(
            m[None], z[None], over_m[None], over_z[None], chunk_size=None, use_deepspeed_evo_attention=fused
        )
        return m[0], z[0]

    return block, call


def build(setting: str, config: Config, device: str, precision: str) -> Pass:
    stand_in(_EXTENSION, forward_=_softmax_)  # its CUDA softmax, which it imports even where it is not used
    from openfold.config import model_config
    from openfold.model.model import AlphaFold

    theirs = model_config(config.name)
    theirs.model.evoformer_stack.no_blocks = config.model.evoformer.blocks
    chosen = _OPTIONS[setting]
    theirs.globals.chunk_size = chosen.get("chunk_size", theirs.globals.chunk_size)
    for stack in (theirs.model.evoformer_stack, theirs.model.extra_msa.extra_msa_stack):
        stack.tune_chunk_size = chosen.get("tune_chunk_size", stack.tune_chunk_size)
    if setting.startswith("cuEquivariance"):
        theirs.globals.use_deepspeed_evo_attention = (
            True  # the way to attention that `_take_cuequivariance` replaces
        )
        _take_cuequivariance()
    torch.manual_seed(0)
    model = AlphaFold(theirs).eval()
    randomize(model)
    model = model.to(device, DTYPES[precision])

    def one_pass(features: Mapping[str, np.ndarray]) -> dict[str, Any]:
        batch = batch_of(features, device)
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own use of PyTorch
            model(batch)
        wait(device)
        return {}

    return one_pass


def _softmax_(logits: torch.Tensor, rows: int, columns: int) -> None:
    torch.softmax(logits, dim=-1, out=logits)


def _take_cuequivariance() -> None:
    """Replace OpenFold's attention of the Evoformer and its triangle multiplication by cuEquivariance's kernels."""
    from cuequivariance_ops_torch import triangle_attention, triangle_multiplicative_update
    from openfold.model import primitives
    from openfold.model.triangular_multiplicative_update import TriangleMultiplicativeUpdate

    def attention(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, biases: list[torch.Tensor]
    ) -> torch.Tensor:
        """Of q, k, v [*, heads, length, c]: [*, length, heads, c]. biases: of the keys [*, 1, 1, keys], of pairs."""
        *batch, heads, queries, c = q.shape
        keys = k.shape[-2]
        q, k, v = (x.reshape(1, -1, heads, x.shape[-2], c) for x in (q, k, v))
        shown = biases[0].expand(*batch, 1, 1, keys).reshape(1, -1, 1, 1, keys) >= 0
        if len(biases) > 1:
            pairs = biases[1].reshape(1, 1, heads, queries, keys)
        else:
            pairs = q.new_zeros(1, 1, heads, queries, keys)
        mixed = triangle_attention(q, k, v, pairs.float(), mask=shown, scale=c**-0.5)
        return mixed.reshape(*batch, heads, queries, c).transpose(-2, -3)

    def multiplication(
        self: Any,
        z: torch.Tensor,
        mask: torch.Tensor | None = None,
        inplace_safe: bool = False,
        _add_with_inplace: bool = False,
        _inplace_chunk_size: int | None = None,
    ) -> torch.Tensor:
        """The update of z [*, n, n, c], or z with it where OpenFold asks for that."""
        inputs = {
            f"{letter}_in_{part}": torch.cat(
                [getattr(getattr(self, f"linear_{x}_{letter}"), part) for x in "ab"]
            )
            for letter in "pg"
            for part in ("weight", "bias")
        }
        update = triangle_multiplicative_update(
            z,
            direction="outgoing" if self._outgoing else "incoming",
            mask=mask,
            norm_in_weight=self.layer_norm_in.weight,
            norm_in_bias=self.layer_norm_in.bias,
            **inputs,
            norm_out_weight=self.layer_norm_out.weight,
            norm_out_bias=self.layer_norm_out.bias,
            p_out_weight=self.linear_z.weight,
            p_out_bias=self.linear_z.bias,
            g_out_weight=self.linear_g.weight,
            g_out_bias=self.linear_g.bias,
        )
        if torch.is_grad_enabled():
            return (
                update.clone()
            )  # OpenFold's dropout multiplies in place what the kernel keeps for its backward
        return z.add_(update) if inplace_safe and _add_with_inplace else update

    primitives._deepspeed_evo_attn = attention
    TriangleMultiplicativeUpdate.forward = multiplication

"""Parameters before training: supplement 1.11.4."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from axfold.model.alphafold import AlphaFold

_ZERO = (  # what ends a residual update, or gives logits: nothing at first
    r"(attention|multiplication)\S*\.output\.weight|transition\.output\.weight|outer_product_mean\.output\.weight|"
    r"template_pair\.output\.weight|structure\.backbone\.weight|structure\.angles\.blocks\.\d+\.3\.weight|"
    r"heads\.(distogram\.project|masked_msa|resolved|aligned_error\.project|confidence\.layers\.4)\.weight"
)
_HE = (  # what a ReLU follows
    r"transition\.expand\.weight|structure\.transition\.\d+\.weight|structure\.angles\.blocks\.\d+\.1\.weight|"
    r"heads\.confidence\.layers\.[02]\.weight|template_torsions\.\w+\.weight|template_pair\.embed\.features\.weight"
)
_GLOROT = r"attention\.(qkv|q|kv)\.weight|template_pair\.(q|kv)\.weight"
_TRUNCATED = 0.87962566103423978  # standard deviation of a normal distribution cut off at 2


@torch.no_grad()
def initialise(network: AlphaFold, seed: int) -> None:
    """Give every parameter its first value: the same for a seed, on every device."""
    last = f"structure.transition.{len(network.structure.transition) - 1}.weight"
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        value = torch.empty(parameter.shape, dtype=torch.float32)
        _fill(value, name, last, generator)
        parameter.copy_(value)


def _fill(value: Tensor, name: str, last: str, generator: torch.Generator) -> None:
    if name.endswith("point_weights"):
        value.fill_(math.log(math.e - 1))  # whose softplus is 1; Algorithm 22, line 7
    elif name.endswith("bias"):
        value.fill_(1.0 if re.search(r"gate\.bias$", name) else 0.0)  # gates are open
        if name.endswith(".linear.bias"):  # a projection and its gate
            value.chunk(2)[1].fill_(1.0)
    elif value.dim() == 1:
        value.fill_(1.0)  # of a LayerNorm
    elif name == last or re.search(rf"({_ZERO}|gate\.weight)$", name):
        value.zero_()
    elif name.startswith("trunk") and re.search(rf"({_GLOROT})$", name):
        parts = {"qkv": 3, "kv": 2}.get(name.split(".")[-2], 1)
        for part in value.chunk(parts):
            torch.nn.init.xavier_uniform_(part, generator=generator)
    else:
        gain = 2.0 if re.search(rf"({_HE})$", name) else 1.0
        deviation = math.sqrt(gain / value.shape[1]) / _TRUNCATED
        torch.nn.init.trunc_normal_(
            value, std=deviation, a=-2 * deviation, b=2 * deviation, generator=generator
        )
        if name.endswith(".linear.weight"):
            value.chunk(2)[1].zero_()

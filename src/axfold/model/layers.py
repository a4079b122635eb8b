"""What the modules are built of."""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from axfold import ops
from axfold.memory.rows import Rows


class SharedDropout(nn.Module):
    """Dropout whose mask is shared along one axis: supplement 1.11.6. Drops nothing in evaluation.

    `shared` counts from the end: -3 gives all rows of a pair or MSA representation one mask ("row-wise").
    """

    def __init__(self, rate: float, shared: int):
        super().__init__()
        self.rate, self.shared = rate, shared

    def keep(self, x: Float[Tensor, "*b i j c"]) -> Tensor | None:
        """What it multiplies an update of x with, of a shape that broadcasts to x's; None where it drops nothing."""
        if not self.training or self.rate == 0:
            return None
        shape = list(x.shape)
        shape[self.shared] = 1
        return nn.functional.dropout(x.new_ones(shape), self.rate)


class RowUpdate(nn.Module):
    """An update that each row of a representation receives by itself, once a context shared by all is there.

    A subclass writes its mathematics once, for any block of rows:

        context = prepare(rows of the source, ...)       # some rows of the context
        new = update(rows of x, rows of ..., context)    # these rows with their update

    and its `forward` feeds them through `rows`, which decides how many rows go at once and where they live.
    A module that acts on columns feeds x with its two leading axes exchanged. `stage` is the name by which the
    plan of the memory knows what its rows cost.
    """

    stage: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.rows = Rows()

    def context(self, *source: Tensor, axis: int, out_axis: int) -> Tensor:
        """prepare() over all rows of the source; its axes are as in `Rows.gather`."""
        return self.rows.gather(self.prepare, *source, axis=axis, out_axis=out_axis)

    def prepare(self, *rows: Any) -> Tensor:
        raise TypeError(f"{type(self).__name__} needs no context")


class Transition(RowUpdate):
    """Two layers on every element by itself: Algorithm 9 on the MSA, Algorithm 15 on the pair representation."""

    stage = "transition"

    def __init__(self, c: int, factor: int):
        super().__init__()
        self.norm = nn.LayerNorm(c)
        self.expand = nn.Linear(c, factor * c)
        self.output = nn.Linear(factor * c, c)

    def update(self, x: Float[Tensor, "*b i j c"]) -> Float[Tensor, "*b i j c"]:
        layers = self.norm, self.expand, self.output
        return ops.transition(x, *(p for layer in layers for p in (layer.weight, layer.bias)))

    def forward(self, x: Float[Tensor, "*b i j c"]) -> Float[Tensor, "*b i j c"]:
        """x with its update added. Consumes x."""
        return self.rows.update(self.update, x, axis=x.dim() - 3, by_element=True)


class GatedAttention(nn.Module):
    """Multi-head attention within rows: projections around `ops.gated_attention`; the LayerNorm is the caller's."""

    def __init__(self, c: int, c_head: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(c, 3 * heads * c_head, bias=False)
        self.gate = nn.Linear(c, heads * c_head)
        self.output = nn.Linear(heads * c_head, c)
        self.dropout = SharedDropout(dropout, shared=-3)  # of the rows that attend: they share one mask

    def forward(
        self,
        x: Float[Tensor, "*b r n c"],
        norm: nn.LayerNorm,
        mask: Float[Tensor, "*b r n"],
        bias: Float[Tensor, "*b h n n"] | None = None,
    ) -> Float[Tensor, "*b r n c"]:
        """x with attention of norm(x) added. Consumes x."""
        if torch.is_grad_enabled():
            return ops.attention_update(
                x, mask, bias, norm.weight, norm.bias, self.qkv.weight, self.gate.weight, self.gate.bias,
                self.output.weight, self.output.bias, self.heads, self.dropout.keep(x),
            )  # fmt: skip
        # put together for one read of x: the weights are small beside any representation
        weight = torch.cat([self.qkv.weight, self.gate.weight])
        shift = nn.functional.pad(self.gate.bias, (len(self.qkv.weight), 0))
        projected = ops.normed_linear(x, norm.weight, norm.bias, weight, shift)
        q, k, v, gate = projected.unflatten(-1, (4, self.heads, -1)).unbind(-3)
        mixed = ops.gated_attention(q, k, v, gate, mask, bias)
        return ops.linear_residual(x, mixed, self.output.weight, self.output.bias, self.dropout.keep(x))


def present(mask: Float[Tensor, "*shape"], like: Tensor) -> Float[Tensor, "*shape"]:
    """The mask in the type and on the device of `like`.

    One that hides nothing is a single number expanded, which takes no memory and is known at sight. A mask on the host
    is looked at for that; one on a device is not, so that nobody has to wait for the device.
    """
    whole = not any(mask.stride()) or (mask.device.type == "cpu" and bool((mask == 1).all()))
    return like.new_ones(()).expand_as(mask) if whole else mask.to(like)


def one_hot_bins(
    x: Float[Tensor, "*b i 3"], y: Float[Tensor, "*b j 3"], low: float, high: float, bins: int
) -> Float[Tensor, "*b i j bins"]:
    """Distance of each x to each y as one of `bins` classes whose lower edges lie evenly from low to high (Å).

    As in AlphaFold the edges are excluded and distances under `low` are in no class (Algorithm 32, line 3).
    """
    edges = torch.linspace(low, high, bins, device=x.device, dtype=x.dtype).square()
    upper = torch.cat([edges[1:], edges.new_full((1,), 1e8)])
    squared = (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1, keepdim=True)
    return ((squared > edges) & (squared < upper)).to(x.dtype)

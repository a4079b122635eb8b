"""examples/openfold_kernels.py: replaced blocks do what they did.

Where OpenFold and OpenFold-3 can be imported their own blocks are compared. Everywhere else, and besides, plain blocks
stand in for them: what is theirs of these are the names of submodules and the way in which blocks are called.
"""

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

EXAMPLE = Path(__file__).parents[1] / "examples" / "openfold_kernels.py"
N, S, C_M, C_Z, T = 9, 5, 24, 16, 2

pytestmark = pytest.mark.filterwarnings("ignore")  # of their use of other packages


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("openfold_kernels", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Attention(nn.Module):
    def __init__(self, c: int, c_hidden: int, heads: int, gate_bias: bool = True):
        super().__init__()
        self.no_heads, width = heads, c_hidden * heads
        self.linear_q, self.linear_k, self.linear_v = (nn.Linear(c, width, bias=False) for _ in range(3))
        self.linear_g, self.linear_o = (
            nn.Linear(c, width, bias=gate_bias),
            nn.Linear(width, c, bias=gate_bias),
        )

    def forward(self, x: Tensor, mask: Tensor, bias: Tensor | float = 0.0) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.no_heads, -1)).transpose(-2, -3)
            for layer in (self.linear_q, self.linear_k, self.linear_v)
        )
        logits = q @ k.mT / q.shape[-1] ** 0.5 + bias + 1e9 * (mask[..., None, None, :] - 1)
        mixed = (logits.softmax(-1) @ v).transpose(-2, -3).flatten(-2)
        return self.linear_o(self.linear_g(x).sigmoid() * mixed)


class TriangleMultiplication(nn.Module):
    def __init__(self, c: int, c_hidden: int, outgoing: bool, fused: bool):
        super().__init__()
        self.outgoing, self.fused = outgoing, fused
        self.layer_norm_in, self.layer_norm_out = nn.LayerNorm(c), nn.LayerNorm(c_hidden)
        self.linear_z, self.linear_g = nn.Linear(c_hidden, c), nn.Linear(c, c)
        for name in ("ab",) if fused else ("a", "b"):
            for part in "pg":
                setattr(self, f"linear_{name}_{part}", nn.Linear(c, c_hidden * len(name), bias=not fused))

    def forward(self, z: Tensor, mask: Tensor) -> Tensor:
        x = self.layer_norm_in(z)
        if self.fused:
            a, b = (self.linear_ab_p(x) * self.linear_ab_g(x).sigmoid() * mask[..., None]).chunk(2, -1)
        else:
            a = self.linear_a_p(x) * self.linear_a_g(x).sigmoid() * mask[..., None]
            b = self.linear_b_p(x) * self.linear_b_g(x).sigmoid() * mask[..., None]
        product = torch.einsum("...ikc,...jkc->...ijc" if self.outgoing else "...kic,...kjc->...ijc", a, b)
        return self.linear_z(self.layer_norm_out(product)) * self.linear_g(x).sigmoid()


class TriangleAttention(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.layer_norm, self.linear, self.mha = (
            nn.LayerNorm(c),
            nn.Linear(c, 2, bias=False),
            Attention(c, 8, 2),
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.layer_norm(x)
        return self.mha(x, mask, self.linear(x).movedim(-1, -3).unsqueeze(-4))


class Transition(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.layer_norm, self.linear_1, self.linear_2 = (
            nn.LayerNorm(c),
            nn.Linear(c, 2 * c),
            nn.Linear(2 * c, c),
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        update = self.linear_2(self.linear_1(self.layer_norm(x)).relu())
        return update if mask is None else update * mask[..., None]


class PairStack(nn.Module):
    def __init__(self, fused: bool = False):
        super().__init__()
        self.tri_mul_out = TriangleMultiplication(C_Z, 8, True, fused)
        self.tri_mul_in = TriangleMultiplication(C_Z, 8, False, fused)
        self.tri_att_start, self.tri_att_end = TriangleAttention(C_Z), TriangleAttention(C_Z)
        self.pair_transition = Transition(C_Z)

    def forward(
        self, z: Tensor, pair_mask: Tensor, inplace_safe: bool = False, _mask_trans: bool = True
    ) -> Tensor:
        z = z + self.tri_mul_out(z, pair_mask)
        z = z + self.tri_mul_in(z, pair_mask)
        z = z + self.tri_att_start(z, pair_mask)
        z = z.transpose(-2, -3)
        z = z + self.tri_att_end(z, pair_mask.mT)
        z = z.transpose(-2, -3)
        return z + self.pair_transition(z, pair_mask if _mask_trans else None)


class RowAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer_norm_m, self.layer_norm_z = nn.LayerNorm(C_M), nn.LayerNorm(C_Z)
        self.linear_z, self.mha = nn.Linear(C_Z, 2, bias=False), Attention(C_M, 8, 2)

    def forward(self, m: Tensor, z: Tensor, mask: Tensor) -> Tensor:
        bias = self.linear_z(self.layer_norm_z(z)).movedim(-1, -3).unsqueeze(-4)
        return self.mha(self.layer_norm_m(m), mask, bias)


class ColumnAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._msa_att = nn.Module()
        self._msa_att.layer_norm_m, self._msa_att.mha = nn.LayerNorm(C_M), Attention(C_M, 8, 2)

    def forward(self, m: Tensor, mask: Tensor) -> Tensor:
        x = self._msa_att.layer_norm_m(m.transpose(-2, -3))
        return self._msa_att.mha(x, mask.mT).transpose(-2, -3)


class OuterProductMean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer_norm, self.linear_out = nn.LayerNorm(C_M), nn.Linear(64, C_Z)
        self.linear_1, self.linear_2 = nn.Linear(C_M, 8), nn.Linear(C_M, 8)

    def forward(self, m: Tensor, mask: Tensor) -> Tensor:
        x = self.layer_norm(m)
        a, b = self.linear_1(x) * mask[..., None], self.linear_2(x) * mask[..., None]
        outer = self.linear_out(torch.einsum("...sic,...sjd->...ijcd", a, b).flatten(-2))
        return outer / (torch.einsum("...si,...sj->...ij", mask, mask) + 1e-3)[..., None]


class EvoformerBlock(nn.Module):
    def __init__(self, opm_first: bool):
        super().__init__()
        self.opm_first = opm_first
        self.msa_att_row, self.msa_att_col = RowAttention(), ColumnAttention()
        self.msa_transition, self.outer_product_mean = Transition(C_M), OuterProductMean()
        self.pair_stack = PairStack()

    def forward(
        self,
        m: Tensor,
        z: Tensor,
        msa_mask: Tensor,
        pair_mask: Tensor,
        inplace_safe: bool = False,
        _mask_trans: bool = True,
    ) -> tuple[Tensor, Tensor]:
        if self.opm_first:
            z = z + self.outer_product_mean(m, msa_mask)
        m = m + self.msa_att_row(m, z, msa_mask)
        m = m + self.msa_att_col(m, msa_mask)
        m = m + self.msa_transition(m, msa_mask if _mask_trans else None)
        if not self.opm_first:
            z = z + self.outer_product_mean(m, msa_mask)
        return m, self.pair_stack(z, pair_mask, _mask_trans=_mask_trans)


SIZES: dict[str, Any] = {
    "c_m": C_M,
    "c_z": C_Z,
    "c_hidden_msa_att": 8,
    "c_hidden_opm": 8,
    "c_hidden_mul": 8,
    "c_hidden_pair_att": 8,
    "no_heads_msa": 2,
    "no_heads_pair": 2,
    "transition_n": 2,
    "msa_dropout": 0.1,
    "pair_dropout": 0.2,
    "opm_first": False,
    "fuse_projection_weights": False,
    "inf": 1e9,
    "eps": 1e-10,
}


def theirs(module: str, name: str, **changed: Any) -> nn.Module:
    """A block of OpenFold or OpenFold-3; of the general sizes it gets those that it takes."""
    if importlib.util.find_spec(module.split(".")[0]) is None:
        pytest.skip(f"{module.split('.')[0]} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own use of other packages
        return getattr(importlib.import_module(module), name)(**changed)


def pair_sizes(**changed: Any) -> dict[str, Any]:
    names = "c_z", "c_hidden_mul", "c_hidden_pair_att", "no_heads_pair", "transition_n", "pair_dropout"
    return {name: SIZES[name] for name in (*names, "fuse_projection_weights", "inf")} | changed


TEMPLATE = {
    "c_t": C_Z,
    "c_hidden_tri_att": 8,
    "c_hidden_tri_mul": 8,
    "no_heads": 2,
    "pair_transition_n": 2,
    "dropout_rate": 0.2,
    "fuse_projection_weights": False,
    "inf": 1e9,
}
OF, OF3 = "openfold.model", "openfold3.core.model.latent"
PAIRS: dict[str, Callable[[], nn.Module]] = {
    "plain": PairStack,
    "plain, fused projections": lambda: PairStack(fused=True),
    "OpenFold": lambda: theirs(f"{OF}.evoformer", "PairStack", **pair_sizes(eps=1e-10)),
    "OpenFold, fused projections": lambda: theirs(
        f"{OF}.evoformer", "PairStack", **pair_sizes(eps=1e-10, fuse_projection_weights=True)
    ),
    "OpenFold-3": lambda: theirs(f"{OF3}.base_blocks", "PairBlock", **pair_sizes(transition_type="swiglu")),
    "OpenFold-3, relu": lambda: theirs(
        f"{OF3}.base_blocks", "PairBlock", **pair_sizes(transition_type="relu")
    ),
}
TEMPLATES: dict[str, Callable[[], nn.Module]] = {
    f"{package}, {order}": lambda module=module, first=first, more=more: theirs(
        module, name_of[module], **TEMPLATE, tri_mul_first=first, **more
    )
    for package, module, more in (
        ("OpenFold", f"{OF}.template", {}),
        ("OpenFold-3", f"{OF3}.template_module", {"transition_type": "relu"}),
    )
    for order, first in (("attention first", False), ("multiplication first", True))
}
name_of = {f"{OF}.template": "TemplatePairStackBlock", f"{OF3}.template_module": "TemplatePairBlock"}
MSAS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: EvoformerBlock(opm_first=False),
    "plain, outer product first": lambda: EvoformerBlock(opm_first=True),
    "OpenFold": lambda: theirs(f"{OF}.evoformer", "EvoformerBlock", **SIZES, no_column_attention=False),
    "OpenFold, outer product first": lambda: theirs(
        f"{OF}.evoformer", "EvoformerBlock", **SIZES | {"opm_first": True}, no_column_attention=True
    ),
    "OpenFold, extra MSA": lambda: theirs(f"{OF}.evoformer", "ExtraMSABlock", **SIZES, ckpt=False),
    "OpenFold-3, Evoformer": lambda: theirs(
        f"{OF3}.evoformer", "EvoformerBlock", **SIZES, transition_type="relu", no_column_attention=False
    ),
    "OpenFold-3, MSA module": lambda: theirs(
        f"{OF3}.msa_module", "MSAModuleBlock", **SIZES, transition_type="swiglu"
    ),
}


def prepared(make: Callable[[], nn.Module]) -> nn.Module:
    """In evaluation, with weights that are none of those it starts with."""
    block = make().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return block


def close(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def inputs(*batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """m, z and their masks, of which no residue is hidden everywhere."""
    generator = torch.Generator().manual_seed(1)
    m, z = (
        torch.randn(*batch, S, N, C_M, generator=generator),
        torch.randn(*batch, N, N, C_Z, generator=generator),
    )
    msa_mask = (torch.rand(*batch, S, N, generator=generator) > 0.2).float()
    residues = torch.ones(*batch, N)
    residues[..., -2:] = 0
    return m, z, msa_mask, residues[..., :, None] * residues[..., None, :]


@torch.no_grad()
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("inplace_safe", [False, True])
@pytest.mark.parametrize("batch", [(), (2,)], ids=["one", "batch"])
def test_pair_blocks(example: ModuleType, name: str, inplace_safe: bool, batch: tuple[int, ...]) -> None:
    block = prepared(PAIRS[name])
    _, z, _, mask = inputs(*batch)
    for shown, masked in ((mask, True), (mask, False), (torch.ones_like(mask), False)):
        expected = block(z=z.clone(), pair_mask=shown, inplace_safe=inplace_safe, _mask_trans=masked)
        replaced = prepared(PAIRS[name])
        assert example.replace(replaced) == 1
        given = z.clone()
        found = replaced(z=given, pair_mask=shown, inplace_safe=inplace_safe, _mask_trans=masked)
        close(found, expected)
        assert (found.data_ptr() == given.data_ptr()) == inplace_safe


@torch.no_grad()
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("inplace_safe", [False, True])
def test_template_blocks(example: ModuleType, name: str, inplace_safe: bool) -> None:
    block, replaced = prepared(TEMPLATES[name]), prepared(TEMPLATES[name])
    assert example.replace(replaced) == 1
    _, t, _, mask = inputs(T)
    expected = block(
        t.clone(), mask=mask, inplace_safe=False
    )  # in place OpenFold-3's loses what follows a transposition
    close(replaced(t.clone(), mask=mask, inplace_safe=inplace_safe), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", MSAS)
@pytest.mark.parametrize("inplace_safe", [False, True])
@pytest.mark.parametrize("batch", [(), (2,)], ids=["one", "batch"])
def test_msa_blocks(example: ModuleType, name: str, inplace_safe: bool, batch: tuple[int, ...]) -> None:
    block, replaced = prepared(MSAS[name]), prepared(MSAS[name])
    assert example.replace(replaced) == 2  # with the pair block within
    m, z, msa_mask, pair_mask = inputs(*batch)
    for masked in (True, False):
        options = {"inplace_safe": inplace_safe, "_mask_trans": masked}
        masks = {"msa_mask": msa_mask, "pair_mask": pair_mask}
        expected = block(m.clone(), z.clone(), **masks, **options)
        given = m.clone(), z.clone()
        found = replaced(*given, **masks, **options)
        for one, other in zip(found, expected, strict=True):
            close(one, other)
        if not inplace_safe:
            assert torch.equal(given[0], m)
            assert torch.equal(given[1], z)


def test_gradients_are_those_of_their_own_code(example: ModuleType) -> None:
    block, replaced = prepared(PairStack), prepared(PairStack)
    example.replace(replaced)
    _, z, _, mask = inputs()
    found, expected = (
        torch.autograd.grad(each(z, mask).square().sum(), list(each.parameters()))
        for each in (replaced, block)
    )
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_weights_may_be_loaded_afterwards(example: ModuleType) -> None:
    block, replaced = prepared(PairStack), PairStack().eval()
    example.replace(replaced)
    replaced.load_state_dict(block.state_dict())
    _, z, _, mask = inputs()
    with torch.no_grad():
        close(replaced(z, mask), block(z, mask))


def test_other_modules_are_left_alone(example: ModuleType) -> None:
    assert example.replace(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))) == 0

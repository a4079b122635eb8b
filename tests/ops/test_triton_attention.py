"""The attention's kernel: on a GPU if there is one; `test_interpreter.py` runs it by Triton's interpreter."""

from dataclasses import replace

import pytest
import torch
from kernels import DTYPES, INTERPRETED, kernel, on_a_gpu

from axfold import ops
from axfold.ops import cases

pytest.importorskip("triton")

import triton
import triton.language as tl

from axfold.ops.triton import attention

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
PLAIN = cases.Attention("plain", 3, 40, 2, 16, masked=True)


def as_float64(arguments):
    return tuple(x if x is None else x.double() for x in arguments)


def error(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


def assert_rounds_like_the_reference(case, dtype, rows=range(3), backend="triton"):
    arguments = case.inputs(dtype, DEVICE)
    found = ops.gated_attention(*arguments, backend=backend)[list(rows)]
    some = case.some(arguments, rows)
    exact = ops.gated_attention(*as_float64(some), backend="reference")
    if dtype == torch.float16:  # which has no -1e9: what bfloat16 may lose bounds it
        some = tuple(x if x is None else x.bfloat16() for x in some)
    rounding = error(ops.gated_attention(*some, backend="reference"), exact)
    assert error(found, exact) <= 2 * rounding + 1e-6


@kernel
@pytest.mark.parametrize("case", [case for case in cases.ODD if GPU or case.length < 100], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernel_rounds_like_the_reference(case, dtype):
    assert_rounds_like_the_reference(case, dtype)


@kernel
@pytest.mark.parametrize(
    "tile", [attention.Tile(128, 64, 8, 2), attention.Tile(64, 16, 4, 1, rows=2)], ids=str
)
@pytest.mark.parametrize("biased", [True, False])
def test_kernel_every_tile_gives_the_same(tile, biased):
    case = replace(PLAIN, biased=biased, length=130)
    arguments = case.inputs(torch.float16, DEVICE)
    found = attention.gated_attention_triton(*arguments, tile=tile)
    expected = ops.gated_attention(*as_float64(arguments), backend="reference")
    assert error(found, expected) < 2e-3


@kernel
def test_kernel_strides_of_any_kind():
    """Columns, heads further apart than their channels, an offset that no wide load may begin at."""
    case = replace(PLAIN, columns=True)
    q, k, v, gate, mask, bias = case.inputs(torch.float32, DEVICE)
    odd = torch.empty(3, 40, 2, 19, device=DEVICE)[..., 2:18].copy_(q)
    wide_mask = torch.ones(3, 80, device=DEVICE)[:, ::2].copy_(mask)
    expected = ops.gated_attention(q, k, v, gate, mask, bias, backend="reference")
    found = ops.gated_attention(odd, k, v, gate, wide_mask, bias.mT.contiguous().mT, backend="triton")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@kernel
def test_kernel_more_keys_than_queries():
    q, k, v, gate, mask, bias = PLAIN.inputs(torch.float32, DEVICE)
    arguments = q[:, :7], k, v, gate[:, :7], mask, bias[:, :7]
    expected = ops.gated_attention(*arguments, backend="reference")
    found = ops.gated_attention(*arguments, backend="triton")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@kernel
def test_kernel_a_row_without_keys_averages_them():
    """Though its logits be large, and differ."""
    q, k, v, gate, mask, bias = PLAIN.inputs(torch.float32, DEVICE)
    found = ops.gated_attention(100 * q, k, v, gate, mask, bias, backend="triton")[0]
    torch.testing.assert_close(found, (gate[0].sigmoid() * v[0].mean(0)).flatten(-2), atol=1e-6, rtol=1e-5)


@kernel
@pytest.mark.parametrize("shift", [-3e3, -200.0, 200.0, 3e3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernel_extreme_logits(shift, dtype):
    """Their exponentials are no numbers as they are: those of some queries, and of one head alone."""
    q, k, v, gate, mask, bias = PLAIN.inputs(dtype, DEVICE)
    bias = bias.clone()
    bias[1, 3:30] += shift
    expected = ops.gated_attention(*as_float64((q, k, v, gate, mask, bias)), backend="reference")
    found = ops.gated_attention(q, k, v, gate, mask, bias, backend="triton")
    assert error(found, expected) < (1e-4 if dtype == torch.float32 else 2e-2)


@kernel
def test_kernel_what_is_masked_or_beyond_the_end_does_not_matter():
    case = replace(PLAIN, rows=2)
    q, k, v, gate, mask, bias = case.inputs(torch.float32, DEVICE)
    mask[0, :5] = 1
    before = ops.gated_attention(q, k, v, gate, mask, bias, backend="triton")
    hidden = (mask == 0)[..., None, None]
    k, v = torch.where(hidden, 1e4, k), torch.where(hidden, -7.0, v)
    k, v = (torch.cat([x, x.new_full((2, 9, 2, 16), 1e4)], 1)[:, :40] for x in (k, v))
    torch.testing.assert_close(before, ops.gated_attention(q, k, v, gate, mask, bias, backend="triton"))


@triton.jit
def _natural_order(
    tiled, out, QUERIES: tl.constexpr, KEYS: tl.constexpr, WARPS: tl.constexpr, BITS: tl.constexpr
):
    tile = attention._in_rows(tl.load(tiled + tl.arange(0, QUERIES * KEYS)), QUERIES, KEYS, WARPS, BITS)
    tl.store(out + tl.arange(0, QUERIES)[:, None] * KEYS + tl.arange(0, KEYS)[None, :], tile)


@kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_kernel_a_tiled_bias_is_the_bias(dtype):
    """Each number at its place, missing queries without a bias, missing keys hidden."""
    bias = torch.arange(2.0 * 50 * 40, device=DEVICE).reshape(50, 40, 2).movedim(-1, 0).to(dtype)
    tiled = bias.new_empty(2, 1, 2, 64 * 32)
    attention._tile_bias[(1, 2, 2)](bias, tiled, 50, 40, *bias.stride(), QUERIES=64, KEYS=32, WARPS=4)
    found = torch.empty(2, 64, 64, device=DEVICE, dtype=dtype)
    for head in range(2):
        for block in range(2):
            out = torch.empty(64, 32, device=DEVICE, dtype=dtype)
            bits = 8 * dtype.itemsize
            _natural_order[(1,)](tiled[head, 0, block], out, QUERIES=64, KEYS=32, WARPS=4, BITS=bits)
            found[head, :, 32 * block : 32 * block + 32] = out
    assert (found[:, :50, :40] == bias).all()
    assert (found[:, 50:, :40] == 0).all()
    assert (found[:, :, 40:] == -torch.inf).all()


@kernel
def test_kernel_nothing_to_attend_to():
    q, k, v, gate, mask, bias = PLAIN.inputs(torch.float32, DEVICE)
    assert ops.gated_attention(q[:0], k[:0], v[:0], gate[:0], mask[:0], bias, backend="triton").shape == (
        0,
        40,
        32,
    )


def test_kernel_why_not():
    arguments = PLAIN.inputs(torch.float32, DEVICE)
    q, *_, mask, bias = arguments

    def reason(*arguments):
        with pytest.raises(ops.BackendError) as raised:
            ops.gated_attention(*arguments, backend="triton")
        return str(raised.value)

    if not (GPU or INTERPRETED):
        assert "it needs a CUDA device" in reason(*arguments)
        return
    assert "it has no backward" in reason(q.clone().requires_grad_(), *arguments[1:])
    assert "it has no torch.float64" in reason(*as_float64(arguments))
    assert "different dtypes" in reason(q.half(), *arguments[1:])
    assert "one batch axis at most" in reason(*(x[None, None] for x in arguments))
    assert "heads have 12 channels" in reason(*(x[..., :12] for x in arguments[:4]), mask, bias)
    assert "not contiguous" in reason(q.mT.contiguous().mT, *arguments[1:])


@on_a_gpu
@pytest.mark.parametrize("case", cases.REAL, ids=str)
def test_kernel_real_sizes(case):
    assert_rounds_like_the_reference(case, torch.bfloat16, rows=(0, 1, case.rows - 1))


@on_a_gpu
@pytest.mark.parametrize("columns", [False, True])
def test_kernel_offsets_past_31_bits(columns):
    """A projection of 3 x 2,100 x 4,100 x 128 numbers: more than 2^31, by rows and by columns."""
    case = cases.Attention("far", 2100, 4100, 4, 32, columns=columns)
    assert_rounds_like_the_reference(case, torch.bfloat16, rows=(0, 1700, 2099))

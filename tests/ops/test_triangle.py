"""Triangle multiplication: the definition, and the kernels against it."""

import pytest
import torch
import torch.nn.functional as F
from kernels import (
    DTYPES,
    EXACT,
    INTERPRETED,
    SIZES,
    TOLERANCE,
    assert_rounds_like_the_reference,
    convert,
    dropout,
    kernel,
    linear,
    mask_of,
    norm,
    normal,
    on_a_gpu,
    transposed,
)

from axfold import ops


def operand_inputs(rows: int, n: int, c_z: int, c: int, masked: bool = True):
    return normal(rows, n, c_z), mask_of(rows, n, masked), *norm(c_z), *linear(2 * c, c_z)


def update_inputs(rows: int, n: int, c_z: int, c: int, keep=None):
    products = normal(c, rows, n), normal(c, n, n)
    return normal(rows, n, c_z), *products, *norm(c_z), *norm(c), *linear(c_z, c), *linear(c_z, c_z), keep


def test_operand_is_the_definition():
    z, mask, *norm_in, weight, bias = operand_inputs(3, 5, 12, 7)
    found = ops.triangle_operand(z, mask, *norm_in, weight, bias, backend="reference")
    assert found.shape == (7, 3, 5)
    for i, j, c in [(0, 0, 0), (2, 4, 6), (1, 3, 2)]:
        x = (z[i, j] - z[i, j].mean()) / (z[i, j].var(correction=0) + 1e-5).sqrt() * norm_in[0] + norm_in[1]
        value, gate = weight[c] @ x + bias[c], weight[7 + c] @ x + bias[7 + c]
        torch.testing.assert_close(found[c, i, j], mask[i, j] * value / (1 + torch.exp(-gate)))


def test_update_is_the_definition():
    z, own, others, *layers, keep = update_inputs(3, 5, 12, 7, keep=dropout(1, 5, 12))
    norm_in, norm_out, output, gate = layers[:2], layers[2:4], layers[4:6], layers[6:]
    found = ops.triangle_update(z.clone(), own, others, *layers, keep, backend="reference")
    for i, j in [(0, 0), (2, 4), (1, 3)]:
        product = sum(own[:, i, k] * others[:, j, k] for k in range(5))
        update = F.linear(F.layer_norm(product, (7,), *norm_out), *output)
        opened = F.linear(F.layer_norm(z[i, j], (12,), *norm_in), *gate).sigmoid()
        torch.testing.assert_close(found[i, j], z[i, j] + keep[0, j] * opened * update)


def test_update_takes_operands_with_zeros_appended():
    z, own, others, *layers = update_inputs(3, 5, 12, 7)
    expected = ops.triangle_update(z.clone(), own, others, *layers, backend="reference")
    found = ops.triangle_update(z, F.pad(own, (0, 3)), F.pad(others, (0, 3)), *layers, backend="reference")
    torch.testing.assert_close(found, expected)


def test_update_consumes_z_only_without_gradients():
    arguments = update_inputs(2, 3, 4, 5)
    z = arguments[0]
    before = z.clone()
    assert ops.triangle_update(*arguments).data_ptr() != z.data_ptr()
    assert torch.equal(z, before)
    with torch.no_grad():
        assert ops.triangle_update(*arguments).data_ptr() == z.data_ptr()
    assert not torch.equal(z, before)


def test_a_batch_is_its_members():
    members = [operand_inputs(2, 3, 4, 5)[0] + i for i in range(2)]
    _, mask, *layers = operand_inputs(2, 3, 4, 5)
    found = ops.triangle_operand(torch.stack(members), mask.expand(2, 2, 3), *layers)
    for member, own in zip(members, found, strict=True):
        torch.testing.assert_close(own, ops.triangle_operand(member, mask, *layers))


@kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "n"), SIZES)
@pytest.mark.parametrize(("c_z", "c"), [(16, 32), (64, 16), (128, 128)])
@pytest.mark.parametrize("masked", [False, True])
def test_operand_kernel(rows, n, c_z, c, masked, dtype):
    z, *others = operand_inputs(rows, n, c_z, c, masked)
    for x in (z, transposed(z)):
        found = assert_rounds_like_the_reference(ops.triangle_operand, x, *others, dtype=dtype)
        assert (found[..., n:] == 0).all()


@kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "n"), SIZES)
@pytest.mark.parametrize(("c_z", "c"), [(16, 32), (64, 16), (128, 128)])
@pytest.mark.parametrize("shared", [None, 0, 1], ids=["no dropout", "by row", "by column"])
def test_update_kernel(rows, n, c_z, c, shared, dtype):
    keep = None if shared is None else dropout(*((1, n, c_z) if shared == 0 else (rows, 1, c_z)))
    z, *others = update_inputs(rows, n, c_z, c, keep)
    for x in (z, transposed(z)):
        assert_rounds_like_the_reference(ops.triangle_update, x, *others, dtype=dtype, in_place=True)


@kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "n"), SIZES)
@pytest.mark.parametrize("shared", [None, 0], ids=["no dropout", "by row"])
def test_kernels_that_keep_their_weights(rows, n, shared, dtype):
    """Programs with several tiles; the update's have the norms' weights in those of the layers after them."""
    tile = pytest.importorskip("axfold.ops.triton.tiles").Tile(32, 64, 4, 2, resident=1)
    operand = operand_inputs(rows, n, 32, 64)
    found = assert_rounds_like_the_reference(ops.triangle_operand, *operand, dtype=dtype, tile=tile)
    assert (found[..., n:] == 0).all()
    keep = None if shared is None else dropout(1, n, 64)
    update = update_inputs(rows, n, 64, 32, keep)
    assert_rounds_like_the_reference(ops.triangle_update, *update, dtype=dtype, in_place=True, tile=tile)


@kernel
@torch.no_grad()
@pytest.mark.parametrize("edges", ["outgoing", "incoming"])
def test_row_blocks_by_kernels_are_the_module(edges):
    """Both kernels as a module uses them: operands of all rows, then blocks of rows in place."""
    z, mask, *layers = convert(operand_inputs(19, 19, 32, 16), EXACT)
    update = convert(update_inputs(19, 19, 32, 16)[3:], EXACT)
    results = {}
    for backend in ("reference", "triton"):
        whole = z.clone()
        y = whole if edges == "outgoing" else whole.transpose(0, 1)
        others = ops.triangle_operand(y, mask, *layers, backend=backend)
        for rows in (slice(0, 8), slice(8, 19)):
            own = ops.triangle_operand(y[rows], mask[rows], *layers, backend=backend)
            ops.triangle_update(y[rows], own, others, *update, backend=backend)
        results[backend] = whole
    assert not torch.equal(results["triton"], z)
    torch.testing.assert_close(results["triton"], results["reference"], atol=TOLERANCE, rtol=TOLERANCE)


@on_a_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [256, 1201])
def test_kernels_at_real_sizes(n, dtype):
    z, *others = operand_inputs(40, n, 128, 128, masked=False)
    assert_rounds_like_the_reference(ops.triangle_operand, z, *others, dtype=dtype)
    assert_rounds_like_the_reference(ops.triangle_update, *update_inputs(40, n, 128, 128), dtype=dtype)


@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@torch.no_grad()
def test_kernels_beyond_32_bits(dtype):
    n = 4104  # n² * 128 numbers are more than 2**31
    z = torch.randn(n, n, 128, device="cuda", dtype=dtype)
    _, mask, *layers = convert(operand_inputs(1, n, 128, 128, masked=False), z.dtype)
    parameters = convert(update_inputs(1, 1, 128, 128)[3:-1], z.dtype)
    last = z[-1:].clone()
    operand = ops.triangle_operand(z, mask.expand(n, n), *layers, backend="triton")
    expected = ops.triangle_operand(last, mask, *layers, backend="reference")
    torch.testing.assert_close(operand[:, -1:, :n], expected, atol=0.02, rtol=0.02)
    expected = ops.triangle_update(last, operand[:, -1:], operand, *parameters, backend="reference")
    found = ops.triangle_update(z, operand, operand, *parameters, backend="triton")[-1:]
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.02)


@kernel
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x.double(), r"it has no torch\.float64"),
        (
            lambda x: x[..., :12].contiguous() if x.shape[-1] == 16 else x,
            "not powers of two from 16 to 256: 12",
        ),
        (lambda x: x.requires_grad_(), "it has no backward"),
        (lambda x: x.expand(2, *x.shape) if x.dim() == 3 else x, "it takes no batch axes in float32"),
    ],
    ids=["dtype", "channels", "gradients", "batch"],
)
def test_a_kernel_says_why_it_cannot_take_a_call(change, reason):
    z, mask, *layers = convert(operand_inputs(2, 3, 16, 16), EXACT)
    with pytest.raises(ops.BackendError, match=f"triangle_operand: backend 'triton' can't take .*{reason}"):
        ops.triangle_operand(change(z), mask, *map(change, layers), backend="triton")


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes tensors on the CPU")
def test_kernels_need_a_gpu():
    pytest.importorskip("triton")
    with pytest.raises(ops.BackendError, match="it needs a CUDA device"):
        ops.triangle_operand(*(x.float() for x in operand_inputs(2, 3, 16, 16)), backend="triton")

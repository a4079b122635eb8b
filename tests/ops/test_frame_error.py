"""Errors seen from frames, and of distances: the definitions against the formula, and the kernels against them."""

from importlib import import_module

import pytest
import torch
from kernels import kernel, normal, on_a_gpu
from torch import Tensor

from axfold import ops

CLAMP = 2.5
module = import_module("axfold.ops.frame_error")


def frames_and_points(*sizes: int) -> list[Tensor]:
    *b, f, p = sizes
    rotations = [torch.linalg.qr(normal(*b, f, 3, 3, seed=seed))[0] for seed in (1, 2)]
    shifts, points = ([normal(*b, n, 3, seed=seed) for seed in (3, 4)] for n in (f, p))
    masks = (normal(*b, f) > -0.5).double(), (normal(*b, p, seed=6) > -0.5).double()
    return [rotations[0], shifts[0], points[0], rotations[1], shifts[1], points[1], *masks]


def plain(
    rotation: Tensor, translation: Tensor, points: Tensor, *others: Tensor, clamp: float = CLAMP
) -> Tensor:
    true_rotation, true_translation, true_points, frames_mask, points_mask = others
    total = points.new_zeros(points.shape[:-2])
    for i in range(rotation.shape[-3]):
        for j in range(points.shape[-2]):
            seen = rotation[..., i, :, :].mT @ (points[..., j, :] - translation[..., i, :]).unsqueeze(-1)
            true = true_points[..., j, :] - true_translation[..., i, :]
            wanted = true_rotation[..., i, :, :].mT @ true.unsqueeze(-1)
            error = ((seen - wanted).square().sum((-1, -2)) + 1e-4).sqrt().clamp(max=clamp)
            total = total + error * frames_mask[..., i] * points_mask[..., j]
    return total


@pytest.mark.parametrize("pairs", [1, 1 << 22])
def test_frame_error_is_its_formula(monkeypatch, pairs):
    monkeypatch.setattr(module, "_PAIRS", pairs)
    arguments = frames_and_points(2, 3, 5)
    leaves = [x.requires_grad_() for x in arguments[:3]]
    found, wanted = ops.frame_error(*arguments, CLAMP, backend="reference"), plain(*arguments)
    torch.testing.assert_close(found, wanted)
    assert (wanted < plain(*arguments, clamp=1e9)).all()  # some errors are clamped
    weights = normal(2)
    for one, other in zip(
        torch.autograd.grad(found, leaves, weights), torch.autograd.grad(wanted, leaves, weights), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_distance_error_is_its_formula():
    rows, true_rows, points, true_points = (
        normal(2, 3, 3),
        normal(2, 3, 3, seed=1),
        normal(2, 5, 3),
        normal(2, 5, 3, seed=1),
    )
    mask = (normal(2, 5) > -0.5).double()
    off = [(x[:, :, None] - y[:, None]).norm(dim=-1) for x, y in ((rows, points), (true_rows, true_points))]
    wanted = ((off[0] - off[1]).abs() * mask[:, None]).sum(-1)
    found = ops.distance_error(rows, points, true_rows, true_points, mask, backend="reference")
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def compare(*sizes: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    exact = [x.to(device) for x in frames_and_points(*sizes)]
    upstream = normal(*sizes[:-2], seed=9).to(device)

    def run(dtype: torch.dtype, backend: str) -> list[Tensor]:
        given = [x.to(dtype) for x in exact]
        leaves = [x.requires_grad_() for x in given[:3]]
        out = ops.frame_error(*given, CLAMP, backend=backend)
        return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(dtype))]

    found, again = run(torch.float32, "triton"), run(torch.float32, "triton")
    for one, same, other, true in zip(
        found, again, run(torch.float32, "reference"), run(torch.float64, "reference"), strict=True
    ):
        assert torch.equal(one, same)
        # a pair whose error is the limit, but for rounding, has a gradient or has none
        assert (one - true).norm() <= 2 * (other - true).norm() + 1e-5 * true.norm()


@kernel
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 3, 17), (3, 5, 130), (4, 260)])
def test_kernel_of_frame_errors(sizes):
    compare(*sizes)


@kernel
@pytest.mark.parametrize(("rows", "points"), [(1, 1), (3, 17), (5, 130)])
def test_kernel_of_distance_errors(rows, points):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = (2, rows, 3), (2, points, 3), (2, rows, 3), (2, points, 3)
    exact = [normal(*shape, seed=i).to(device) for i, shape in enumerate(shapes)]
    exact.append((normal(2, points) > -0.5).double().to(device))
    given = [x.float() for x in exact]
    wanted, rounded = (ops.distance_error(*x, backend="reference") for x in (exact, given))
    found = ops.distance_error(*given, backend="triton")
    assert (found - wanted).norm() <= 2 * (rounded - wanted).norm() + 1e-6 * wanted.norm()


@on_a_gpu
def test_kernel_of_frame_errors_at_real_sizes():
    compare(4, 768, 1792)

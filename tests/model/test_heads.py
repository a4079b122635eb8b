"""The aligned error in row blocks on the device, against the plain formulas on whole logits."""

import numpy as np
import pytest
import torch

from axfold.memory.host import Bus, HostRows
from axfold.memory.rows import Rows
from axfold.model import heads
from axfold.model.heads import AlignedError
from axfold.output import confidence


def expected(head: AlignedError, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    edges = confidence.error_edges()
    centers, terms = confidence.error_centers(edges), confidence.tm_terms(edges, len(z))
    return head.expected(z, torch.tensor(centers).float(), torch.tensor(terms).float())


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize(
    "logits", [1, 64 * 23 * 5, 1 << 22]
)  # one row, blocks that don't divide 23, all rows
def test_aligned_error_is_that_of_whole_logits(monkeypatch, logits, on_host):
    monkeypatch.setattr(heads, "LOGITS", logits)
    torch.manual_seed(0)
    head, bus = AlignedError(8, 64), Bus(torch.device("cpu"))
    head.rows = HostRows(3, bus) if on_host else Rows(3)
    z = head.rows.zeros("pair", head.project.weight, 23, 23, 8)
    with torch.inference_mode():
        z.copy_(4 * torch.randn(23, 23, 8))
        errors, scores = expected(head, z)
        whole = head(z.clone()).numpy()
    edges = confidence.error_edges()
    assert errors.dtype == scores.dtype == torch.float32
    np.testing.assert_allclose(errors, confidence.aligned_error(whole, edges), rtol=2e-6)
    np.testing.assert_allclose(scores, confidence.tm_by_alignment(whole, edges, 23), rtol=2e-6)


def test_aligned_error_is_deepminds(parity, monkeypatch):
    case = np.load(parity / "cases" / "data_confidence" / "confidence.npz")
    head = AlignedError(64, 64)
    torch.nn.init.eye_(head.project.weight)
    torch.nn.init.zeros_(head.project.bias)
    monkeypatch.setattr(heads, "LOGITS", 64 * 40 * 7)
    with torch.inference_mode():
        errors, scores = expected(head, torch.tensor(case["pae_logits"]))
    np.testing.assert_allclose(errors, case["predicted_aligned_error"], rtol=2e-6)
    assert float(scores.max()) == pytest.approx(case["ptm"].item(), rel=1e-6)

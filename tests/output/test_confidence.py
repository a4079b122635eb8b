import numpy as np
import pytest

from axfold.output import confidence


def test_plddt_is_deepminds(golden):
    case = np.load(golden / "confidence.npz")
    np.testing.assert_allclose(confidence.plddt(case["lddt_logits"]), case["plddt"], rtol=1e-6)


def test_aligned_error_is_deepminds_for_a_block_of_rows(golden):
    case = np.load(golden / "confidence.npz")
    edges = confidence.error_edges()
    np.testing.assert_array_equal(edges, case["breaks"])
    assert confidence.error_centers(edges)[-1] == case["max_predicted_aligned_error"]
    block = confidence.aligned_error(case["pae_logits"], edges)  # of rows 0 and 1
    np.testing.assert_allclose(block, case["predicted_aligned_error"][:2], rtol=2e-6)


def test_tm_scores_are_deepminds_and_the_best_of_all_blocks(parity):
    case = np.load(parity / "cases" / "data_confidence" / "confidence.npz")
    logits, edges, chains = case["pae_logits"], case["breaks"], case["asym_id"]
    assert confidence.ptm(logits, edges) == pytest.approx(case["ptm"].item(), rel=1e-6)
    assert confidence.ptm(logits, edges, chains) == pytest.approx(case["iptm"].item(), rel=1e-6)
    blocks = [slice(0, 17), slice(17, 40)]
    assert confidence.ptm(logits, edges) == max(
        confidence.tm_by_alignment(logits[block], edges, 40).max() for block in blocks
    )
    assert confidence.ptm(logits, edges, chains) == max(
        confidence.tm_by_alignment(logits[b], edges, 40, asym_id=chains, row_asym_id=chains[b]).max()
        for b in blocks
    )
    errors = [confidence.aligned_error(logits[block], edges) for block in blocks]
    np.testing.assert_allclose(np.concatenate(errors), case["predicted_aligned_error"], rtol=2e-6)


def test_certain_logits_give_the_bin_they_are_certain_of():
    logits = np.full((2, 2, 64), -1e4, np.float32)
    logits[..., 0] = 1e4  # beyond the range of a naive softmax
    assert confidence.aligned_error(logits, confidence.error_edges()) == pytest.approx(0.25)
    assert confidence.plddt(np.array([[0.0] * 49 + [1e5]], np.float32)) == pytest.approx(99)


def test_a_protein_of_one_residue_has_scores():
    logits = np.zeros((1, 1, 64), np.float32)
    assert 0 < confidence.ptm(logits, confidence.error_edges()) < 1
    assert confidence.ptm(logits, confidence.error_edges(), np.zeros(1)) == 0  # no interface


@pytest.mark.parametrize(
    ("score", "letter"), [(100, "H"), (90, "H"), (89.99, "M"), (70, "M"), (50, "L"), (49.99, "D"), (0, "D")]
)
def test_category(score, letter):
    assert confidence.category(score) == letter

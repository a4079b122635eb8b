import json
import tracemalloc

import numpy as np
import pytest

from axfold.output import scores
from axfold.output.prediction import WARNING


def test_colabfold_scores(predict):
    prediction = predict(iptm=0.25)
    content = json.loads(scores.colabfold_scores(prediction))
    assert list(content) == ["plddt", "max_pae", "pae", "ptm", "iptm"]
    assert content["plddt"] == np.round(prediction.plddt.astype(float), 2).tolist()
    assert content["pae"] == np.round(prediction.predicted_aligned_error.astype(float), 2).tolist()
    assert content["max_pae"] == float(prediction.predicted_aligned_error.max())
    assert (content["ptm"], content["iptm"]) == (0.46, 0.25)


def test_colabfold_scores_without_ptm(predict):
    assert list(json.loads(scores.colabfold_scores(predict("model_1")))) == ["plddt"]


def test_colabfold_pae():
    text = scores.colabfold_pae(np.array([[0.256, 3.0], [12.0, 0.25]]), 12.0)
    assert text == (
        '{"predicted_aligned_error": [[0.26, 3.0], [12.0, 0.25]], "max_predicted_aligned_error": 12.0}'
    )


def test_alphafold_confidence_is_deepminds(predict, golden):
    plddt = np.load(golden / "confidence.npz")["plddt"]
    text = scores.alphafold_confidence(predict(sequence="A" * 40, plddt=plddt))
    assert text == (golden / "confidence.json").read_text()


def test_alphafold_pae_is_deepminds(predict, golden):
    case = np.load(golden / "confidence.npz")
    prediction = predict(
        sequence="A" * 40,
        predicted_aligned_error=case["predicted_aligned_error"],
        max_predicted_aligned_error=float(case["max_predicted_aligned_error"]),
    )
    assert scores.alphafold_pae(prediction) == (golden / "pae.json").read_text()


def test_alphafold_ranking():
    content = json.loads(scores.alphafold_ranking({"b": 70.5, "a": 90.0, "c": 70.5}))
    assert content == {"plddts": {"b": 70.5, "a": 90.0, "c": 70.5}, "order": ["a", "b", "c"]}
    assert list(json.loads(scores.alphafold_ranking({"a": 0.8}, complexes=True))) == ["iptm+ptm", "order"]


def test_meaningless_scores_say_so(predict):
    prediction = predict(meaningless=True)
    texts = [
        scores.colabfold_scores(prediction),
        scores.colabfold_pae(prediction.predicted_aligned_error, 31.0, meaningless=True),
        scores.alphafold_confidence(prediction),
        scores.alphafold_ranking({"a": 1.0}, meaningless=True),
    ]
    assert [json.loads(text)["warning"] for text in texts] == [WARNING] * 4
    assert json.loads(scores.alphafold_pae(prediction))[0]["warning"] == WARNING


@pytest.mark.parametrize(
    "write", [scores.colabfold_scores, scores.alphafold_confidence, scores.alphafold_pae]
)
def test_one_residue(predict, write):
    assert json.loads(write(predict(sequence="G")))


@pytest.mark.parametrize("write", [scores.colabfold_scores, scores.alphafold_pae])
@pytest.mark.parametrize("n", [1, 7])
def test_a_matrix_is_read_apart(predict, write, n):
    pae = np.random.default_rng(0).uniform(0, 32, (n, n)).astype(np.float32)
    text = write(predict(sequence="A" * n, predicted_aligned_error=pae, meaningless=True))
    key = "pae" if write is scores.colabfold_scores else "predicted_aligned_error"
    content, matrix = scores.read(text, key)
    expected = json.loads(text)
    of_object, found = (x[0] if isinstance(x, list) else x for x in (expected, content))
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, np.array(of_object[key], np.float32))
    assert found == {**of_object, key: None}
    assert scores.read('{"plddt": [1.0]}', key) == ({"plddt": [1.0]}, None)


def test_reading_a_matrix_takes_little_memory():
    n = 400
    text = scores.colabfold_pae(np.random.default_rng(0).uniform(10, 32, (n, n)), 32.0)
    tracemalloc.start()
    scores.read(text, "predicted_aligned_error")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * n * n  # Python's numbers in lists take 32


@pytest.mark.parametrize("decimals", [1, 2])
@pytest.mark.parametrize("largest", [31.0, 99.99, 150.0])
def test_words_of_a_matrix_are_those_of_json(decimals, largest):
    """Halves, numbers that round to 0 and to the last word; and with larger ones, which have no words ready."""
    errors = np.random.default_rng(0).uniform(1e-5, 31, (40, 37)).astype(np.float32)
    errors[0, :6] = 1e-4, 0.005, 0.015, 0.25, 0.35, largest
    rounded = np.round(errors.astype(np.float64), decimals)
    text = scores.colabfold_pae(errors, 1.0) if decimals == 2 else scores._rounded(errors, 1)
    assert (json.dumps(rounded.tolist()) in text) if decimals == 2 else (text == json.dumps(rounded.tolist()))
    _, matrix = scores.read(f'{{"pae": {json.dumps(rounded.tolist())}}}', "pae")
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, rounded.astype(np.float32))

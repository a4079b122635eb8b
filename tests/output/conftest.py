"""Small proteins and predictions without a network."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from axfold.data.query import Alignment, Query
from axfold.output.prediction import Prediction
from axfold.residues import ATOM37_MASK, RESTYPE_INDEX

SEQUENCE = "MKTAYIAKQX"


@pytest.fixture
def golden() -> Path:
    """DeepMind's outputs that a clone has."""
    return Path(__file__).parent / "golden"


@pytest.fixture
def query() -> Query:
    """A protein of ten residues with an alignment of three different rows."""
    rows = (SEQUENCE, "MKTAYLAKQG", "--TAYIAK--", SEQUENCE)
    deletions = np.zeros((4, 10), np.int32)
    deletions[1, 3] = 2
    alignment = Alignment(sequences=rows, deletions=deletions, descriptions=("query", "one", "two", "again"))
    return Query(name="a protein", sequence=SEQUENCE, alignments=(alignment,))


@pytest.fixture
def predict() -> Callable[..., Prediction]:
    """Makes predictions that differ by model and seed; further arguments replace fields."""

    def make(model: str = "model_1_ptm", seed: int = 0, sequence: str = SEQUENCE, **fields) -> Prediction:
        rng = np.random.default_rng([*model.encode(), seed])
        aatype = np.array([RESTYPE_INDEX[letter] for letter in sequence])
        n_res = len(sequence)
        prediction = Prediction(
            name="a protein",
            sequence=sequence,
            model=model,
            seed=seed,
            aatype=aatype,
            residue_index=np.arange(n_res),
            atom_positions=rng.normal(scale=20, size=(n_res, 37, 3)).astype(np.float32),
            atom_mask=ATOM37_MASK[aatype],
            plddt=rng.uniform(0, 100, n_res).astype(np.float32),
            parameters="random numbers",
            change=(2.5, 0.5),
            feature_seconds=0.25,
            seconds=1.5,
        )
        if model.endswith("_ptm"):
            pae = rng.uniform(0.3, 31, (n_res, n_res)).astype(np.float32)
            prediction = replace(
                prediction, predicted_aligned_error=pae, max_predicted_aligned_error=31.75, ptm=0.4567
            )
        return replace(prediction, **fields)

    return make

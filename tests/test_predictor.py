"""From a sequence to a Prediction."""

import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

import axfold
from axfold import config
from axfold.config import PRESETS
from axfold.data.query import Alignment, Query
from axfold.errors import AxfoldError, InputError, WeightsError
from axfold.predictor import Predictor, predict
from axfold.progress import FeaturesMade, PassDone, Step
from axfold.residues import ATOM37_MASK, RESTYPE_INDEX

SEQUENCE = "MKTAYIAKQRQISFVKSH"


def query(rows: int = 30) -> Query:
    """A protein with an alignment of random rows."""
    rng = np.random.default_rng(7)
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWY-"))
    others = ("".join(row) for row in rng.choice(letters, (rows - 1, len(SEQUENCE))))
    deletions = np.zeros((rows, len(SEQUENCE)), np.int32)
    alignment = Alignment((SEQUENCE, *others), deletions, tuple(map(str, range(rows))))
    return Query(name="protein", sequence=SEQUENCE, alignments=(alignment,))


def equal(one, other) -> bool:
    """Whether two predictions are the same but for the time they took."""
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray):
            if a.dtype != b.dtype or a.tobytes() != b.tobytes():
                return False
        elif "seconds" not in field.name and a != b:
            return False
    return True


@pytest.fixture
def predictor(small) -> Predictor:
    return Predictor("model_1_ptm", params="synthetic", device="cpu")


def test_a_sequence_is_enough(small):
    prediction = axfold.predict(SEQUENCE, params="synthetic", device="cpu")
    n_res = len(SEQUENCE)
    aatype = [RESTYPE_INDEX[letter] for letter in SEQUENCE]
    assert isinstance(prediction, axfold.Prediction)
    assert prediction.sequence == SEQUENCE
    assert (prediction.model, prediction.seed) == ("model_1_ptm", 0)
    assert prediction.aatype.tolist() == aatype
    assert prediction.atom_positions.shape == (n_res, 37, 3)
    assert prediction.atom_positions.dtype == prediction.plddt.dtype == np.float32
    assert (prediction.atom_mask == ATOM37_MASK[aatype]).all()
    assert prediction.plddt.shape == (n_res,)
    assert ((prediction.plddt > 0) & (prediction.plddt < 100)).all()
    assert prediction.predicted_aligned_error.shape == (n_res, n_res)
    assert (
        prediction.predicted_aligned_error.max()
        < prediction.max_predicted_aligned_error
        == pytest.approx(31.75)
    )
    assert 0 < prediction.ptm < 1
    assert len(prediction.change) == 3
    assert prediction.representations == {}
    assert prediction.atom_positions_by_pass == prediction.plddt_by_pass == ()
    assert prediction.parameters == "synthetic:0"
    assert prediction.meaningless
    assert prediction.seconds > 0
    assert prediction.feature_seconds > 0


def test_one_residue(predictor):
    prediction = predictor.predict("G")
    assert np.isfinite(prediction.atom_positions).all()
    assert prediction.predicted_aligned_error.shape == (1, 1)


def test_models_without_that_head_have_no_aligned_error(small):
    prediction = predict(SEQUENCE, model="model_3", params="synthetic:5", device="cpu")
    assert (
        prediction.predicted_aligned_error is prediction.max_predicted_aligned_error is prediction.ptm is None
    )
    assert prediction.parameters == "synthetic:5"


def test_the_same_seed_gives_the_same_bytes(predictor):
    first = predictor.predict(query(), seed=3, recycles=1)
    other = predictor.predict(query(), seed=4, recycles=1)
    again = predictor.predict(query(), seed=3, recycles=1)
    fresh = Predictor("model_1_ptm", params="synthetic", device="cpu").predict(query(), seed=3, recycles=1)
    assert equal(first, again)
    assert equal(first, fresh)
    assert not equal(first, replace(other, seed=3))


def test_more_recycles_continue_fewer(predictor):
    short = predictor.predict(query(), recycles=1)
    long = predictor.predict(query(), recycles=2, keep_recycles=True)
    assert len(long.atom_positions_by_pass) == len(long.plddt_by_pass) == 3
    assert (long.atom_positions_by_pass[1] == short.atom_positions).all()
    assert (long.plddt_by_pass[1] == short.plddt).all()
    assert (long.atom_positions_by_pass[2] == long.atom_positions).all()
    assert long.change[:1] == short.change


def test_recycling_stops_when_nothing_moves(predictor):
    whole = predictor.predict(query(), recycles=3, keep_recycles=True)
    tolerance = whole.change[1]
    assert tolerance < whole.change[0]
    early = predictor.predict(query(), recycles=3, tolerance=tolerance)
    assert early.change == whole.change[:2]
    assert (early.atom_positions == whole.atom_positions_by_pass[2]).all()
    assert len(predictor.predict(query(), recycles=3, tolerance=0.0).change) == 3


def test_representations_are_kept_when_asked_for(predictor):
    prediction = predictor.predict(query(), recycles=1, keep_representations=True)
    sizes, n_res = PRESETS["model_1_ptm"].model, len(SEQUENCE)
    assert prediction.representations["single"].shape == (n_res, sizes.c_s)
    assert prediction.representations["pair"].shape == (n_res, n_res, sizes.c_z)


def test_settings_reach_the_features(predictor):
    plain = predictor.predict(query(), recycles=0)
    for settings in ({"max_msa": "4:4"}, {"max_msa": (4, 4)}, {"ensembles": 2}):
        assert not equal(plain, predictor.predict(query(), recycles=0, **settings))


def test_bf16_differs_from_fp32_by_rounding(small, predictor):
    exact = predictor.predict(query(), recycles=0)
    rounded = Predictor("model_1_ptm", params="synthetic", device="cpu", precision="bf16").predict(
        query(), recycles=0
    )
    assert not equal(exact, rounded)
    assert np.abs(exact.plddt - rounded.plddt).max() < 10


def test_events_come_in_order(predictor):
    events = []
    predictor.predict(query(), recycles=1, report=events.append)
    assert isinstance(events[0], FeaturesMade)
    done = [event for event in events if isinstance(event, PassDone)]
    assert [event.recycle for event in done] == [0, 1]
    assert done[0].change is None
    assert done[1].change > 0
    assert events[-1] is done[-1]
    assert sum(isinstance(event, Step) for event in events) == 2 * (1 + 2 + 1)


def test_templates_are_read_and_counted(small, predictor, tmp_path):
    broken = tmp_path / "broken.pdb"
    broken.write_text("HEADER\n")
    with pytest.warns(UserWarning, match="broken.pdb is not used"):
        without = predict(SEQUENCE, params="synthetic", templates=[broken], device="cpu", recycles=0)
    assert equal(without, predictor.predict(replace(query(), alignments=()), recycles=0))


def test_a_template_changes_the_structure(predictor, tmp_path):
    lines = [
        f"ATOM  {i + 1:5d}  {atom:<3s} ALA A{residue + 1:4d}    {3.8 * residue + shift:8.3f}{shift:8.3f}   0.000"
        f"  1.00  0.00           {atom[0]}  "
        for i, (residue, (atom, shift)) in enumerate(
            (residue, pair)
            for residue in range(18)
            for pair in (("N", 0.0), ("CA", 1.4), ("C", 2.1), ("O", 2.4))
        )
    ]
    path = tmp_path / "template.pdb"
    path.write_text("\n".join([*lines, "END", ""]))
    alanines = Query(name="alanines", sequence="A" * 18)
    plain = predictor.predict(alanines, recycles=0)
    steps = []
    with_it = predictor.predict(replace(alanines, templates=(path,)), recycles=0, report=steps.append)
    assert not equal(plain, with_it)
    assert next(event for event in steps if isinstance(event, Step)).stage == "templates"


def test_predict_takes_an_alignment(small, tmp_path):
    msa = tmp_path / "msa.a3m"
    msa.write_text(f">query\n{SEQUENCE}\n>other\n{SEQUENCE[::-1]}\n")
    alone = predict(SEQUENCE, params="synthetic", device="cpu", recycles=0)
    assert not equal(alone, predict(SEQUENCE, msa=msa, params="synthetic", device="cpu", recycles=0))
    with pytest.raises(InputError, match=r"msa\.a3m: the alignment is of another protein"):
        predict(SEQUENCE[1:], msa=msa, params="synthetic", device="cpu")


def test_requests_are_checked_before_a_model_is_loaded(small, monkeypatch, tmp_path):
    monkeypatch.setattr("axfold.network.load_network", lambda *args: pytest.fail("a model was loaded"))
    for arguments, error in (
        ({"model": "model_9"}, InputError),
        ({"recycles": -1}, InputError),
        ({"device": "tpu"}, InputError),
        ({"precision": "fp8"}, InputError),
        ({"templates": [tmp_path / "none.pdb"]}, InputError),
        ({"params": tmp_path / "none.npz"}, WeightsError),
    ):
        with pytest.raises(error):
            predict(SEQUENCE, **{"params": "synthetic", "device": "cpu", **arguments})
    with pytest.raises(InputError, match="no amino acid"):
        predict("MK*", params="synthetic")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("can't allocate memory: 9 GB"),
    ],
)
def test_full_memory_is_told_with_what_to_do(predictor, monkeypatch, error):
    def full(*args):
        raise error

    monkeypatch.setattr(predictor.network, "forward", full)
    with pytest.raises(
        AxfoldError, match=r"18 residues with --max-msa 8:8 do not fit .* of cpu\. Use a device"
    ):
        predictor.predict(query())
    with pytest.raises(
        AxfoldError, match=r"with --max-msa 512:8 .* Use fewer rows, as in --max-msa 64:128, or "
    ):
        predictor.predict(query(), max_msa="512:8")


def test_other_errors_are_not_taken_for_full_memory(predictor, monkeypatch):
    def broken(*args):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(predictor.network, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        predictor.predict(query())
    assert not [module for module in predictor.network.modules() if module._forward_hooks]


def test_public_names():
    assert set(axfold.__all__) <= set(dir(axfold))
    assert axfold.Predictor is Predictor
    with pytest.raises(AttributeError, match="has no attribute 'fold'"):
        axfold.fold  # noqa: B018


def test_the_function_stays_callable_whatever_is_imported():
    code = "import axfold.predictor, axfold.batch, axfold; assert callable(axfold.predict)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_released_sizes(monkeypatch):
    """All 48 blocks once, with few rows of a short protein."""
    preset = PRESETS["model_1_ptm"]
    monkeypatch.setitem(
        config.PRESETS, "model_1_ptm", replace(preset, data=replace(preset.data, msa_clusters=8, extra_msa=8))
    )
    events = []
    prediction = axfold.predict(SEQUENCE, params="synthetic", device="cpu", recycles=0, report=events.append)
    assert np.isfinite(prediction.atom_positions).all()
    blocks = [event for event in events if isinstance(event, Step) and event.stage == "Evoformer"]
    assert len(blocks) == 48
    assert blocks[-1].remaining is not None

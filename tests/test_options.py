"""What a user may set, and how it is refused."""

from datetime import date

import pytest

from axfold import options
from axfold.config import PRESETS
from axfold.errors import InputError


def test_the_default_model_predicts_its_error():
    assert options.models([]) == ("model_1_ptm",)


def test_models_may_be_repeated_or_listed():
    assert options.models(["model_2,model_1 ", "model_2"]) == ("model_2", "model_1")


def test_a_number_of_models():
    assert options.models([], 2) == ("model_1_ptm", "model_2_ptm")
    assert options.models([], 5)[-1] == "model_5_ptm"


@pytest.mark.parametrize(
    ("names", "number", "message"),
    [
        (["model_6"], None, "--model model_6: there is no such model; choose from model_1, "),
        (["model_1,"], None, "--model : there is no such model"),
        (["model_1_multimer_v3"], None, "complexes are not predicted yet"),
        ([], 0, "--num-models 0: .* 1 to 5"),
        ([], 6, "--num-models 6"),
        (["model_1"], 1, "--model and --num-models exclude each other"),
    ],
)
def test_models_that_are_refused(names, number, message):
    with pytest.raises(InputError, match=message):
        options.models(names, number)


def test_nothing_set_is_the_preset():
    assert options.configured("model_3") is PRESETS["model_3"]


def test_what_is_set_differs_from_the_preset():
    config = options.configured("model_1", recycles=0, tolerance=0.5, max_msa="16:32", ensembles=8)
    assert (config.recycles, config.tolerance, config.ensembles) == (0, 0.5, 8)
    assert (config.data.msa_clusters, config.data.extra_msa) == (16, 32)
    assert config.model is PRESETS["model_1"].model
    assert options.configured("model_1", max_msa=(16, 32)).data == config.data


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"recycles": -1}, "--recycles -1: give 0 or more"),
        ({"tolerance": -0.1}, "--tolerance -0.1"),
        ({"tolerance": float("nan")}, "--tolerance nan"),
        ({"tolerance": float("inf")}, "--tolerance inf"),
        ({"ensembles": 0}, "--ensembles 0"),
        ({"max_msa": "0:0"}, "--max-msa 0:0: give clusters and extra rows"),
        ({"max_msa": "512"}, "--max-msa 512"),
        ({"max_msa": "512:"}, "--max-msa 512:"),
        ({"max_msa": "-1:5"}, "--max-msa -1:5"),
        ({"max_msa": "²:5"}, "--max-msa ²:5"),
        ({"max_msa": (512, 0)}, "--max-msa 512:0"),
    ],
)
def test_settings_that_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        options.configured("model_1", **setting)


def test_seeds():
    assert options.seeds(3, 2) == (3, 4)
    with pytest.raises(InputError, match="--seed -1"):
        options.seeds(-1, 1)
    with pytest.raises(InputError, match="--num-seeds 0"):
        options.seeds(0, 0)


def test_days():
    assert options.day("--max-template-date", "2020-05-14") == date(2020, 5, 14)
    assert options.day("--max-template-date", None) is None
    with pytest.raises(InputError, match=r"--max-template-date 14\.5\.2020: write the date as YYYY-MM-DD"):
        options.day("--max-template-date", "14.5.2020")

from pathlib import Path

import numpy as np
import pytest

from axfold.config import DEMO, PRESETS
from axfold.errors import WeightsError
from axfold.weights import files, fit, registry
from axfold.weights.source import Source, find, opened


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, whose parameters lie in the folder returned."""
    monkeypatch.setenv("AXFOLD_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "params"
    folder.mkdir(parents=True)
    return folder


def test_made_up_parameters():
    assert find("model_1", "synthetic") == Source(seed=0)
    assert find("model_1", "synthetic:17") == Source(seed=17)
    assert find("model_1", "synthetic:17").is_synthetic
    assert str(Source(seed=17)) == "synthetic:17"


@pytest.mark.parametrize(
    "params", ["synthetic:", "synthetic:x", "synthetic:-1", "synthetic:1.5", "synthetic:²"]
)
def test_a_seed_that_is_none(params):
    with pytest.raises(WeightsError, match="the seed must be a whole number"):
        find("model_1", params)


def test_made_up_parameters_depend_on_the_seed(tiny):
    name = "alphafold/alphafold_iteration/evoformer/left_single//weights"
    values = []
    for seed in (0, 1):
        with opened(Source(seed=seed), tiny) as tensors:
            values.append(tensors[name])
    assert not np.array_equal(*values)


def test_a_file(tmp_path, tiny, released):
    np.savez(tmp_path / "my.npz", **released)
    source = find("model_1_ptm", str(tmp_path / "my.npz"))
    assert source == Source(tmp_path / "my.npz")
    assert not source.is_synthetic
    with opened(source, tiny) as tensors:
        assert all(np.array_equal(tensors[name], released[name]) for name in released)


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.npz").touch()
    assert find("model_1", "~/a.npz") == Source(tmp_path / "a.npz")


@pytest.mark.parametrize("inner", ["", "params"])
def test_a_folder_with_the_models_file(inner, tmp_path):
    folder = tmp_path / "data" / inner
    folder.mkdir(parents=True)
    for name in ("params_model_1.npz", "params_model_1_ptm.npz"):
        (folder / name).touch()
    assert find("model_1_ptm", tmp_path / "data") == Source(folder / "params_model_1_ptm.npz")


def test_a_folder_without_it(tmp_path):
    (tmp_path / "params_model_2.npz").touch()
    with pytest.raises(WeightsError, match=r"holds no params_model_1\.npz"):
        find("model_1", tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(
        WeightsError, match=r"gone\.npz: there is no such file or folder\. Run `axfold weights down"
    ):
        find("model_1", tmp_path / "gone.npz")


def test_the_cache_prefers_the_file_that_is_fastest_to_read(cache):
    for name in (registry.ALPHAFOLD.archive, "params_model_1.npz", "model_1.safetensors"):
        (cache / name).touch()
        assert find("model_1") == Source(cache / name)


def test_an_empty_cache_names_both_ways_out(cache):
    with pytest.raises(WeightsError) as caught:
        find("model_1")
    for words in (str(cache), "`axfold weights download`", "--params synthetic"):
        assert words in str(caught.value)


def test_where_the_cache_is(tmp_path, monkeypatch):
    assert registry.cache_folder() == tmp_path / "cache" / "params"
    assert registry.cache_folder(tmp_path / "other") == tmp_path / "other" / "params"
    monkeypatch.delenv("AXFOLD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert str(registry.cache_folder()) == "/xdg/axfold/params"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored
    monkeypatch.setenv("HOME", "/home/me")
    assert str(registry.cache_folder()) == "/home/me/.cache/axfold/params"


def test_list(cache):
    (cache / "params_model_2.npz").touch()
    (cache / "params_model_1_multimer_v3.npz").touch()
    rows = {row.model: row for row in registry.listed()}
    assert len(rows) == 15
    assert rows["model_2"].path == cache / "params_model_2.npz"
    assert rows["model_2"].supported
    assert rows["model_1"].path is None
    assert not rows["model_1_multimer_v3"].supported


def half_of_the_demo_model(path: Path) -> dict[str, np.ndarray]:
    """A file of its parameters as float16, made up."""
    shapes = fit.state_shapes(PRESETS[DEMO].model)
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}
    files.write(path, tensors, {"model": DEMO, "source": "training", "licence": "Apache-2.0"})
    return tensors


def test_the_model_that_comes_with_axfold(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "registry.py"))
    assert registry.stand_in() is None
    with pytest.raises(WeightsError, match="comes without the demo model's parameters"):
        find(DEMO)
    tensors = half_of_the_demo_model(tmp_path / "demo.safetensors")
    assert registry.stand_in() == DEMO
    found = find(DEMO)
    assert found.path == tmp_path / "demo.safetensors"
    assert not found.is_synthetic
    with opened(found, PRESETS[DEMO]) as held:
        assert all(held[name].dtype == np.float32 for name in tensors)
        assert all((held[name] == tensor).all() for name, tensor in tensors.items())
    (cache / "params_model_4.npz").touch()
    assert registry.stand_in() is None

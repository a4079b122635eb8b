import numpy as np
import pytest
from safetensors import safe_open

from axfold.errors import InputError, WeightsError
from axfold.weights import names, synthetic
from axfold.weights.convert import convert
from axfold.weights.source import Source, opened


@pytest.fixture
def source(tmp_path, released):
    np.savez(tmp_path / "params_model_1_ptm.npz", **released)
    return Source(tmp_path / "params_model_1_ptm.npz")


def test_the_state_dict_of_the_released_file(tmp_path, source, tiny, released):
    out = tmp_path / "model_1_ptm.safetensors"
    done = convert(source, "model_1_ptm", out)
    pieces = names.parameters(tiny.model)
    assert (done.path, done.parameters) == (out, len(pieces))
    assert done.values == sum(array.size for array in released.values())
    with opened(Source(out), tiny) as state:
        assert state.naming == "axfold"
        assert state.keys() == pieces.keys()
        for name, parts in pieces.items():
            np.testing.assert_array_equal(state[name], names.assemble(parts, released))


def test_metadata_and_a_second_conversion(tmp_path, source, tiny):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    convert(source, "model_1_ptm", first)
    convert(Source(first), "model_1_ptm", second)
    with safe_open(first, "numpy") as one, safe_open(second, "numpy") as two:
        about = one.metadata()
        assert about["format"] == "axfold"
        assert about["format_version"] == "1"
        assert about["model"] == "model_1_ptm"
        assert about["source"] == "params_model_1_ptm.npz"
        assert "CC BY 4.0" in about["licence"]
        for name in one.keys():  # noqa: SIM118
            np.testing.assert_array_equal(one.get_tensor(name), two.get_tensor(name))


def test_each_stored_tensor_is_made_once(tmp_path, tiny, released, monkeypatch):
    made, tensor = [], synthetic.tensor
    monkeypatch.setattr(synthetic, "tensor", lambda name, *rest: made.append(name) or tensor(name, *rest))
    convert(Source(seed=0), "model_1_ptm", tmp_path / "a.safetensors")
    assert sorted(made) == sorted(released)


def test_made_up_parameters_say_so(tmp_path, tiny):
    convert(Source(seed=4), "model_1_ptm", tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        assert file.metadata()["source"] == "synthetic:4"
        assert file.metadata()["licence"] == "none (pseudo-random numbers)"


def test_what_can_not_be_converted(tmp_path, source, tiny, released):
    with pytest.raises(InputError, match=r"no model 'model_9': choose one of model_1,"):
        convert(source, "model_9", tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"a\.npz: the file to write must end in \.safetensors"):
        convert(source, "model_1_ptm", tmp_path / "a.npz")
    released.popitem()
    np.savez(source.path, **released)
    with pytest.raises(WeightsError, match="is missing"):
        convert(source, "model_1_ptm", tmp_path / "a.safetensors")
    assert not list(tmp_path.glob("*a.safetensors*"))


def test_synthetic_parameters_stay_known_as_such(tmp_path, source, tiny):
    """A structure predicted with them means nothing, however often they are converted."""
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    convert(Source(seed=3), "model_1_ptm", first)
    convert(Source(first), "model_1_ptm", second)
    assert Source(first).is_synthetic
    assert Source(second).is_synthetic
    assert not source.is_synthetic
    convert(source, "model_1_ptm", first)
    assert not Source(first).is_synthetic

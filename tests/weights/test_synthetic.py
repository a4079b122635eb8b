import json
from hashlib import sha256

import numpy as np
import pytest

from axfold.config import PRESETS
from axfold.weights import synthetic
from axfold.weights.names import released_shapes

# Of the generated sets, over "name, values" in the order of the names; recorded with the parity cases.
DIGESTS = {
    ("model_1_ptm", 0): "40607ca4fdb3e02e368771f03a99b57292fc6ed8e70891f7a5a93ed366ddf400",
    ("model_1_ptm", 1): "c7b661452dade4e4090118ba35f83d59c010c512ba2aa94634cda7178c9706fc",
    ("model_3", 0): "b9e5a09716ea352dea9665fe6c183f5f3c655298925a4688669d051cd27d7af6",
    ("model_3", 1): "0e6d0d34485bcf4eabb534744f49537e305e2f3ade59ca4e1f7fb28df3210e09",
}


def digest(parameters):
    found = sha256()
    for name in sorted(parameters):
        found.update(name.encode())
        found.update(parameters[name].tobytes())
    return found.hexdigest()


@pytest.mark.parametrize(("model", "seed"), DIGESTS)
def test_every_bit_is_the_recorded_one(model, seed):
    shapes = released_shapes(PRESETS[model].model)
    assert digest(synthetic.parameters(shapes, seed)) == DIGESTS[model, seed]


@pytest.mark.parametrize("model", ["model_1_multimer_v3", "model_1_multimer"])
def test_every_bit_of_a_multimer_is_the_recorded_one(model, parity):
    manifest = json.loads((parity / "param_manifest" / f"{model}.json").read_text())
    shapes = {name: tuple(tensor["shape"]) for name, tensor in manifest["params"].items()}
    recorded = (parity / "param_manifest" / "DIGESTS.txt").read_text()
    line = next(line for line in recorded.splitlines() if line.startswith(f"{model} seed 0:"))
    assert line.split()[-1] == digest(synthetic.parameters(shapes, 0))


def test_blocks_of_values_join_without_a_seam():
    shape = (3, synthetic._BLOCK - 1)  # blocks end inside its rows
    whole = synthetic.tensor("a/b//weights", shape, seed=5)
    assert whole.dtype == np.float32
    assert len(np.unique(whole)) > 0.5 * whole.size  # a block that repeats would leave a third
    assert abs(whole.mean()) < 0.01 * whole.std()
    assert whole.std() == pytest.approx(1 / np.sqrt(3), rel=0.01)  # 1 / sqrt(inputs)


def test_seed_name_and_shape_each_change_the_values():
    one = synthetic.tensor("a//bias", (8,), seed=0)
    assert np.array_equal(one, synthetic.tensor("a//bias", (8,), seed=0))
    assert not np.array_equal(one, synthetic.tensor("a//bias", (8,), seed=1))
    assert not np.array_equal(one, synthetic.tensor("b//bias", (8,), seed=0))
    assert not np.array_equal(one, synthetic.tensor("a//bias", (4, 2), seed=0).ravel())

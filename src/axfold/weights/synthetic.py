"""Pseudo-random parameters: everything runs without the trained ones, and the numbers can be checked.

A value depends on the seed, the tensor's name and its shape only, by integer arithmetic and single roundings:
the same bits on every machine and with every NumPy. The spread of each tensor is chosen such that
activations neither vanish nor grow through the network. A structure predicted with them means nothing.
"""

import math
from hashlib import sha256

import numpy as np

from axfold.weights.tensors import Shape, Shapes, Tensors

_STACKS = ("evoformer_iteration", "extra_msa_stack", "__layer_stack_no_state", "template_embedding_iteration")
_GATES = ("left_gate", "right_gate", "gating_linear", "gate")
_RIGID_UPDATES = ("affine_update", "rigid")
_ONE_HOT_INPUTS = (
    "extra_msa_activations",
    "preprocess_msa",
    "preprocess_1d",
    "left_single",
    "right_single",
    "prev_pos_linear",
    "pair_activiations",
    "position_activations",
    "embedding2d",
)

_MEAN_AND_SPREAD = {  # of what is no weight
    "scale": (1.0, 0.1),
    "offset": (0.0, 0.1),
    "trainable_point_weights": (0.541325, 0.2),  # softplus of the mean is 1
    "gating_b": (1.0, 0.2),
    "output_b": (0.0, 0.05),
}
_BIAS = (
    dict.fromkeys(_GATES, (1.0, 0.2))
    | {"unnormalized_angles": (0.0, 0.5)}
    | dict.fromkeys(_RIGID_UPDATES, (0.0, 0.05))
)
_ATTENTION_GAIN = {"query_w": 1.4, "key_w": 1.4, "gating_w": 0.7, "output_w": 0.6}
_GAIN = (  # of "weights", by the last part of their scope; times 1 / sqrt(inputs)
    dict.fromkeys(_GATES, 0.7)
    | dict.fromkeys(("transition1", "resblock1", "act_0", "act_1"), math.sqrt(2.0))
    | {"transition2": 0.35, "resblock2": 0.5, "output_projection": 0.7}
    | {"transition": 1.2, "transition_1": 1.2, "transition_2": 0.6}
    | {"half_logits": 0.5, "logits": 0.5, "single_activations": 0.5, "attention_2d": 1.4}
    | dict.fromkeys(_ONE_HOT_INPUTS, 2.5)
    | {"template_single_embedding": 1.8}
)
_RIGID_GAIN = np.array([0.25, 0.25, 0.25, 0.7, 0.7, 0.7])  # quaternion b, c, d; translation

_CENTRE = 2 * 65535 - 0.5  # half off the mean of four 16-bit integers: no value is zero
_DEVIATION = math.sqrt((65536.0**2 - 1) / 3)  # of their sum
_EVEN_FIELDS = np.uint64(0x0000FFFF0000FFFF)
_BLOCK = 1 << 15  # values made at once: they stay in the cache


def parameters(shapes: Shapes, seed: int) -> Tensors:
    """Tensors of the given names and shapes (DeepMind's, see `names.released_shapes`), each made when it is read."""
    return Tensors(f"synthetic:{seed}", shapes, lambda name: tensor(name, shapes[name], seed))


def tensor(name: str, shape: Shape, seed: int) -> np.ndarray:
    """The float32 values of tensor `name` (`scope//name`)."""
    mean, spread = _distribution(name, shape)
    columns = np.size(spread)
    size = math.prod(shape)
    flat = np.empty(size, np.float32)
    key = f"{seed}|{name}|{','.join(map(str, shape))}"
    base = np.uint64(int.from_bytes(sha256(key.encode()).digest()[:8], "little"))
    step = _BLOCK // columns * columns
    for start in range(0, size, step):
        noise = _noise(base, start, min(step, size - start))
        noise.reshape(-1, columns)[:] *= spread
        noise += mean
        flat[start : start + step] = noise
    return flat.reshape(shape)


def _noise(base: np.uint64, start: int, size: int) -> np.ndarray:
    """Values `start` to `start + size` of a stream with mean 0 and variance 1, float64.

    SplitMix64 with a counter; the sum of a word's four 16-bit fields is close to normal (Irwin-Hall).
    """
    word = np.arange(start + 1, start + size + 1, dtype=np.uint64)
    word *= np.uint64(0x9E3779B97F4A7C15)
    word += base
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word ^= word >> np.uint64(shift)
        word *= np.uint64(factor)
    word ^= word >> np.uint64(31)
    pairs = (word & _EVEN_FIELDS) + ((word >> np.uint64(16)) & _EVEN_FIELDS)
    noise = ((pairs + (pairs >> np.uint64(32))) & np.uint64(0xFFFFFFFF)).astype(np.float64)
    noise -= _CENTRE
    noise /= _DEVIATION
    return noise


def _distribution(key: str, shape: Shape) -> tuple[float, float | np.ndarray]:
    """Mean and standard deviation of a tensor; the latter by column for the update of the rigid frames."""
    scope, name = key.split("//")
    module = scope.rsplit("/", 1)[-1]
    if name in _MEAN_AND_SPREAD:
        return _MEAN_AND_SPREAD[name]
    if name == "bias":
        return _BIAS.get(module, (0.0, 0.1))
    one = shape[1:] if any(part in _STACKS for part in scope.split("/")) else shape
    inputs = one[:-1] if name == "output_w" else one[:1] if len(one) > 1 else ()
    return 0.0, _gain(scope, module, name, one) / math.sqrt(math.prod(inputs))


def _gain(scope: str, module: str, name: str, shape: Shape) -> float | np.ndarray:
    if name == "output_w" and "outer_product_mean" in scope:
        return 0.4
    if name != "weights":
        return _ATTENTION_GAIN.get(name, 1.0)
    if module in _RIGID_UPDATES:
        return _RIGID_GAIN
    if module == "output_projection" and "triangle" in scope:
        return 0.35
    if module == "logits" and "predicted_lddt_head" in scope:
        return 3.0
    if module.startswith(
        "template_pair_embedding_"
    ):  # the multimer's: one-hot, pair channels, single columns
        return 0.5 if len(shape) < 2 else 2.0 if shape[0] < 64 else 1.0
    return _GAIN.get(module, 1.0)

"""ColabFold's AlphaFold 2 (packages alphafold-colabfold and colabfold-kernels, JAX)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np

from axfold.config import Config
from peers import Pass

NAME = "ColabFold"
PACKAGES = ("alphafold-colabfold", "colabfold-kernels", "jax")
SETTINGS = ("fused kernels", "XLA alone")
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # of three quarters of the GPU
    "JAX_COMPILATION_CACHE_DIR": "",  # a compilation that was kept would hide what a new length costs
}
TILE = "block_m: 64 block_n: 64 block_k: 16 num_stages: 3 num_warps: 4 num_ctas: 1"
"""What its compile mode "tuned", the default, gives to XLA in place of autotuning products."""


def why_not(setting: str, config: Config, device: str, precision: str) -> str | None:
    for package in ("jax", "haiku", "alphafold", "colabfold_kernels"):
        if find_spec(package) is None:
            return f"{package} is not installed"
    if setting == "fused kernels" and precision != "bf16":
        return "its kernels need half precision"
    if setting == "fused kernels" and device == "cpu":
        return "its kernels need a GPU"
    import jax

    platform = jax.devices()[0].platform
    if platform != ("cpu" if device == "cpu" else "gpu"):
        return f"JAX runs on {platform} here"
    return None


def build(setting: str, config: Config, device: str, precision: str) -> Pass:
    import jax
    from alphafold.model.config import model_config
    from alphafold.model.model import RunModel
    from colabfold_kernels.device import dispatch

    theirs = model_config(config.name)
    theirs.data.eval.num_ensemble = 1
    theirs.model.num_recycle = 0
    theirs.model.stop_at_score = 100.0
    theirs.model.rank_by = "plddt"
    theirs.model.embeddings_and_evoformer.evoformer_num_block = config.model.evoformer.blocks
    options = theirs.model.global_config
    options.bfloat16 = precision == "bf16"
    if setting == "fused kernels":
        options.update(dispatch())
    for head in ("distogram", "masked_msa", "experimentally_resolved"):
        theirs.model.heads[head].weight = 0.0  # as in `colabfold_batch` without --save-all: they are left out
    jit = {"compiler_options": {"xla_gpu_override_gemm_autotuner": TILE}} if device != "cpu" else {}
    runner = RunModel(theirs, None, jit_kwargs=jit)
    key = jax.random.PRNGKey(0)
    compiled: dict[tuple[int, ...], Any] = {}
    parameters: Any = None

    def one_pass(features: Mapping[str, np.ndarray]) -> dict[str, Any]:
        nonlocal parameters
        said: dict[str, Any] = {}
        length = len(features["aatype"])
        # what the first of several passes is given: features of a sample, and nothing recycled, in float16
        recycled = {
            "prev_msa_first_row": np.zeros((length, 256), np.float16),
            "prev_pair": np.zeros((length, length, 128), np.float16),
            "prev_pos": np.zeros((length, 37, 3), np.float16),
        }
        batch = jax.device_put({**{name: x[None] for name, x in features.items()}, "prev": recycled})
        if parameters is None:
            start = time.perf_counter()
            parameters = jax.device_put(_random(jax.eval_shape(runner.init, key, batch)))
            said["weights_seconds"] = round(time.perf_counter() - start, 3)
        shapes = features["msa_feat"].shape + features["extra_msa"].shape
        if shapes not in compiled:
            start = time.perf_counter()
            lowered = runner.apply.lower(parameters, key, batch)
            traced = time.perf_counter()
            compiled[shapes] = lowered.compile()
            said["trace_seconds"] = round(traced - start, 3)
            said["compile_seconds"] = round(time.perf_counter() - traced, 3)
        jax.block_until_ready(compiled[shapes](parameters, key, batch))
        return said

    return one_pass


def _random(shapes: Any) -> Any:
    """Normal weights, as large as their inputs are many; zeros would draw less power and let a GPU run faster."""
    import jax

    generator = np.random.default_rng(0)

    def fill(path: tuple[Any, ...], shape: Any) -> np.ndarray:
        name = str(path[-1].key)
        if name == "scale":
            return np.ones(shape.shape, np.float32)
        if name in ("bias", "offset") or name.endswith("_b"):
            return np.zeros(shape.shape, np.float32)
        inputs = max(shape.shape[-2] if len(shape.shape) > 1 else 1, 1)
        return generator.standard_normal(shape.shape, np.float32) / np.float32(inputs**0.5)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def forget_peak() -> None:
    """JAX counts from the start of its process: give lengths in ascending order."""


def peak_bytes() -> int | None:
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

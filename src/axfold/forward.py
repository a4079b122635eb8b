"""The network on processed features, file to file: how anyone checks its numbers against DeepMind's."""

from __future__ import annotations

import zipfile
from collections import deque
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from axfold import network, options, planning
from axfold.config import Config
from axfold.data import features as feature_table
from axfold.data.features import FEATURES
from axfold.errors import InputError
from axfold.forecast import line
from axfold.memory.host import Bus
from axfold.memory.meter import Meter
from axfold.model.alphafold import AlphaFold, Pass
from axfold.output import files
from axfold.progress import Planned, Report
from axfold.weights import source


@torch.inference_mode()
def forward(
    inputs: Path,
    params: str | None,
    model: str,
    out: Path,
    *,
    recycles: int | None = None,
    ensembles: int | None = None,
    precision: str = "fp32",
    device: str = "auto",
    memory_budget: str | None = None,
    profile: Path | None = None,
    report: Report | None = None,
) -> None:
    """Write what the last pass computes of the features in `inputs` to `out`, float32 under the recorded names.

    Pass r reads the samples from r * ensembles to (r + 1) * ensembles - 1. Raises InputError, WeightsError and
    AxfoldError.
    """
    config = options.configured(model, recycles=recycles, ensembles=ensembles)
    samples = read(inputs, config)
    files.make_folder(out.parent)
    parameters = source.find(model, params)
    where = network.find_device(device)
    precision = network.find_precision(precision, where)
    memory = planning.find_memory(where, memory_budget)
    loaded = network.load_network(config, parameters, where, precision)

    def tell(text: str) -> None:
        if report is not None:
            report(Planned(text=text))

    bus = Bus(where)
    ladder = planning.Ladder(loaded, planning.sizes_of(samples[0], config, loaded), memory, bus, tell)
    tell(line(ladder.plan, memory.device_bytes))
    meter = None if profile is None else Meter(loaded, where, bus=bus)
    with (
        meter or nullcontext(),
        network.watched(
            loaded,
            config,
            passes=config.recycles + 1,
            templates=len(samples[0].get("template_aatype", ())) > 0,
            report=report,
        ),
    ):
        last = deque(
            network.passes(loaded, network.on_device(samples, config.ensembles, where), ladder.leaner),
            maxlen=1,
        ).pop()
    if meter is not None and profile is not None:
        files.write_json(profile, {model: meter.as_dict()})
    with files.writing(out) as file:
        np.savez(file, allow_pickle=False, **outputs(loaded, last))


def read(path: Path, config: Config) -> list[dict[str, np.ndarray]]:
    """The samples of the features in an npz file that all passes of `config` read, checked. Raises InputError."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            features = {name: archive[name] for name in FEATURES if name in archive}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        reason = getattr(error, "strerror", None) or "it is no npz file of arrays, or damaged"
        raise InputError(f"{path}: can't be read ({reason}).") from error
    try:
        feature_table.check(features, templates=config.data.templates > 0)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    found, passes = len(features["aatype"]), config.recycles + 1
    if found < passes * config.ensembles:
        raise InputError(
            f"{path}: the features hold {found} samples, and {config.recycles} recycles need "
            f"{passes * config.ensembles}: {passes} passes of {config.ensembles}. Use fewer --recycles or --ensembles."
        )
    names = [name for name in features if len(features[name]) == found]
    return [{name: features[name][i] for name in names} for i in range(passes * config.ensembles)]


def outputs(network: AlphaFold, result: Pass) -> dict[str, np.ndarray]:
    """A pass's results by the names under which DeepMind's were recorded, float32."""
    heads, error = network.heads, network.heads.aligned_error
    named: Mapping[str, torch.Tensor | None] = {
        "final_atom_positions": result.structure.atom37,
        "final_atom_mask": result.structure.mask,
        "predicted_lddt_logits": heads.confidence(result.structure.single),
        "distogram_logits": heads.distogram(result.pair),
        "masked_msa_logits": heads.masked_msa(result.msa),
        "experimentally_resolved_logits": heads.resolved(result.single),
        "predicted_aligned_error_logits": None if error is None else error(result.pair),
        "single": result.single,
        "msa_first_row": result.msa_first_row,
        "pair": network.rows.whole(result.pair),
    }
    return {name: tensor.float().cpu().numpy() for name, tensor in named.items() if tensor is not None}

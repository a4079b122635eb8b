"""The network on processed features, file to file: how anyone checks its numbers against DeepMind's."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from axfold import options, predictor
from axfold.data import features as feature_table
from axfold.data.features import FEATURES
from axfold.errors import InputError
from axfold.model.alphafold import AlphaFold, Pass
from axfold.output import files
from axfold.progress import Report
from axfold.weights import source


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
    report: Report | None = None,
) -> None:
    """Write what the last pass computes of the features in `inputs` to `out`, float32 under the recorded names.

    Pass r reads the samples r * ensembles to (r + 1) * ensembles - 1. Raises InputError, WeightsError and
    AxfoldError.
    """
    config = options.configured(model, recycles=recycles, ensembles=ensembles)
    features = read(inputs, config.recycles + 1, config.ensembles, templates=config.data.templates > 0)
    files.make_folder(out.parent)
    parameters = source.find(model, params)
    where = predictor.find_device(device)
    network = predictor.load_network(config, parameters, where, predictor.find_dtype(precision, where))
    watched = predictor.watched(network, config, features, report) if report else torch.inference_mode()
    with watched:
        for result in predictor.passes(network, predictor.samples(features, config.ensembles, where)):
            last = result
    with torch.inference_mode():
        named = outputs(network, last)
    with files.writing(out) as file:
        np.savez(file, allow_pickle=False, **named)


def read(path: Path, passes: int, ensembles: int, *, templates: bool) -> dict[str, np.ndarray]:
    """The features in an npz file, checked, for as many passes. Raises InputError."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            features = {name: archive[name] for name in FEATURES if name in archive}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        reason = getattr(error, "strerror", None) or "it is no npz file of arrays, or damaged"
        raise InputError(f"{path}: can't be read ({reason}).") from error
    try:
        feature_table.check(features, templates=templates)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    found, needed = len(features["aatype"]), passes * ensembles
    if found < needed:
        raise InputError(
            f"{path}: the features hold {found} sample{'s' * (found != 1)}, and {passes - 1} recycles need {needed}. "
            f"Give --recycles {found // ensembles - 1} or fewer."
            if found >= ensembles
            else f"{path}: the features hold {found} samples, and {ensembles} ensembles need as many in each pass."
        )
    return {name: value[:needed] for name, value in features.items()}


def outputs(network: AlphaFold, result: Pass) -> dict[str, np.ndarray]:
    """A pass's results by the names under which DeepMind's were recorded, float32."""
    heads = network.heads
    named: Mapping[str, torch.Tensor | None] = {
        "final_atom_positions": result.structure.atom37,
        "final_atom_mask": result.structure.mask,
        "predicted_lddt_logits": heads.confidence(result.structure.single),
        "distogram_logits": heads.distogram(result.pair),
        "masked_msa_logits": heads.masked_msa(result.msa),
        "experimentally_resolved_logits": heads.resolved(result.single),
        "predicted_aligned_error_logits": heads.aligned_error and heads.aligned_error(result.pair),
        "single": result.single,
        "msa_first_row": result.msa_first_row,
        "pair": result.pair,
    }
    return {name: tensor.float().cpu().numpy() for name, tensor in named.items() if tensor is not None}

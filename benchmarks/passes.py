"""What the benchmarks of whole passes run: a model of a certain depth, and random features for it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from axfold.config import PRESETS, Config

if TYPE_CHECKING:
    from axfold.data.query import Query


def configuration(model: str, clusters: int, extra: int, blocks: int | None = None) -> Config:
    """The preset of that name with alignments of that depth and, unless None, so many Evoformer blocks."""
    config = PRESETS[model]
    config = replace(config, data=replace(config.data, msa_clusters=clusters, extra_msa=extra))
    if blocks is not None:
        stack = replace(config.model.evoformer, blocks=blocks)
        config = replace(config, model=replace(config.model, evoformer=stack))
    return config


def random_query(residues: int, rows: int) -> Query:
    """A random sequence with an alignment of `rows` random ones; what they say changes no timing."""
    from axfold.data.query import Alignment, Query
    from axfold.residues import RESTYPES

    letters = np.frombuffer("".join(RESTYPES).encode(), np.uint8)
    chosen = np.random.default_rng(residues).choice(letters, (rows, residues))
    sequences = tuple(row.tobytes().decode() for row in chosen)
    alignment = Alignment(sequences, np.zeros((rows, residues), np.int32), ("",) * rows)
    return Query(name=f"random-{residues}", sequence=sequences[0], alignments=(alignment,))


def random_features(residues: int, config: Config) -> dict[str, np.ndarray]:
    """Features of one pass over such a sequence, with as many rows as the model takes."""
    from axfold.data import pipelines

    query = random_query(residues, 2 * (config.data.msa_clusters + config.data.extra_msa))
    samples = pipelines.monomer(query, config, seed=0, passes=1)
    return {name: np.array(value[0]) for name, value in samples.items()}

"""From a query to the features that a model reads: which steps, in which order, for how many samples."""

from collections.abc import Iterator
from itertools import count

import numpy as np

from axfold.config import Config, Data
from axfold.data import steps
from axfold.data.features import FEATURES, Features
from axfold.data.query import Query
from axfold.data.templates import TemplateFeatures

MONOMER: tuple[steps.Step, ...] = (steps.make_profile, steps.make_target_feat, steps.make_atom_maps)
"""Once a query."""

TEMPLATES: tuple[steps.Step, ...] = (steps.make_template_pseudo_beta,)
"""Once a query too, for models that take templates."""


def sampling(data: Data) -> tuple[steps.Step, ...]:
    """Once a sample, in the order of supplement 1.2.7.

    Masking comes before clustering, so that no profile gives away what was masked; extra rows are cropped after it,
    so that the profiles are those of all rows. Template rows count as clusters where there can be any.
    """
    return (
        steps.sample_rows(max(data.msa_clusters - data.templates, 1)),
        steps.mask_msa(data),
        steps.assign_clusters,
        steps.summarize_clusters,
        steps.crop_extra(data.extra_msa),
        steps.make_msa_feat,
        steps.pad_extra,
        steps.finish,
    )


def monomer(
    query: Query,
    config: Config,
    seed: int,
    *,
    templates: TemplateFeatures | None = None,
    passes: int | None = None,
) -> dict[str, np.ndarray]:
    """The features of FEATURES, with passes * config.ensembles samples on their first axis.

    As `monomer_samples`, of which they are a stack: more passes add samples and change none. Features that do not
    depend on the sample are read-only views of one. `passes` is config.recycles + 1 unless given.
    """
    samples = config.ensembles * (config.recycles + 1 if passes is None else passes)
    features: dict[str, np.ndarray] = {}
    for i, sample in zip(
        range(samples), monomer_samples(query, config, seed, templates=templates), strict=False
    ):
        for name, value in sample.items():
            varies = not {"S", "E"}.isdisjoint(FEATURES[name].shape)
            if i == 0:
                shape = (samples, *value.shape)
                features[name] = np.empty(shape, value.dtype) if varies else np.broadcast_to(value, shape)
            if varies:
                features[name][i] = value
    return features


def monomer_samples(
    query: Query, config: Config, seed: int, *, templates: TemplateFeatures | None = None
) -> Iterator[Features]:
    """Samples of the features of FEATURES, each as it is asked for, without end and without their first axis.

    Sample i depends on `seed` and i alone. `templates` are used up to config.data.templates, in their order; None
    means none found. Raises InputError about an alignment that does not fit the sequence.
    """
    once = steps.run(MONOMER, steps.query_features(query), np.random.default_rng(seed))
    if config.data.templates:
        found = templates or TemplateFeatures.stack((), len(query.sequence))
        once = steps.run(
            TEMPLATES, {**once, **found.features(config.data.templates)}, np.random.default_rng(seed)
        )
    for i in count():
        yield steps.run(sampling(config.data), once, np.random.default_rng([seed, i]))

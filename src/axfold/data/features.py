"""Every processed feature, once: its axes, type, range and meaning.

Names are AlphaFold's. The first axis of all is the sample: passes x ensembles, one draw of the MSA each; features
that do not depend on the draw may repeat as views. Depths are real ones: a single sequence has one cluster, and
T = 0 says that no template was found. Only where there is no extra row there is one of padding.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from axfold.errors import InputError

Features = Mapping[str, np.ndarray]

AXES = {
    "sample": "passes x ensembles",
    "N": "residues",
    "S": "clusters of the MSA",
    "E": "extra rows of the MSA",
    "T": "templates",
}


@dataclass(frozen=True)
class Feature:
    """One line of the table below. Integers lie in 0 <= x < `classes`, or have no upper bound where it is 0."""

    shape: tuple[str | int, ...]
    dtype: type[np.generic]
    meaning: str
    classes: int = 0
    read: bool = True  # by the network; the others are for losses and for people


FEATURES: dict[str, Feature] = {
    "aatype": Feature(("N",), np.int32, "residue type; 20 is X", 21),
    "residue_index": Feature(("N",), np.int32, "position in the sequence, from 0"),
    "seq_length": Feature((), np.int32, "number of residues", read=False),
    "seq_mask": Feature(("N",), np.float32, "1 for a residue, 0 for padding"),
    "target_feat": Feature(("N", 22), np.float32, "chain break (always 0), then one-hot residue type (21)"),
    "atom14_atom_exists": Feature(("N", 14), np.float32, "1 where the residue type has the atom"),
    "atom37_atom_exists": Feature(("N", 37), np.float32, "1 where the residue type has the atom"),
    "residx_atom14_to_atom37": Feature(
        ("N", 14), np.int32, "atom37 column of each atom14 atom", 37, read=False
    ),
    "residx_atom37_to_atom14": Feature(("N", 37), np.int32, "atom14 column of each atom37 atom", 14),
    "msa_feat": Feature(
        ("S", "N", 49),
        np.float32,
        "one-hot cluster centre (23: 20 types, X, gap, mask), has deletion, deletion value, profile of the cluster"
        " (23), mean deletion value of the cluster (supplement Table 1)",
    ),
    "msa_mask": Feature(("S", "N"), np.float32, "1 where msa_feat counts"),
    "msa_row_mask": Feature(("S",), np.float32, "1 for a row, 0 for padding", read=False),
    "bert_mask": Feature(
        ("S", "N"), np.float32, "1 where the cluster centre was masked or replaced", read=False
    ),
    "true_msa": Feature(("S", "N"), np.int32, "cluster centres before masking", 22, read=False),
    "extra_msa": Feature(("E", "N"), np.int32, "rows that are no cluster centre", 23),
    "extra_msa_mask": Feature(("E", "N"), np.float32, "1 where extra_msa counts"),
    "extra_msa_row_mask": Feature(("E",), np.float32, "1 for a row, 0 for padding", read=False),
    "extra_has_deletion": Feature(("E", "N"), np.float32, "1 where residues were deleted just before"),
    "extra_deletion_value": Feature(("E", "N"), np.float32, "2/pi arctan(deleted residues / 3)"),
    "template_mask": Feature(("T",), np.float32, "1 for a template, 0 for padding"),
    "template_aatype": Feature(
        ("T", "N"), np.int32, "residue type of the template; 21 where it has none", 22
    ),
    "template_all_atom_positions": Feature(("T", "N", 37, 3), np.float32, "Å"),
    "template_all_atom_masks": Feature(("T", "N", 37), np.float32, "1 where the atom was seen"),
    "template_pseudo_beta": Feature(("T", "N", 3), np.float32, "Å; C-beta, of glycine C-alpha"),
    "template_pseudo_beta_mask": Feature(("T", "N"), np.float32, "1 where that atom was seen"),
    "template_sum_probs": Feature(("T", 1), np.float32, "score of the template search", read=False),
}
"""Features of a monomer. Those named template_* exist for models that take templates."""


def check(features: Features, *, templates: bool) -> None:
    """Raise InputError about the first feature, in the order of FEATURES, that the network could not read.

    `features` are those of a file that was not made here; what the network does not read, and names that FEATURES
    does not have, are ignored. `templates` says whether the model takes templates.
    """
    sizes: dict[str, int] = {}
    for name, feature in FEATURES.items():
        if not feature.read or (name.startswith("template_") and not templates):
            continue
        if name not in features:
            raise InputError(f"The features lack {name}, of the shape {_shape(feature)}: {feature.meaning}.")
        _check_shape(name, feature, features[name], sizes)
        _check_values(name, feature, features[name])


def _check_shape(name: str, feature: Feature, value: np.ndarray, sizes: dict[str, int]) -> None:
    """Compare with the sizes that earlier features gave the axes, and add new ones to `sizes`."""
    axes = ("sample", *feature.shape)
    if value.ndim != len(axes):
        raise InputError(f"{name} has the shape {value.shape}, but its axes are {_shape(feature)}.")
    for axis, size in zip(axes, value.shape, strict=True):
        wanted = axis if isinstance(axis, int) else sizes.setdefault(axis, size)
        if size != wanted:
            raise InputError(
                f"{name} has the shape {value.shape}, but its axes are {_shape(feature)}"
                + (f", and the features before it have {axis} = {wanted}." if axis != wanted else ".")
            )
        if size == 0 and axis != "T":
            raise InputError(f"{name} has the shape {value.shape}: there are no {AXES[str(axis)]} ({axis}).")


def _check_values(name: str, feature: Feature, value: np.ndarray) -> None:
    if value.dtype != feature.dtype:
        raise InputError(f"{name} has the type {value.dtype}, but {np.dtype(feature.dtype)} is needed.")
    if value.size == 0:
        return
    if value.dtype.kind == "f":
        # A sum meets every value and needs no array of its own, which isfinite would.
        if not np.isfinite(np.sum(value, dtype=np.float64)):
            raise InputError(f"{name} holds values that are not finite.")
    elif value.min() < 0 or (feature.classes and value.max() >= feature.classes):
        limit = f"0 to {feature.classes - 1}" if feature.classes else "0 and up"
        raise InputError(f"{name} has values from {value.min()} to {value.max()}, but {limit} are possible.")


def _shape(feature: Feature) -> str:
    return "(" + ", ".join(map(str, ("sample", *feature.shape))) + ")"

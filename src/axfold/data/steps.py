"""The steps from alignments to the features of one sample (supplement 1.2).

A step is a function (features, rng) -> features that changes none of its arguments. Every random choice is a step
of its own or an argument of the function that follows from it, so that the consequences can be checked against
recorded choices. Until `finish` an MSA is uint8 and holds indices of `residues.MSA_INDEX`; 22 is a masked position.
"""

from collections.abc import Callable, Iterable
from functools import reduce

import numpy as np

from axfold import residues
from axfold.config import Data
from axfold.data.features import FEATURES, Features
from axfold.data.query import Alignment, Query
from axfold.errors import InputError

Step = Callable[[Features, np.random.Generator], Features]

GAP = 21
MASKED = 22
_NO_LETTER = 255
_MSA_CODES = np.full(256, _NO_LETTER, np.uint8)
_MSA_CODES[[ord(letter) for letter in residues.MSA_INDEX]] = list(residues.MSA_INDEX.values())
_WITH_RESIDUES = {name: feature.shape for name, feature in FEATURES.items() if "N" in feature.shape}
_ROWS_AT_ONCE = 1024  # rows of the extra MSA compared with the clusters at once, to stay in the cache


def run(steps: Iterable[Step], features: Features, rng: np.random.Generator) -> Features:
    """`features` after all `steps`, which share `rng`."""
    return reduce(lambda done, step: step(done, rng), steps, features)


def query_features(query: Query) -> dict[str, np.ndarray]:
    """Features of the sequence, and the rows of its alignments, each different row once (1.2.2).

    Adds msa (rows, N) uint8 and deletion_matrix (rows, N) int32; without alignments the sequence is the only row.
    Raises InputError about a row that does not fit the sequence.
    """
    n_res = len(query.sequence)
    msa, deletions = _stack(query)
    return {
        "aatype": np.array([residues.RESTYPE_INDEX[letter] for letter in query.sequence], np.int32),
        "residue_index": np.arange(n_res, dtype=np.int32),
        "seq_length": np.array(n_res, np.int32),
        "seq_mask": np.ones(n_res, np.float32),
        "msa": msa,
        "deletion_matrix": deletions,
    }


def _stack(query: Query) -> tuple[np.ndarray, np.ndarray]:
    """The different rows of all alignments in their order, and their deletions."""
    n_res = len(query.sequence)
    alignments = query.alignments
    if not any(alignment.sequences for alignment in alignments):
        alignments = (Alignment((query.sequence,), np.zeros((1, n_res), np.int32), (query.name,)),)
    first: dict[str, tuple[int, int]] = {}  # sequence -> alignment and row where it occurs first
    for at, alignment in enumerate(alignments):
        for row, sequence in enumerate(alignment.sequences):
            first.setdefault(sequence, (at, row))
    places = list(first.values())
    for sequence, (at, row) in first.items():
        if len(sequence) != n_res:
            raise InputError(
                f"{query.name}: row {row + 1} of alignment {at + 1} has {len(sequence)} columns, "
                f"but the sequence has {n_res} residues. Align to the whole sequence."
            )
    letters = np.frombuffer("".join(first).encode("ascii", "replace"), np.uint8)
    msa = _MSA_CODES[letters].reshape(len(first), n_res)
    bad = (msa == _NO_LETTER).any(axis=1)
    if bad.any():
        at, row = places[int(bad.argmax())]
        raise InputError(
            f"{query.name}: row {row + 1} of alignment {at + 1} holds other characters than A to Z and '-'."
        )
    deletions = np.stack([alignments[at].deletions[row] for at, row in places])
    return msa, deletions.astype(np.int32, copy=False)


def make_profile(features: Features, _rng: np.random.Generator) -> Features:
    """Add hhblits_profile (N, 22): the share of each residue type, X and gap in a column of the whole MSA."""
    msa = features["msa"]
    counts = np.stack([np.count_nonzero(msa == letter, axis=0) for letter in range(22)], axis=-1)
    return {**features, "hhblits_profile": counts.astype(np.float32) / np.float32(len(msa))}


def make_target_feat(features: Features, _rng: np.random.Generator) -> Features:
    """Add target_feat (N, 22): a chain break, which a single chain never has, and the one-hot residue type."""
    one_hot = np.eye(22, dtype=np.float32)
    return {**features, "target_feat": one_hot[features["aatype"] + 1]}


def make_atom_maps(features: Features, _rng: np.random.Generator) -> Features:
    """Add which atoms each residue has, and the maps between the layouts of 14 and 37 atoms."""
    aatype = features["aatype"]
    return {
        **features,
        "atom14_atom_exists": residues.ATOM14_MASK[aatype],
        "atom37_atom_exists": residues.ATOM37_MASK[aatype],
        "residx_atom14_to_atom37": residues.ATOM14_TO_ATOM37[aatype],
        "residx_atom37_to_atom14": residues.ATOM37_TO_ATOM14[aatype],
    }


def make_template_pseudo_beta(features: Features, _rng: np.random.Generator) -> Features:
    """Add the C-beta positions of the templates, of glycine the C-alpha (supplement Table 1)."""
    glycine = features["template_aatype"] == residues.RESTYPE_INDEX["G"]
    atom = np.where(glycine, residues.ATOM_INDEX["CA"], residues.ATOM_INDEX["CB"])[..., None]
    positions, masks = features["template_all_atom_positions"], features["template_all_atom_masks"]
    return {
        **features,
        "template_pseudo_beta": np.take_along_axis(positions, atom[..., None], axis=-2)[..., 0, :],
        "template_pseudo_beta_mask": np.take_along_axis(masks, atom, axis=-1)[..., 0],
    }


def delete_blocks(blocks: int, fraction: float) -> Step:
    """Drop `blocks` blocks of neighbouring rows, each a `fraction` of them; the first row stays (1.2.6, Algorithm 1).

    Blocks start anywhere, overlap, and end with the last row, as in AlphaFold's code.
    """

    def step(features: Features, rng: np.random.Generator) -> Features:
        rows = len(features["msa"])
        kept = np.ones(rows, bool)
        for start in rng.integers(rows, size=blocks):
            kept[start : start + int(rows * fraction)] = False
        kept[0] = True
        return {**features, **{name: features[name][kept] for name in ("msa", "deletion_matrix")}}

    return step


def thin_rows(rows: int) -> Step:
    """Keep the first row and a random choice of the others, `rows` in all at most, in their order (1.3)."""

    def step(features: Features, rng: np.random.Generator) -> Features:
        others = len(features["msa"]) - 1
        if others < rows:
            return features
        kept = np.concatenate([[0], 1 + np.sort(rng.choice(others, rows - 1, replace=False))])
        return {**features, **{name: features[name][kept] for name in ("msa", "deletion_matrix")}}

    return step


def draw_rows(profile: np.ndarray, rows: int) -> Step:
    """Rows for a chain that has a profile in place of an alignment: `rows` - 1 below the first, and the profile.

    Each position is drawn by itself from its column of `profile`, (N, 20) shares of the residue types: the rows hold
    what a column prefers, and nothing of how columns depend on each other. They have neither gaps nor deletions. Sets
    hhblits_profile to the profile, so that masked positions are replaced by draws from it.
    """
    whole = np.zeros((len(profile), 22), np.float32)
    whole[:, :20] = profile / profile.sum(axis=-1, keepdims=True)
    limits = whole[:, :19].cumsum(axis=-1)

    def step(features: Features, rng: np.random.Generator) -> Features:
        first = features["msa"][:1]
        drawn = (rng.random((rows - 1, len(profile), 1), np.float32) >= limits).sum(axis=-1, dtype=np.uint8)
        msa = np.concatenate([first, drawn])
        return {
            **features,
            "msa": msa,
            "deletion_matrix": np.zeros_like(msa),
            "hhblits_profile": whole,
        }

    return step


def sample_rows(clusters: int) -> Step:
    """Choose at most `clusters` rows as cluster centres, the query first; all others are extra (1.2.7, 1)."""

    def step(features: Features, rng: np.random.Generator) -> Features:
        order = np.concatenate([[0], 1 + rng.permutation(len(features["msa"]) - 1)])
        return split_rows(features, order[:clusters], order[clusters:])

    return step


def split_rows(features: Features, centres: np.ndarray, extra: np.ndarray) -> Features:
    """Leave the rows `centres` in the MSA and move the rows `extra` to extra_msa, each in the given order."""
    return {
        **features,
        "msa": features["msa"][centres],
        "deletion_matrix": features["deletion_matrix"][centres],
        "extra_msa": features["msa"][extra],
        "extra_deletion_matrix": features["deletion_matrix"][extra],
    }


def mask_msa(data: Data) -> Step:
    """Mask a share of the cluster centres' positions as BERT does (1.2.7, 2).

    A chosen position becomes a uniformly drawn amino acid, a draw from its column's profile, stays what it is, or
    becomes MASKED, with the probabilities of `data`. Adds bert_mask, 1 at chosen positions, and true_msa.
    """

    def step(features: Features, rng: np.random.Generator) -> Features:
        msa = features["msa"]
        chosen = rng.random(msa.shape) < data.masked_fraction
        _, column = np.nonzero(chosen)
        n = len(column)
        cumulative = features["hhblits_profile"].cumsum(axis=-1)
        cumulative /= cumulative[:, -1:]  # so that a draw below 1 always meets a letter
        options = np.stack(
            [
                rng.integers(20, size=n),
                (cumulative[column] > rng.random((n, 1))).argmax(axis=-1),
                msa[chosen],
                np.full(n, MASKED),
            ]
        )
        limits = np.cumsum([data.masked_uniform, data.masked_profile, data.masked_same])
        masked = msa.copy()
        masked[chosen] = options[np.searchsorted(limits, rng.random(n), side="right"), np.arange(n)]
        return {**features, "msa": masked, "true_msa": msa, "bert_mask": chosen.astype(np.float32)}

    return step


def assign_clusters(features: Features, _rng: np.random.Generator) -> Features:
    """Add extra_cluster_assignment (E,): the centre that agrees with each extra row in most residues (1.2.7, 3).

    Gaps and masked positions agree with nothing; of equals the first centre wins.
    """
    extra, n_res = features["extra_msa"], features["msa"].shape[1]
    centres = np.ascontiguousarray(np.where(features["msa"] < GAP, features["msa"], _NO_LETTER).T)  # (N, S)
    assignment = np.empty(len(extra), np.int32)
    # Bytes are compared rather than one-hot vectors multiplied: three times as fast, and counts stay exact. They are
    # summed as bytes too, which hold 255 columns.
    for start in range(0, len(extra), _ROWS_AT_ONCE):
        rows = np.ascontiguousarray(extra[start : start + _ROWS_AT_ONCE].T)  # (N, E')
        agreement = np.zeros((rows.shape[1], centres.shape[1]), np.int32)
        for columns in np.split(np.arange(n_res), range(255, n_res, 255)):
            count = np.zeros(agreement.shape, np.uint8)
            for column in columns:
                count += np.equal(rows[column][:, None], centres[column]).view(np.uint8)
            agreement += count
        assignment[start : start + _ROWS_AT_ONCE] = agreement.argmax(axis=1)
    return {**features, "extra_cluster_assignment": assignment}


def summarize_clusters(features: Features, _rng: np.random.Generator) -> Features:
    """Add cluster_profile (S, N, 23) and cluster_deletion_mean (S, N): means over centre and members (1.2.7, 3)."""
    msa, extra = features["msa"], features["extra_msa"]
    n_clusters, n_res = msa.shape
    assignment = features["extra_cluster_assignment"]
    sizes = np.bincount(assignment, minlength=n_clusters)
    members = np.split(np.argsort(assignment, kind="stable"), np.cumsum(sizes)[:-1])
    profile = np.empty((n_clusters, n_res, 23), np.float32)
    deletions = np.empty((n_clusters, n_res), np.float32)
    first = 23 * np.arange(n_res)  # of the 23 counts of each column
    for cluster, rows in enumerate(members):
        letters = np.concatenate([msa[cluster, None], extra[rows]])
        profile[cluster] = np.bincount((letters + first).ravel(), minlength=23 * n_res).reshape(n_res, 23)
        deletions[cluster] = features["deletion_matrix"][cluster]
        deletions[cluster] += features["extra_deletion_matrix"][rows].sum(axis=0)
    weight = np.float32(1e-6) + 1 + sizes.astype(np.float32)  # AlphaFold's guard against empty clusters
    profile /= weight[:, None, None]
    deletions /= weight[:, None]
    return {**features, "cluster_profile": profile, "cluster_deletion_mean": deletions}


def crop_residues(kept: np.ndarray) -> Step:
    """Keep the residues `kept` (indices, ascending) of every feature that has them (1.2.8).

    Between `assign_clusters` and `summarize_clusters`: what is nearest is decided by the whole chain, as in AlphaFold,
    and summed where it is needed.
    """
    axes = {
        **{name: shape.index("N") for name, shape in _WITH_RESIDUES.items()},
        **dict.fromkeys(("msa", "deletion_matrix", "extra_deletion_matrix"), 1),
        "hhblits_profile": 0,
    }

    def step(features: Features, _rng: np.random.Generator) -> Features:
        return {
            name: value.take(kept, axis=axes[name]) if name in axes else value
            for name, value in features.items()
        }

    return step


def crop_extra(rows: int) -> Step:
    """Keep the first `rows` extra rows; `sample_rows` has put them in random order (1.2.7, 4)."""

    def step(features: Features, _rng: np.random.Generator) -> Features:
        names = ("extra_msa", "extra_deletion_matrix", "extra_cluster_assignment")
        return {**features, **{name: features[name][:rows] for name in names}}

    return step


def make_msa_feat(features: Features, _rng: np.random.Generator) -> Features:
    """Add msa_feat (S, N, 49), the features of the extra rows, and masks of ones (supplement Table 1)."""
    msa, extra = features["msa"], features["extra_msa"]
    msa_feat = np.empty((*msa.shape, 49), np.float32)
    msa_feat[..., :23] = msa[..., None] == np.arange(23, dtype=np.uint8)  # a byte each on the way
    msa_feat[..., 23] = features["deletion_matrix"] > 0
    msa_feat[..., 24] = _squash(features["deletion_matrix"])
    msa_feat[..., 25:48] = features["cluster_profile"]
    msa_feat[..., 48] = _squash(features["cluster_deletion_mean"])
    return {
        **features,
        "msa_feat": msa_feat,
        "msa_mask": np.ones(msa.shape, np.float32),
        "msa_row_mask": np.ones(len(msa), np.float32),
        "extra_has_deletion": (features["extra_deletion_matrix"] > 0).astype(np.float32),
        "extra_deletion_value": _squash(features["extra_deletion_matrix"]),
        "extra_msa_mask": np.ones(extra.shape, np.float32),
        "extra_msa_row_mask": np.ones(len(extra), np.float32),
    }


def pad_extra(features: Features, _rng: np.random.Generator) -> Features:
    """Add a masked extra row where there is none, as of a single sequence: the network takes no empty stack."""
    if len(features["extra_msa"]):
        return features
    row = np.zeros((1, features["msa"].shape[1]), np.float32)
    names = ("extra_msa", "extra_msa_mask", "extra_has_deletion", "extra_deletion_value")
    return {**features, **dict.fromkeys(names, row), "extra_msa_row_mask": row[:, 0]}


def _squash(deletions: np.ndarray) -> np.ndarray:
    """Counts to [0, 1)."""
    return np.arctan(deletions.astype(np.float32) / 3) * np.float32(2 / np.pi)


def finish(features: Features, _rng: np.random.Generator) -> Features:
    """Keep the features that are in FEATURES, in their types."""
    return {
        name: features[name].astype(feature.dtype, copy=False)
        for name, feature in FEATURES.items()
        if name in features
    }

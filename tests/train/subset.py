"""Makes near_native.npz, what a clone tests of DeepMind's recorded losses: `python subset.py CASE_FOLDER`.

The largest inputs, which are the logits of pairs and of the MSA, stay out.
"""

import sys
from pathlib import Path

import numpy as np

GROUND_TRUTH = (
    *("aatype", "residue_index", "seq_mask", "all_atom_positions", "all_atom_mask", "resolution"),
    *("use_clamped_fape", "bert_mask", "true_msa", "chi_angles", "chi_mask"),
    *("rigidgroups_gt_frames", "rigidgroups_alt_gt_frames", "rigidgroups_gt_exists"),
    *("atom14_gt_positions", "atom14_gt_exists", "atom14_alt_gt_positions", "atom14_alt_gt_exists"),
    *("pseudo_beta", "pseudo_beta_mask", "backbone_affine_tensor", "backbone_affine_mask"),
)
LEFT_OUT = (
    "predicted_aligned_error",
    "distogram",
    "masked_msa",
    "final_affines",
    "true_dist",
)


def subset(folder: Path) -> dict[str, np.ndarray]:
    kept = {}
    with np.load(folder / "inputs.npz", allow_pickle=False) as file:
        kept |= {name: file[name] for name in GROUND_TRUTH}
    for name in ("near_inputs.npz", "near_outputs.npz"):
        with np.load(folder / name, allow_pickle=False) as file:
            kept |= {key: file[key] for key in file.files if not any(part in key for part in LEFT_OUT)}
    return kept


if __name__ == "__main__":
    np.savez_compressed(Path(__file__).parent / "near_native.npz", **subset(Path(sys.argv[1])))

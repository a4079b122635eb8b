"""How far bf16 and tf32 are from fp32, and each tier of the memory from one piece; writes docs/parity.md.

    python benchmarks/deviation.py                     # on the CPU
    python benchmarks/deviation.py --device cuda

On the golden cases, one pass. bf16 (and tf32, where the device has it) in one piece is compared with fp32 in one piece,
and every tier, in blocks of rows that divide nothing, with one piece of its own precision.
"""

import argparse
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import parity
from axfold.config import PRESETS
from axfold.memory.apply import apply
from axfold.memory.host import Bus
from axfold.memory.plan import CPU, EXTRA, PAIR, Setup, with_blocks
from axfold.model.alphafold import AlphaFold
from axfold.network import find_precision, load_network
from axfold.options import PRECISIONS
from axfold.output import confidence
from axfold.planning import sizes_of
from axfold.predictor import aligned_error
from axfold.weights.source import Source
from machine import commit, device_name, file_name, write

TIERS = {
    "resident, in blocks": Setup("resident"),
    "lean": Setup("lean", rest=True, host=EXTRA),
    "offload": Setup("offload", rest=True, host=PAIR | EXTRA),
}
ROWS = 7  # of a block


@torch.inference_mode()
def outputs(
    model: AlphaFold, case: str, sample: Mapping[str, torch.Tensor], setup: Setup, rows: int | None
) -> dict[str, np.ndarray]:
    """What a prediction ends with; `rows` None: in one piece."""
    config = PRESETS[parity.CASES[case]]
    bus = Bus(model.trunk.single.weight.device)
    apply(model, with_blocks(sizes_of(sample, config, model), setup, rows), bus)
    result = model([dict(sample)], None)
    found = {
        "positions": result.structure.atom37,
        "single": result.single,
        "pair": result.pair,
        "MSA's first row": result.msa_first_row,
        "distogram": model.heads.distogram(result.pair).float().softmax(dim=-1),
    }
    arrays = {name: x.cpu().double().numpy() for name, x in found.items()}
    logits = model.heads.confidence(result.structure.single).cpu().float().numpy()
    arrays["pLDDT"] = confidence.plddt(logits)
    if model.heads.aligned_error is not None:
        pae, _, ptm = aligned_error(model.heads.aligned_error, result.pair, config.model.heads)
        arrays |= {"PAE": pae.astype(np.float64), "pTM": np.array(ptm)}
    return arrays


def deviations(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> dict[str, float]:
    """||a - b|| / ||b|| of each output."""
    return {
        name: float(np.linalg.norm(found[name] - x) / max(np.linalg.norm(x), 1e-30))
        for name, x in wanted.items()
    }


def measure(case: str, device: torch.device) -> dict[str, dict[str, float]]:
    """The deviations of one case: what deviates from what -> output -> how far."""
    measured, reference = {}, {}
    with np.load(parity.PARITY / "cases" / case / "inputs.npz") as file:
        sample = {name: torch.as_tensor(file[name][0], device=device) for name in file.files}
    whole = Setup("resident") if device.type == "cuda" else CPU
    config = PRESETS[parity.CASES[case]]
    others = [name for name in PRECISIONS if name not in ("auto", "fp32")]
    for precision in ("fp32", *others):
        if find_precision(precision, device) != precision:
            continue
        model = load_network(config, Source(seed=0), device, precision)
        reference[precision] = outputs(model, case, sample, whole, None)
        for tier, setup in TIERS.items():
            found = outputs(model, case, sample, setup, ROWS)
            measured[f"{precision}, {tier}"] = deviations(found, reference[precision])
    from_fp32 = {
        f"{precision} from fp32": deviations(found, reference["fp32"])
        for precision, found in reference.items()
        if precision != "fp32"
    }
    return from_fp32 | measured


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cases", nargs="+", choices=list(parity.CASES), default=list(parity.CASES))
    parser.add_argument("--results", type=Path, default=parity.DEVIATIONS, help="folder to write to")
    parser.add_argument("--page", type=Path, default=parity.PAGE, help="page to write")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_float32_matmul_precision("highest")
    result: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "device": device_name(device),
        "torch": torch.__version__,
        "axfold": commit(),
        "cases": {case: measure(case, device) for case in args.cases},
    }
    write(args.results / file_name(result["date"], device), result)
    args.page.write_text("\n".join(parity.page(args.results)) + "\n", "utf-8")
    print("\n".join(parity.deviations(args.results)))


if __name__ == "__main__":
    main()

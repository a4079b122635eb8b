"""How far bf16 and tf32 are from fp32, and each tier of the memory from one piece; writes docs/parity.md.

    python benchmarks/deviation.py                     # on the CPU
    python benchmarks/deviation.py --device cuda                              # minutes
    python benchmarks/deviation.py --device cuda --precisions tf32 bf16 --tiers    # these from fp32, without tiers
    python benchmarks/deviation.py --device cuda --cases mono_small --precisions bf16 --tiers offload

On the golden cases, one pass. A precision in one piece is compared with fp32 in one piece (tf32 where the device has
it), and every tier, in blocks of rows that divide nothing, with one piece of its own precision. Kernels are built in
the first case; blocks of seven rows are many launches, so that a tier takes much longer than one piece. What is
measured is written each time, and the page has the newest number of each.
"""

import argparse
import copy
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from axfold.network import find_precision, in_precision, load_network
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
SHORT = {name.partition(",")[0]: name for name in TIERS}
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


def measure(
    case: str, device: torch.device, precisions: Sequence[str], tiers: Sequence[str]
) -> Iterator[tuple[str, dict[str, float]]]:
    """What of one case deviates from what, and how far each output does, as it is measured."""
    with np.load(parity.PARITY / "cases" / case / "inputs.npz") as file:
        sample = {name: torch.as_tensor(file[name][0], device=device) for name in file.files}
    whole = Setup("resident") if device.type == "cuda" else CPU
    config = PRESETS[parity.CASES[case]]
    loaded = load_network(config, Source(seed=0), torch.device("cpu"), "fp32")  # once: it takes seconds
    known = [name for name in ("fp32", *precisions) if find_precision(name, device) == name]
    models: dict[str, AlphaFold] = {}
    reference: dict[str, dict[str, np.ndarray]] = {}
    for precision in dict.fromkeys(known):
        with told():
            models[precision] = in_precision(copy.deepcopy(loaded), precision).to(device)
            reference[precision] = outputs(models[precision], case, sample, whole, None)
            if precision != "fp32":
                yield f"{precision} from fp32", deviations(reference[precision], reference["fp32"])
    for precision in reference:
        for tier in tiers if precision in precisions else ():
            with told():
                found = outputs(models[precision], case, sample, TIERS[tier], ROWS)
                yield f"{precision}, {tier}", deviations(found, reference[precision])


@contextmanager
def told() -> Iterator[None]:
    """What goes wrong is told, and the rest is measured all the same."""
    try:
        yield
    except Exception:  # the other columns stand without it
        traceback.print_exc()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [name for name in PRECISIONS if name != "auto"]
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cases", nargs="+", choices=list(parity.CASES), default=list(parity.CASES))
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=every,
        default=["fp32", "tf32", "bf16"],
        help="default: all but fp16",
    )
    parser.add_argument("--tiers", nargs="*", choices=list(SHORT), default=list(SHORT), help="may be none")
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
        "cases": {},
    }
    path = args.results / file_name(f"{datetime.now(UTC):%Y-%m-%d-%H%M%S}", device)
    start = time.perf_counter()
    for case in args.cases:
        for name, found in measure(case, device, args.precisions, [SHORT[tier] for tier in args.tiers]):
            result["cases"].setdefault(case, {})[name] = found
            write(path, result)
            numbers = ", ".join(f"{output} {x:.1e}" for output, x in found.items())
            print(f"{case}, {name} [{time.perf_counter() - start:.0f} s]: {numbers}", flush=True)
    args.page.write_text("\n".join(parity.page(args.results)) + "\n", "utf-8")


if __name__ == "__main__":
    main()

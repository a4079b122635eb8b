"""One protein, one model, one seed: features, passes of the network, confidences.

predictor = Predictor("model_1_ptm")
for sequence in sequences:
    prediction = predictor.predict(sequence)
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import date
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from axfold.config import Config, Heads
from axfold.data import inputs, pipelines
from axfold.data import templates as template_files
from axfold.data.features import FEATURES
from axfold.data.query import Query
from axfold.data.templates import TemplateFeatures
from axfold.errors import AxfoldError, InputError
from axfold.model.alphafold import AlphaFold, Features, Pass
from axfold.model.atoms import ca_distance_change
from axfold.options import DEFAULT_MODEL, PRECISIONS, configured, one_of
from axfold.output import confidence
from axfold.output.prediction import Prediction
from axfold.progress import Clock, Event, FeaturesMade, PassDone, Report
from axfold.weights import source
from axfold.weights.load import load

File = str | PathLike[str]

_LOGITS = 1 << 22  # of the aligned error that exist at once


def predict(
    sequence: str,
    *,
    model: str = DEFAULT_MODEL,
    params: File | None = None,
    msa: File | None = None,
    templates: Sequence[File] = (),
    max_template_date: date | None = None,
    recycles: int | None = None,
    tolerance: float | None = None,
    max_msa: str | tuple[int, int] | None = None,
    ensembles: int | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    name: str = "protein",
) -> Prediction:
    """The structure of one chain. For many proteins a `Predictor` loads its model once.

    sequence: one-letter codes; msa: an a3m or Stockholm file, or the folder of a search; templates: structure
    files, or an hhr and the folder of its mmCIF files. The other arguments are those of `Predictor` and
    `Predictor.predict`. Raises InputError and WeightsError, whose messages say what to mend.
    """
    query = inputs.from_sequence(
        name, sequence, msa=None if msa is None else Path(msa), templates=[Path(path) for path in templates]
    )
    configured(model, recycles=recycles, tolerance=tolerance, max_msa=max_msa, ensembles=ensembles)
    return Predictor(model, params=params, device=device, precision=precision).predict(
        query,
        max_template_date=max_template_date,
        recycles=recycles,
        tolerance=tolerance,
        max_msa=max_msa,
        ensembles=ensembles,
        seed=seed,
    )


class Predictor:
    """A model with its parameters on a device; predictions leave no trace in it.

    model: a name of `config.PRESETS`
    params: a parameter file, a folder with it, "synthetic" or "synthetic:SEED"; None: the cache
    device: "auto" (the first CUDA device, else the CPU), "cpu", "cuda" or "cuda:N"
    precision: of the trunk, "fp32", "bf16" or "auto", which is bf16 on CUDA devices that have it

    Raises InputError and WeightsError.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        params: File | None = None,
        device: str = "auto",
        precision: str = "auto",
    ):
        self.config = configured(model)
        self.source = source.find(model, None if params is None else str(params))
        self.device = find_device(device)
        self.dtype = find_dtype(precision, self.device)
        self.network = load_network(self.config, self.source, self.device, self.dtype)

    def predict(
        self,
        query: Query | str,
        *,
        seed: int = 0,
        recycles: int | None = None,
        tolerance: float | None = None,
        max_msa: str | tuple[int, int] | None = None,
        ensembles: int | None = None,
        templates: TemplateFeatures | None = None,
        max_template_date: date | None = None,
        keep_recycles: bool = False,
        keep_representations: bool = False,
        report: Report | None = None,
    ) -> Prediction:
        """The structure of `query`, which may be a sequence alone. The same seed gives the same bytes.

        recycles, tolerance, max_msa, ensembles: see `options.configured`
        templates: used instead of those that the query names, which otherwise are read here; what can't be used
        is a warning. max_template_date: only structures released until then
        keep_recycles, keep_representations: fill the Prediction's fields of that kind
        report: called as the prediction goes on

        Raises InputError, and AxfoldError where the memory does not suffice.
        """
        if isinstance(query, str):
            query = inputs.from_sequence("protein", query)
        config = configured(
            self.config.name, recycles=recycles, tolerance=tolerance, max_msa=max_msa, ensembles=ensembles
        )
        start = time.perf_counter()
        if templates is None and query.templates and config.data.templates:
            templates = _read_templates(query, config.data.templates, max_template_date)
        features = pipelines.monomer(query, config, seed, templates=templates)
        made = time.perf_counter()
        if report is not None:
            report(FeaturesMade(seconds=made - start))
        with _memory_errors(query, config, self.device):
            prediction = self._fold(
                query, config, features, seed, keep_recycles, keep_representations, report
            )
        return replace(prediction, feature_seconds=made - start, seconds=time.perf_counter() - made)

    def _fold(
        self,
        query: Query,
        config: Config,
        features: Mapping[str, np.ndarray],
        seed: int,
        keep_recycles: bool,
        keep_representations: bool,
        report: Report | None,
    ) -> Prediction:
        mask = torch.tensor(features["seq_mask"][0], device=self.device)
        changes: list[float] = []
        by_pass: list[tuple[np.ndarray, np.ndarray]] = []
        before: Tensor | None = None
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if report is not None:
                stack.enter_context(watched(self.network, config, features, report))
            for recycle, result in enumerate(
                passes(self.network, samples(features, config.ensembles, self.device))
            ):
                atoms = result.structure.atom37
                plddt = confidence.plddt(_array(self.network.heads.confidence(result.structure.single)))
                if before is not None:
                    changes.append(ca_distance_change(before, atoms, mask))
                before = atoms
                if keep_recycles:
                    by_pass.append((_array(atoms), plddt.astype(np.float32)))
                if report is not None:
                    report(
                        PassDone(
                            recycle=recycle,
                            plddt=float(plddt.mean()),
                            change=changes[-1] if changes else None,
                        )
                    )
                if changes and config.tolerance and changes[-1] <= config.tolerance:
                    break
            head = self.network.heads.aligned_error
            error = None if head is None else _aligned_error(head, result.pair, config.model.heads)
            kept = (
                {"single": _array(result.single), "pair": _array(result.pair)} if keep_representations else {}
            )
            return Prediction(
                name=query.name,
                sequence=query.sequence,
                model=config.name,
                seed=seed,
                aatype=features["aatype"][0],
                residue_index=features["residue_index"][0],
                atom_positions=_array(atoms),
                atom_mask=_array(result.structure.mask),
                plddt=plddt.astype(np.float32),
                predicted_aligned_error=error and error[0],
                max_predicted_aligned_error=error and error[1],
                ptm=error and error[2],
                change=tuple(changes),
                representations=kept,
                atom_positions_by_pass=tuple(positions for positions, _ in by_pass),
                plddt_by_pass=tuple(scores for _, scores in by_pass),
                parameters=str(self.source),
                meaningless=self.source.is_synthetic,
            )


def find_device(name: str) -> torch.device:
    """The device that "auto", "cpu", "cuda" or "cuda:N" names, tried. Raises InputError."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", name):
        raise InputError(f"--device {name}: choose auto, cpu, cuda or cuda:N.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if count else "cpu"
    device = torch.device(name)
    if device.type == "cpu":
        return device
    if not count:
        raise InputError(
            f"--device {name}: PyTorch {torch.__version__} finds no CUDA device. Use --device cpu, or run "
            "`axfold doctor`, which says what is missing."
        )
    device = torch.device("cuda", device.index or 0)
    if device.index >= count:
        known = "only cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise InputError(f"--device {name}: this machine has {known}.")
    try:
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"--device {name}: {torch.cuda.get_device_name(device)} can't be used ({reason}). Use --device cpu, or "
            "another one."
        ) from error
    return device


def find_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The trunk's type for "auto", "fp32" or "bf16". Raises InputError."""
    one_of("--precision", precision, PRECISIONS)
    if precision == "auto":
        has_it = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if has_it else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def load_network(
    config: Config, parameters: source.Source, device: torch.device, dtype: torch.dtype
) -> AlphaFold:
    """The network of `config` with its parameters, for inference. Raises WeightsError."""
    with torch.device("meta"):
        network = AlphaFold(config.model)
    load(network, config, parameters)
    return network.requires_grad_(False).eval().to_precision(dtype).to(device)


def samples(
    features: Mapping[str, np.ndarray], ensembles: int, device: torch.device
) -> Iterator[list[Features]]:
    """What each pass reads: `ensembles` samples from the first axis of `features`, on `device`."""
    read = [name for name, feature in FEATURES.items() if feature.read and name in features]
    total = len(features["aatype"])
    for start in range(0, total, ensembles):
        yield [
            {name: torch.tensor(features[name][i], device=device) for name in read}
            for i in range(start, start + ensembles)
        ]


def passes(network: AlphaFold, samples_of_passes: Iterable[Sequence[Features]]) -> Iterator[Pass]:
    """The passes of Algorithm 2, each of which recycles the one before.

    A pass overwrites the pair of the one before: use it up before the next is asked for. float32 products are exact
    ones, without TF32.
    """
    recycled = None
    for several in samples_of_passes:
        with torch.inference_mode(), _without_tf32():
            result = network(several, recycled)
            recycled = result.recycled()
        yield result


@contextmanager
def watched(
    network: AlphaFold, config: Config, features: Mapping[str, np.ndarray], report: Callable[[Event], None]
) -> Iterator[None]:
    """Report every block of the network that ends, by hooks that are gone afterwards.

    On a CUDA device a block is reported once the next has been queued, so that nothing waits.
    """
    trunk, sizes = network.trunk, config.model
    stages: dict[str, tuple[int, Iterable[nn.Module]]] = {}
    if trunk.template_pair is not None and features["template_aatype"].shape[1]:
        stages["templates"] = config.ensembles, [trunk.template_pair]
    stages["extra MSA"] = config.ensembles * sizes.extra_stack.blocks, trunk.extra_stack.blocks
    stages["Evoformer"] = config.ensembles * sizes.evoformer.blocks, trunk.evoformer.blocks
    stages["structure"] = 1, [network.structure]
    number = len(features["aatype"]) // config.ensembles
    clock = Clock({stage: blocks for stage, (blocks, _) in stages.items()}, number)
    queued: list[torch.cuda.Event] = []

    def ended(stage: str) -> None:
        if next(network.parameters()).is_cuda:
            queued.append(torch.cuda.Event())
            queued[-1].record()
            if len(queued) > 1:
                queued.pop(0).synchronize()
        report(clock.step(stage))

    with ExitStack() as stack:
        for stage, (_, modules) in stages.items():
            for module in modules:
                hook = module.register_forward_hook(lambda *_, stage=stage: ended(stage))
                stack.callback(hook.remove)
        yield


@contextmanager
def _without_tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _memory_errors(query: Query, config: Config, device: torch.device) -> Iterator[None]:
    """What PyTorch says when memory runs out, in a sentence."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        full = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(
            error
        )
        if not full:
            raise
        data = config.data
        raise AxfoldError(
            f"{query.name}: {len(query.sequence)} residues do not fit into the memory of {device} with --max-msa "
            f"{data.msa_clusters}:{data.extra_msa}. Use fewer rows, such as --max-msa 64:128, --precision bf16, or "
            "a device with more memory."
        ) from error


def _read_templates(query: Query, limit: int, max_date: date | None) -> TemplateFeatures:
    found, reports = template_files.read(query.sequence, query.templates, limit=limit, max_date=max_date)
    for report in reports:
        if not report.used:
            warnings.warn(f"template {report.name} is not used: {report.reason}", stacklevel=3)
    return found


def _aligned_error(head: nn.Module, pair: Tensor, sizes: Heads) -> tuple[np.ndarray, float, float]:
    """PAE (N, N), the largest value it can have, Å, and pTM; the logits exist for a few rows at a time."""
    edges = confidence.error_edges(sizes.aligned_error_bins, sizes.aligned_error_max)
    n_res = len(pair)
    errors, best = np.empty((n_res, n_res), np.float32), 0.0
    rows = max(_LOGITS // (n_res * sizes.aligned_error_bins), 1)
    for start in range(0, n_res, rows):
        logits = _array(head(pair[start : start + rows]))
        errors[start : start + rows] = confidence.aligned_error(logits, edges)
        best = max(best, float(confidence.tm_by_alignment(logits, edges, n_res).max()))
    return errors, float(confidence.error_centers(edges)[-1]), best


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()

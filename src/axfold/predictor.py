"""One protein, one model, one seed: features, passes of the network, confidences.

predictor = Predictor("model_1_ptm")
for sequence in sequences:
    prediction = predictor.predict(sequence)
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import date
from itertools import chain, islice
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from axfold import network, planning
from axfold.ahead import Ahead
from axfold.config import Config, Heads
from axfold.data import inputs, pipelines
from axfold.data import templates as template_files
from axfold.data.features import Features
from axfold.data.query import Query
from axfold.data.templates import TemplateFeatures
from axfold.errors import AxfoldError
from axfold.forecast import line
from axfold.graphs import Graphs
from axfold.memory.costs import Sizes
from axfold.memory.host import Bus
from axfold.model.alphafold import Features as OnDevice
from axfold.model.alphafold import Pass
from axfold.model.atoms import ca_distance_change
from axfold.model.heads import AlignedError
from axfold.ops.warmup import Warmup
from axfold.options import DEFAULT_MODEL, configured
from axfold.output import confidence
from axfold.output.prediction import Prediction
from axfold.progress import FeaturesMade, PassDone, Planned, Report
from axfold.weights import registry, source

File = str | PathLike[str]


def predict(
    sequence: str,
    *,
    model: str | None = None,
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
    memory_budget: str | None = None,
    name: str = "protein",
    keep_recycles: bool = False,
    keep_representations: bool = False,
    report: Report | None = None,
) -> Prediction:
    """The structure of one chain. For many proteins a `Predictor` loads its model once.

    sequence: one-letter codes; msa: an a3m or Stockholm file, or the folder of a search; templates: structure
    files, or an hhr and the folder of its mmCIF files. The other arguments are those of `Predictor` and
    `Predictor.predict`. Raises InputError and WeightsError, whose messages say what to mend.
    """
    model = model or _default_model(params)
    query = inputs.from_sequence(
        name, sequence, msa=None if msa is None else Path(msa), templates=[Path(path) for path in templates]
    )
    configured(model, recycles=recycles, tolerance=tolerance, max_msa=max_msa, ensembles=ensembles)
    predictor = Predictor(
        model, params=params, device=device, precision=precision, memory_budget=memory_budget, first=query
    )
    return predictor.predict(
        query,
        max_template_date=max_template_date,
        recycles=recycles,
        tolerance=tolerance,
        max_msa=max_msa,
        ensembles=ensembles,
        seed=seed,
        keep_recycles=keep_recycles,
        keep_representations=keep_representations,
        report=report,
    )


def _default_model(params: File | None) -> str:
    stand_in = registry.stand_in() if params is None else None
    if stand_in:
        warnings.warn(registry.SMALL, stacklevel=3)
    return stand_in or DEFAULT_MODEL


class Predictor:
    """A model with its parameters on a device; predictions leave no trace in it.

    model: a name of `config.PRESETS`; None: model_1_ptm or, where no parameters of AlphaFold's are installed, the small
        model that comes with axfold, with a warning
    params: a parameter file, a folder with it, "synthetic" or "synthetic:SEED"; None: the cache
    device: "auto" (the first CUDA device, else the CPU), "cpu", "cuda" or "cuda:N"
    precision: of the trunk, "fp32", "tf32" (fp32 whose products may be TF32's, where the device has it), "bf16" or
        "auto", which is bf16 on CUDA devices that have it
    memory_budget: how much of the device's memory to use at most ("8GB"); None: what is free
    graphs: of the device, shared by predictors that run one after the other; None: its own
    first: the protein that comes first, whose kernels are made ready while the parameters are read

    Raises InputError and WeightsError.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        params: File | None = None,
        device: str = "auto",
        precision: str = "auto",
        memory_budget: str | None = None,
        graphs: Graphs | None = None,
        first: Query | None = None,
    ):
        model = model or _default_model(params)
        self.config = configured(model)
        self.source = source.find(model, None if params is None else str(params))
        self.device = network.find_device(device)
        self.precision = network.find_precision(precision, self.device)
        self.memory_budget = memory_budget
        planning.find_memory(self.device, memory_budget)  # raises what is wrong with the budget
        self.bus = Bus(self.device)
        self.graphs = graphs or Graphs(self.device)
        self._sizes: Sizes | None = None  # of the last protein
        self._warmup: Warmup | None = None
        if first is not None:
            self._warmup = network.warmup(
                self.config,
                self.device,
                self.precision,
                residues=len(first.sequence),
                sequences=sum(len(alignment.sequences) for alignment in first.alignments),
                templates=len(first.templates) > 0,
            )
        self.network = network.load_network(self.config, self.source, self.device, self.precision)

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
        samples: Iterator[Features] | None = None,
        keep_recycles: bool = False,
        keep_representations: bool = False,
        report: Report | None = None,
    ) -> Prediction:
        """The structure of `query`, which may be a sequence alone. The same seed gives the same bytes.

        recycles, tolerance, max_msa, ensembles: see `options.configured`
        templates: used instead of those that the query names, which otherwise are read here; one that can't be
        used is a warning. max_template_date: only structures released until then
        samples: the features of this query with these settings, where they are made elsewhere; then `feature_seconds`
        of the prediction is the time for which it waited for them
        keep_recycles, keep_representations: fill the Prediction's fields of that kind
        report: called as the prediction goes on

        Raises InputError, and DoesNotFit or AxfoldError where the memory does not suffice.
        """
        if isinstance(query, str):
            query = inputs.from_sequence("protein", query)
        config = configured(
            self.config.name, recycles=recycles, tolerance=tolerance, max_msa=max_msa, ensembles=ensembles
        )
        if samples is None and templates is None and query.templates and config.data.templates:
            templates = _read_templates(query, config.data.templates, max_template_date)
        made = samples or pipelines.monomer_samples(query, config, seed, templates=templates)
        timed = _Timed(made)
        start = time.perf_counter()
        with _memory_errors(query, config, self.device):
            try:
                prediction = self._fold(
                    query, config, seed, timed, keep_recycles, keep_representations, report or _nobody
                )
            finally:
                self.graphs.remove(self.network)
        seconds = time.perf_counter() - start - timed.seconds
        return replace(prediction, feature_seconds=timed.seconds, seconds=seconds)

    @torch.inference_mode()
    def _fold(
        self,
        query: Query,
        config: Config,
        seed: int,
        samples: _Timed,
        keep_recycles: bool,
        keep_representations: bool,
        report: Report,
    ) -> Prediction:
        first = next(samples)
        report(FeaturesMade(seconds=samples.seconds))

        def tell(text: str) -> None:
            report(Planned(text=text))

        if self._warmup is not None:
            self._warmup.wait()
            self._warmup = None
        memory = planning.find_memory(self.device, self.memory_budget)
        sizes = self._sizes = planning.sizes_of(first, config, self.network, self._sizes)
        ladder = planning.Ladder(self.network, sizes, memory, self.bus, tell, self.graphs)
        tell(line(ladder.plan, memory.device_bytes))
        mask = torch.tensor(first["seq_mask"], device=self.device)
        changes: list[float] = []
        by_pass: list[tuple[np.ndarray, np.ndarray]] = []
        before: Tensor | None = None
        result: Pass | None = None
        inputs_of_passes = self._inputs(first, samples, config, ahead=ladder.has_graphs())
        with (
            closing(inputs_of_passes),
            network.watched(
                self.network,
                config,
                passes=config.recycles + 1,
                templates=len(first.get("template_aatype", ())) > 0,
                report=None if report is _nobody else report,
            ),
        ):
            for recycle, result in enumerate(
                network.passes(self.network, inputs_of_passes, ladder.leaner, spare=ladder.has_graphs)
            ):
                atoms = result.structure.atom37
                logits = _array(self.network.heads.confidence(result.structure.single))
                plddt = confidence.plddt(logits).astype(np.float32)
                if before is not None:
                    changes.append(ca_distance_change(before, atoms, mask))
                before = atoms
                if keep_recycles:
                    by_pass.append((_array(atoms), plddt))
                change = changes[-1] if changes else None
                report(PassDone(recycle=recycle, plddt=float(plddt.mean()), change=change))
                settled = change is not None and config.tolerance > 0 and change <= config.tolerance
                if settled or recycle == config.recycles:
                    break
                result = None  # the next pass needs its memory
        assert result is not None  # there is a first pass
        pair = self.network.rows.whole(result.pair) if keep_representations else None
        representations = {} if pair is None else {"single": result.single, "pair": pair}
        head = self.network.heads.aligned_error
        error = None if head is None else aligned_error(head, result.pair, config.model.heads)
        return Prediction(
            name=query.name,
            sequence=query.sequence,
            model=config.name,
            seed=seed,
            aatype=first["aatype"],
            residue_index=first["residue_index"],
            atom_positions=_array(atoms),
            atom_mask=_array(result.structure.mask),
            plddt=plddt,
            predicted_aligned_error=error and error[0],
            max_predicted_aligned_error=error and error[1],
            ptm=error and error[2],
            change=tuple(changes),
            # copies: the host memory of a pair is used again by the next protein
            representations={name: _array(tensor).copy() for name, tensor in representations.items()},
            atom_positions_by_pass=tuple(positions for positions, _ in by_pass),
            plddt_by_pass=tuple(scores for _, scores in by_pass),
            parameters=str(self.source),
            meaningless=self.source.is_synthetic,
        )

    def _inputs(
        self, first: Features, samples: _Timed, config: Config, *, ahead: bool
    ) -> Generator[list[OnDevice]] | Ahead[list[OnDevice]]:
        """What the passes read. ahead: that of the next pass is made ready while one runs, which is not timed."""
        if not ahead:
            return network.on_device(chain([first], samples), config.ensembles, self.device)
        needed = islice(chain([first], samples.untimed), config.ensembles * (config.recycles + 1))
        return Ahead(lambda: network.on_device(needed, config.ensembles, self.device, pinned=True), depth=1)


class _Timed(Iterator[Features]):
    """Samples of the features, and the seconds that waiting for them has taken so far."""

    def __init__(self, samples: Iterator[Features]):
        self.untimed = self._samples = samples
        self.seconds = 0.0

    def __next__(self) -> Features:
        start = time.perf_counter()
        sample = next(self._samples)
        self.seconds += time.perf_counter() - start
        return sample


def _nobody(event: object) -> None:
    """Reports to nobody."""


@contextmanager
def _memory_errors(query: Query, config: Config, device: torch.device) -> Iterator[None]:
    """What PyTorch and NumPy say when memory runs out, in a sentence."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        full = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(
            error
        )
        if not full:
            raise
        rows = f"{config.data.msa_clusters}:{config.data.extra_msa}"
        fewer = "" if config.data.msa_clusters <= 64 else "fewer rows, as in --max-msa 64:128, or "
        raise AxfoldError(
            f"{query.name}: {len(query.sequence)} residues with --max-msa {rows} do not fit into the memory of "
            f"{device}. Use {fewer}a device with more memory."
        ) from error


def _read_templates(query: Query, limit: int, max_date: date | None) -> TemplateFeatures:
    found, reports = template_files.read(query.sequence, query.templates, limit=limit, max_date=max_date)
    for report in reports:
        if not report.used:
            warnings.warn(f"template {report.name} is not used: {report.reason}", stacklevel=3)
    return found


def aligned_error(head: AlignedError, pair: Tensor, sizes: Heads) -> tuple[np.ndarray, float, float]:
    """PAE (N, N), the largest value it can have, Å, and pTM. The logits exist for a few rows at a time."""
    edges = confidence.error_edges(sizes.aligned_error_bins, sizes.aligned_error_max)
    device, centers = head.project.weight.device, confidence.error_centers(edges)
    errors, scores = head.expected(
        pair,
        torch.tensor(centers, dtype=torch.float32, device=device),
        torch.tensor(confidence.tm_terms(edges, len(pair)), dtype=torch.float32, device=device),
    )
    return errors.numpy(), float(centers[-1]), float(scores.max())


def _array(tensor: Tensor) -> np.ndarray:
    """float32, widened on the host: the device may have no room for that."""
    return tensor.cpu().float().numpy()

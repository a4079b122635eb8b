"""Which file of a protein's results has which name, in the layouts of ColabFold and of AlphaFold.

    results = LAYOUTS["colabfold"](out, job, query, settings, requests)  # looks, and says what is wrong
    if not results.finished:
        results.start()
        for model, seed in results.missing:
            results.write(predict(model, seed))
        results.finish()

Both layouts write a ModelCIF file beside each PDB file; a structure that the PDB format can't hold has the ModelCIF
file alone. Neither writes pickles: where AlphaFold leaves `result_*.pkl`, its layout here has `result_*.npz`, if
representations were asked for.
"""

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from axfold import __version__
from axfold.output import alignment, files, records, scores
from axfold.output.prediction import Prediction
from axfold.output.records import Result
from axfold.output.results import Content, Results, structures

log = logging.getLogger(__name__)

_CITATION = """\
@article{Jumper2021,
  author = {Jumper, John and Evans, Richard and Pritzel, Alexander and Green, Tim and Figurnov, Michael and others},
  title = {Highly accurate protein structure prediction with {AlphaFold}},
  journal = {Nature},
  volume = {596},
  number = {7873},
  pages = {583--589},
  year = {2021},
  doi = {10.1038/s41586-021-03819-2},
}
"""


class ColabFold(Results):
    """ColabFold's layout: all proteins in one folder, the rank in the file names."""

    def tag(self, model: str, seed: int) -> str:
        """`alphafold2_ptm_model_3_seed_000` of model_3_ptm; ColabFold names the kind of model first."""
        number, _, kind = model.removeprefix("model_").partition("_")
        return f"alphafold2{kind and f'_{kind}'}_model_{number}_seed_{seed:03d}"

    def _folder(self, out: Path) -> Path:
        return out

    def _records(self) -> tuple[Path, Path]:
        return self.folder / f"{self.job}.done.txt", self.folder / f"{self.job}.progress.json"

    def _path(self, kind: str, tag: str, extension: str) -> Path:
        return self.folder / f"{self.job}_{kind}_{tag}.{extension}"

    def _ranked(self, kind: str, rank: int, tag: str, extension: str) -> Path:
        return self._path(kind, f"rank_{rank:03d}_{tag}", extension)

    def _find(self, kind: str, tag: str, extension: str) -> Path | None:
        candidates = (self._ranked(kind, rank, tag, extension) for rank in range(1, self._ranks + 1))
        return next((path for path in (self._path(kind, tag, extension), *candidates) if path.exists()), None)

    def _owned(self) -> re.Pattern[str]:
        job = re.escape(self.job)
        return re.compile(
            rf"{job}_(unrelaxed|relaxed|scores|single_repr|pair_repr)_(rank_\d+_)?alphafold2\w*_seed_\d+"
            r"\.(pdb|cif|json|npy|r\d+\.pdb)"
            rf"|{job}_(plddt|pae|coverage)\.png|{job}_predicted_aligned_error_v1\.json"
        )

    def _foreign(self) -> Iterator[Path]:
        for model, seed in self.requests:
            yield self._path("unrelaxed", self.tag(model, seed), "pdb")
            yield self._ranked("unrelaxed", 1, self.tag(model, seed), "pdb")

    def _begin(self) -> None:
        files.write_json(
            self.folder / "config.json", {"axfold": __version__, "settings": self._record.settings}
        )
        files.write_text(self.folder / "cite.bibtex", _CITATION)
        self._write_alignment(self.folder / f"{self.job}.a3m")

    def _write_alignment(self, path: Path) -> None:
        """Write the alignment, unless a file of the user's has its name."""
        if path.exists() and records.digest(files.read(path)) == self._record.a3m:
            files.remove(path)
        theirs = path.exists()
        if theirs:
            log.info("%s was there before and stays as it is", path)
        text = alignment.a3m(self.query)
        self._record = replace(self._record, a3m=None if theirs else records.digest(text.encode()))
        self._record.write(self._progress)  # before the file: one that is found later is known to be ours
        if not theirs:
            files.write_text(path, text)

    def _contents(self, prediction: Prediction) -> Iterator[tuple[str, str, Content]]:
        yield from structures(prediction)
        yield "scores", "json", scores.colabfold_scores(prediction)
        for name, array in prediction.representations.items():
            yield f"{name}_repr", "npy", array

    def _rank(self, features_seconds: float) -> None:
        for rank, result in enumerate(self.results, start=1):
            for kind, extension in result.files:
                source = self._find(kind, result.tag, extension)
                target = self._ranked(kind, rank, result.tag, extension)
                if source is not None and source != target:
                    files.rename(source, target)
        best = self.results[0]
        content, pae = self._scores(best)
        if pae is not None:
            text = scores.colabfold_pae(pae, content["max_pae"], meaningless=best.meaningless)
            files.write_text(self.folder / f"{self.job}_predicted_aligned_error_v1.json", text)

    def _scores(self, result: Result) -> tuple[dict, np.ndarray | None]:
        """But for the aligned error, and that."""
        path = self._find("scores", result.tag, "json")
        assert path is not None  # looked for when the results were opened, or just written
        return scores.read(files.read(path).decode(), "pae")

    def _confidences(self, result: Result) -> tuple[np.ndarray, np.ndarray | None]:
        content, pae = self._scores(result)
        return np.array(content["plddt"]), pae

    def _plot_path(self, plot: str) -> Path:
        return self.folder / f"{self.job}_{plot}.png"


class AlphaFold(Results):
    """AlphaFold's layout: a folder a protein, the best models copied to `ranked_0` and so on.

    `config.json` and the plots are axfold's own; a search's folder `msas` is left alone.
    """

    def tag(self, model: str, seed: int) -> str:
        """`model_3_ptm_pred_0`: the number of the seed among those of this run."""
        seeds = dict.fromkeys(seed for _, seed in self.requests)
        return f"{model}_pred_{list(seeds).index(seed)}"

    def _folder(self, out: Path) -> Path:
        return out / self.job

    def _records(self) -> tuple[Path, Path]:
        return self.folder / "config.json", self.folder / "progress.json"

    def _path(self, kind: str, tag: str, extension: str) -> Path:
        return self.folder / f"{kind}_{tag}.{extension}"

    def _find(self, kind: str, tag: str, extension: str) -> Path | None:
        path = self._path(kind, tag, extension)
        return path if path.exists() else None

    def _owned(self) -> re.Pattern[str]:
        return re.compile(
            r"(unrelaxed|relaxed|confidence|pae|result)_\w+_pred_\d+\.(pdb|cif|json|npz|r\d+\.pdb)"
            r"|ranked_\d+\.(pdb|cif)|(ranking_debug|timings)\.json|(plddt|pae|coverage)\.png"
        )

    def _foreign(self) -> Iterator[Path]:
        yield self.folder / "ranking_debug.json"
        for model, seed in self.requests:
            yield self._path("unrelaxed", self.tag(model, seed), "pdb")

    def _begin(self) -> None:
        """AlphaFold's layout has nothing before the first prediction."""

    def _contents(self, prediction: Prediction) -> Iterator[tuple[str, str, Content]]:
        yield from structures(prediction)
        yield "confidence", "json", scores.alphafold_confidence(prediction)
        if prediction.predicted_aligned_error is not None:
            yield "pae", "json", scores.alphafold_pae(prediction)
        if prediction.representations:
            yield "result", "npz", _arrays(prediction)

    def _rank(self, features_seconds: float) -> None:
        for rank, result in enumerate(self.results):
            for extension in ("pdb", "cif"):
                source = self._find("unrelaxed", result.tag, extension)
                if source is not None:
                    files.write(self.folder / f"ranked_{rank}.{extension}", files.read(source))
        place = {request: number for number, request in enumerate(self.requests)}
        by_run = sorted(self.results, key=lambda result: place.get((result.model, result.seed), len(place)))
        ranking = scores.alphafold_ranking(
            {result.tag: result.ranking_confidence for result in by_run},
            complexes=any(result.iptm is not None for result in by_run),
            meaningless=any(result.meaningless for result in by_run),
        )
        files.write_text(self.folder / "ranking_debug.json", ranking)
        timings = {"features": features_seconds}
        for result in by_run:
            timings[f"process_features_{result.tag}"] = result.feature_seconds
            timings[f"predict_and_compile_{result.tag}"] = result.seconds
        files.write_json(self.folder / "timings.json", timings)

    def _confidences(self, result: Result) -> tuple[np.ndarray, np.ndarray | None]:
        plddt = json.loads(files.read(self._path("confidence", result.tag, "json")))["confidenceScore"]
        path = self._find("pae", result.tag, "json")
        text = files.read(path).decode() if path else "{}"
        return np.array(plddt), scores.read(text, "predicted_aligned_error")[1]

    def _plot_path(self, plot: str) -> Path:
        return self.folder / f"{plot}.png"


LAYOUTS: dict[str, type[Results]] = {"colabfold": ColabFold, "alphafold": AlphaFold}
"""The layouts by their names on the command line."""


def _arrays(prediction: Prediction) -> dict[str, np.ndarray]:
    """What AlphaFold's result file holds, as far as it is known here."""
    optional = {
        "predicted_aligned_error": prediction.predicted_aligned_error,
        "max_predicted_aligned_error": prediction.max_predicted_aligned_error,
        "ptm": prediction.ptm,
        "iptm": prediction.iptm,
    }
    return {
        **prediction.representations,
        "plddt": prediction.plddt,
        "ranking_confidence": np.array(prediction.ranking_confidence),
        "final_atom_positions": prediction.atom_positions,
        "final_atom_mask": prediction.atom_mask,
        **{name: np.array(value) for name, value in optional.items() if value is not None},
    }

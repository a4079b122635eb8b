"""Plots of a protein's predictions as PNG: pLDDT, predicted aligned error, coverage of the alignment.

Drawn through Matplotlib's objects, without pyplot and its global state; Matplotlib is imported by the first plot.
Colours are told apart by colour-blind readers too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BANDS = (
    ("very high", 90, 100, "#0053D6"),
    ("confident", 70, 90, "#65CBF3"),
    ("low", 50, 70, "#FFDB13"),
    ("very low", 0, 50, "#FF7D45"),
)
"""The AlphaFold database's classes of pLDDT: name, bounds, colour."""

_LINES = ("#000000", "#CC79A7", "#009E73", "#8C510A", "#5E3C99")  # after Okabe and Ito; dark on the bands
BEST = 5
"""As many predictions are drawn."""

_DPI = 150
_MEANINGLESS = "MEANINGLESS: synthetic parameters"


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """What is drawn of one prediction: its label, pLDDT (N,) and, of models with a PAE head, the PAE (N, N), Å."""

    label: str
    plddt: np.ndarray
    pae: np.ndarray | None = None


def plddt(name: str, curves: Sequence[Curve], *, meaningless: bool = False) -> bytes:
    """pLDDT along the protein, one line a prediction, the best ones, over the database's bands."""
    figure, axes = _figure(8, 4.2)
    n_res = len(curves[0].plddt)
    for label, low, high, colour in BANDS:
        axes.axhspan(low, high, color=colour, alpha=0.22, linewidth=0)
        axes.text(
            1.01,
            (low + high) / 2,
            label,
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=8,
            color="0.25",
        )
    numbers = np.arange(1, n_res + 1)
    drawn = list(zip(curves, _LINES, strict=False))
    for place, (curve, colour) in reversed(list(enumerate(drawn))):  # the best one comes on top
        axes.plot(
            numbers,
            curve.plddt,
            color=colour,
            linewidth=1.8 if place == 0 else 1.0,
            marker="o" if n_res == 1 else None,
            label=f"{curve.label}, mean {curve.plddt.mean():.1f}",
        )
    axes.set(xlabel="residue", ylabel="pLDDT (0 to 100)", xlim=_limits(n_res), ylim=(0, 100))
    axes.set_title(_title(f"{name}: predicted lDDT", meaningless))
    _whole_numbers(axes)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return _png(figure)


def pae(name: str, curves: Sequence[Curve], *, maximum: float = 30.0, meaningless: bool = False) -> bytes:
    """Predicted aligned error of the best predictions side by side; every curve needs its PAE.

    maximum: Å at the end of the colour scale; ColabFold and the database's pages end it near 30.
    """
    drawn = curves[:BEST]
    figure = _canvas(1.8 + 2.5 * len(drawn), 3.4, "compressed")
    axes = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
    n_res = len(drawn[0].plddt)
    for panel, curve in zip(axes, drawn, strict=True):
        assert curve.pae is not None
        image = panel.imshow(
            curve.pae,
            cmap="Greens_r",
            vmin=0,
            vmax=maximum,
            extent=(0.5, n_res + 0.5, n_res + 0.5, 0.5),
            interpolation="nearest" if n_res < 500 else "antialiased",
        )
        panel.set_title(curve.label, fontsize=8)
        panel.set_xlabel("scored residue")
        _whole_numbers(panel)
    axes[0].set_ylabel("aligned residue")
    bar = figure.colorbar(image, ax=list(axes), aspect=25)
    bar.set_label("expected position error (Å)")
    figure.suptitle(_title(f"{name}: predicted aligned error", meaningless))
    return _png(figure)


def coverage(name: str, rows: Sequence[str]) -> bytes:
    """The alignment's rows, ordered and coloured by their identity with the query, and how many cover each residue.

    rows: aligned sequences of one length, the query first. Identity counts a row's residues, not its gaps.
    """
    letters = np.frombuffer("".join(rows).encode("ascii"), np.uint8).reshape(len(rows), -1)
    covered = letters != ord("-")
    same = (letters == letters[0]).sum(axis=1, where=covered) / np.maximum(covered.sum(axis=1), 1)
    shown = _thinned(np.argsort(-same, kind="stable"))
    n_seq, n_res = letters.shape
    figure, axes = _figure(8, 4.5)
    image = axes.imshow(
        np.where(covered[shown], same[shown, None], np.nan),
        cmap="viridis",
        vmin=0,
        vmax=1,
        origin="lower",
        aspect="auto",
        extent=(0.5, n_res + 0.5, 0, n_seq),
        interpolation="nearest",
    )
    depth = covered.sum(axis=0)
    axes.stairs(
        depth, np.arange(n_res + 1) + 0.5, baseline=None, color="black", label="rows that cover the residue"
    )
    axes.set(xlabel="residue", ylabel="sequences", xlim=_limits(n_res), ylim=(0, n_seq * 1.03))
    axes.set_title(f"{name}: coverage of the alignment ({n_seq:,} sequence{'s' * (n_seq > 1)})")
    _whole_numbers(axes)
    figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    figure.colorbar(image, ax=axes, label="identity with the query")
    return _png(figure)


def training(
    name: str, loss: Sequence[tuple[float, float]], validation: Sequence[tuple[float, dict[str, float]]]
) -> bytes:
    """The curve of a training: its loss, smoothed, and the scores of validations, from 0 to 1, over the samples seen.

    loss: (samples, loss) of every step; validation: (samples, scores by name)
    """
    figure, axes = _figure(8, 4.2)
    if loss:
        samples, values = (np.array(column) for column in zip(*loss, strict=True))
        width = max(len(values) // 200, 1)
        kept = len(values) // width * width
        means = values[len(values) - kept :].reshape(-1, width).mean(axis=1)
        axes.plot(
            samples[len(samples) - kept :].reshape(-1, width)[:, -1], means, color=_LINES[0], label="loss"
        )
    axes.set(xlabel="samples", ylabel="loss")
    axes.set_title(name)
    scores = axes.twinx()
    scores.set(ylabel="validation (0 to 1)", ylim=(0, 1))
    for key, colour in zip(validation[0][1] if validation else (), _LINES[1:], strict=False):
        scores.plot(
            [at for at, _ in validation],
            [values[key] for _, values in validation],
            color=colour,
            marker="o",
            markersize=3,
            label=key,
        )
    handles = [handle for panel in (axes, scores) for handle in panel.get_legend_handles_labels()[0]]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return _png(figure)


def _thinned(order: np.ndarray, rows: int = 4000) -> np.ndarray:
    """At most `rows` of the order, evenly taken: more than a screen has, and memory stays small."""
    if len(order) <= rows:
        return order
    return order[np.linspace(0, len(order) - 1, rows).round().astype(int)]


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure, in inches, with one panel."""
    figure = _canvas(width, height, "constrained")
    return figure, figure.subplots()


def _canvas(width: float, height: float, layout: Literal["constrained", "compressed"]) -> Figure:
    """An empty figure, in inches, that is drawn by Agg."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _title(text: str, meaningless: bool) -> str:
    return f"{text}\n{_MEANINGLESS}" if meaningless else text


def _limits(n_res: int) -> tuple[float, float]:
    return 0.5, n_res + 0.5


def _whole_numbers(axes: Axes) -> None:
    """Residues and sequences are counted: no ticks between them."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))


def _png(figure: Figure) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()

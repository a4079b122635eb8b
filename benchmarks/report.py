"""Writes docs/benchmarks.md and its pictures from benchmarks/results: the newest result of each device and setting.

Folders in it: `cold` is benchmarks/cold.py's, `ops` that of benchmarks/ops.py; `earlier` has numbers of other packages
that were measured without axfold beside them.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import floors
from throughput_page import many_proteins, small_proteins
from training_page import training

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"

HEAD = """# Benchmarks

Made by `python benchmarks/report.py` from the files in `benchmarks/results`; no number here is typed by hand.

A pass is Algorithm 2 once, from features to atoms with every head, without recycled inputs; a prediction with three
recycles is four of them. Sequence and alignment are random, and the weights are those that a model starts with.
Packages that stand side by side in a device's section ran one after the other on the same features, each other package
in a process of its own; the fastest pass of each counts.
"""
DEPTH = 5120
"""Extra sequences of the comparison on GPUs: those of AlphaFold's models without templates that ColabFold runs."""


def newest(folder: Path) -> Iterator[dict[str, Any]]:
    """The last result of each device and setting, devices in alphabetical order."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):  # names begin with the date
        result = json.loads(path.read_text("utf-8"))
        found[result["device"], json.dumps(result.get("settings", result.get("precision")))] = result
    return (found[key] for key in sorted(found))


def table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "| --- |" + " ---: |" * (len(head) - 1)
    yield from ("| " + " | ".join(row) + " |" for row in rows)


def title(row: dict[str, Any]) -> str:
    return f"{row['engine']}, {row['setting']}" if row["setting"] else row["engine"]


def grid(rows: Sequence[dict[str, Any]], field: str, form: str = ".2f", unit: float = 1.0) -> Iterator[str]:
    """A table of one number of each row, by residues and engine; engines without any are left out.

    Of two rows for one place the first counts. Extrapolated seconds are in brackets.
    """
    cells: dict[tuple[int, str], str] = {}
    for row in rows:
        if row.get(field) is not None:
            number = f"{row[field] / unit:{form}}"
            guessed = field == "seconds" and "extrapolated" in row.get("how", "")
            cells.setdefault((row["residues"], title(row)), f"({number})" if guessed else number)
    columns = {column for _, column in cells}
    names = [name for name in dict.fromkeys(map(title, rows)) if name in columns]
    lengths = sorted({length for length, _ in cells})
    yield from table(
        ["residues", *names], [[str(n), *(cells.get((n, name), "") for name in names)] for n in lengths]
    )


def about(result: dict[str, Any]) -> str:
    """Date, versions and alignment depth."""
    settings = result["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"{result['date']}; {versions}. {settings['clusters']} clusters, {settings['extra']:,} extra sequences, "
        f"{settings['blocks']} Evoformer blocks"
    )


def failures(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """What could not be measured, and why."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if "failed" in row:
            reasons.setdefault((title(row), row["failed"]), []).append(str(row["residues"]))
    if reasons:
        yield "\nNot measured:\n"
    for (name, reason), lengths in reasons.items():
        yield f"- {name} at {', '.join(lengths)}: {reason}"


def section(result: dict[str, Any]) -> Iterator[str]:
    """A device's passes."""
    settings, measured = result["settings"], result["measured"]
    yield f"\n## {result['device']}: {settings['model']}, {settings['precision']}\n"
    yield f"{about(result)}; seconds a pass, the best of {settings['repeats']}.\n"
    if result["note"]:
        yield f"{result['note']}\n"
    yield from grid(measured, "seconds")
    if graphs := [str(row["residues"]) for row in measured if row.get("graphs")]:
        yield f"\naxfold's passes of {', '.join(graphs)} residues are replayed CUDA graphs.\n"
    if any("first_seconds" in row for row in measured):
        yield "\nThe first pass of a length, with what a package compiles for it:\n"
        yield from grid(measured, "first_seconds")
    if any("peak_bytes" in row for row in measured):
        yield "\nMost memory of the device in use by tensors, GiB:\n"
        yield from grid(measured, "peak_bytes", unit=2**30)
    yield from failures(measured)

    ours = {row["residues"]: row for row in measured if row["engine"] == "axfold" and "parts" in row}
    if not ours:
        return
    largest = ours[max(ours)]["parts"]
    parts = sorted(largest, key=largest.get, reverse=True)
    # earlier results have the parts of the timed pass itself
    whole = {n: row.get("hooked_seconds", row["seconds"]) for n, row in ours.items()}
    rows = [
        [part, *(f"{row['parts'].get(part, 0) / whole[n]:.1%}" for n, row in ours.items())] for part in parts
    ]
    if all("hooked_seconds" in row for row in ours.values()):
        rows.append(["all of it, seconds", *(f"{seconds:.2f}" for seconds in whole.values())])
        yield "\nShare of each part of axfold's pass, in one of its own without CUDA graphs:\n"
    else:
        yield "\nShare of each part of axfold's pass:\n"
    yield from table(["part", *map(str, ours)], rows)


def compared(folder: Path) -> list[dict[str, Any]]:
    """Rows of every package on GPUs in bf16 with DEPTH extra sequences; "device" and "earlier" are added."""
    rows = []
    for place, earlier in (folder, False), (folder / "earlier", True):
        for result in newest(place):
            settings = result["settings"]
            if (
                result["device"].startswith("NVIDIA")
                and settings["extra"] == DEPTH
                and settings["blocks"] == 48
            ):
                for row in result["measured"]:
                    if row.get("precision", settings.get("precision")) == "bf16" and "seconds" in row:
                        rows.append({**row, "device": short(result["device"]), "earlier": earlier})
    return rows


def short(device: str) -> str:
    """ "H100" of "NVIDIA H100 80GB HBM3"."""
    return device.removeprefix("NVIDIA ").split()[0]


def comparison(rows: list[dict[str, Any]]) -> Iterator[str]:
    """All packages side by side, with the pictures that `draw` makes of the same rows."""
    if not rows:
        return
    yield f"\n## All packages: bf16, {DEPTH:,} extra sequences, 48 blocks\n"
    yield (
        "Devices and days differ: a column marked * was measured earlier, without axfold beside it (the end of this "
        "page says how), and in brackets stand times that are extrapolated. Compare within one device.\n"
    )
    yield "![seconds a pass](benchmarks-time.png)\n"
    yield "![most memory](benchmarks-memory.png)\n"
    marked = [{**row, "engine": f"{row['engine']} ({row['device']}{'*' * row['earlier']})"} for row in rows]
    marked.sort(key=lambda row: row["earlier"])
    yield "Seconds a pass:\n"
    yield from grid(marked, "seconds")
    yield "\nMost memory in use by tensors, GiB:\n"
    yield from grid(marked, "peak_bytes", unit=2**30)


def draw(rows: list[dict[str, Any]], folder: Path) -> list[Path]:
    """benchmarks-time.png and benchmarks-memory.png, both axes logarithmic."""
    if not rows:
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    fields = {"time": ("seconds", 1, "seconds a pass"), "memory": ("peak_bytes", 2**30, "most memory, GiB")}
    paths = []
    for name, (field, unit, label) in fields.items():
        figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
        curves: dict[tuple[str, str, bool], dict[int, float]] = {}
        for row in rows:
            if field in row:
                curve = curves.setdefault((title(row), row["device"], row["earlier"]), {})
                curve.setdefault(row["residues"], row[field] / unit)
        for (engine, device, earlier), curve in curves.items():
            lengths = sorted(curve)
            style = {"linewidth": 2.5, "color": "black"} if engine == "axfold" else {}
            if earlier:
                style |= {"linestyle": "--"}
            words = f"{engine} ({device}{', earlier' * earlier})"
            axes.plot(lengths, [curve[n] for n in lengths], marker="o", markersize=4, label=words, **style)
        axes.set(xscale="log", yscale="log", xlabel="residues", ylabel=label)
        ticks = sorted({row["residues"] for row in rows})
        axes.set_xticks(ticks, [str(n) for n in ticks], minor=False, rotation=45)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        paths.append(folder / f"benchmarks-{name}.png")
        figure.savefig(paths[-1], dpi=110, metadata={"Software": None})
        pyplot.close(figure)
    return paths


def cold(result: dict[str, Any]) -> Iterator[str]:
    """Starts of processes: benchmarks/cold.py."""
    rows = result["measured"]
    yield f"\n## Cold start, {result['device']}: {result['settings']['model']}, {result['settings']['precision']}\n"
    yield (
        f"{about(result)}. Seconds from the start of a process to the end of its first pass, and whether the compiled "
        "kernels of processes before it were kept; they ran in the order of the table.\n"
    )
    if result["note"]:
        yield f"{result['note']}\n"
    times = [row for row in rows if "seconds" in row]
    yield from table(
        ["package", "residues", "compiled kernels", "seconds", "of that"],
        [
            [
                title(row),
                str(row["residues"]),
                row["cache"],
                f"{row['seconds']:.1f}",
                ", ".join(f"{part} {seconds:.1f}" for part, seconds in row["parts"].items())
                + (f" ({row['kernels']} kernels compiled)" if row.get("kernels") else ""),
            ]
            for row in times
        ],
    )
    yield from failures(rows)


def floor(result: dict[str, Any]) -> Iterator[str]:
    """Each operation at its largest size against what no implementation can be under: benchmarks/ops.py."""
    ceilings = result.get("ceilings")
    rows = [row for row in result["measured"] if "seconds" in row and "needs" in row]
    if not ceilings or not rows:
        return
    yield f"\n## Floors of the operations, {result['device']}, {result['precision']}\n"
    yield (
        f"{result['date']}. Ceilings, measured in the same run: {ceilings['operations_per_second'] / 1e12:.0f} TFLOP/s "
        f"in a large product, {ceilings['bytes_per_second'] / 1e9:,.0f} GB/s in a copy. The floor is the time of an "
        "operation's products or of reading its inputs and writing its result once, whichever is longer; exponentials "
        "and normalisation are not in it. The gap is how many times longer the fastest backend takes.\n"
    )
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["case"] not in best or row["seconds"] < best[row["case"]]["seconds"]:
            best[row["case"]] = row
    lines = []
    for case, row in best.items():
        least = floors.seconds(row["needs"], ceilings)
        lines.append(
            [
                case,
                row["backend"],
                f"{row['needs'].get('operations', 0) / 1e9:,.1f}",
                f"{row['needs']['bytes'] / 2**20:,.0f}",
                f"{1e3 * least:.3f}",
                f"{1e3 * row['seconds']:.3f}",
                f"{row['seconds'] / least:.1f}",
            ]
        )
    yield from table(["operation", "backend", "GFLOP", "MiB", "floor, ms", "measured, ms", "gap"], lines)


def earlier(result: dict[str, Any]) -> Iterator[str]:
    """Other packages, measured before."""
    yield f"\n## Measured earlier, {result['device']}\n"
    yield f"{about(result)}.\n"
    yield f"{result['note']} In brackets: extrapolated from passes of 1 and 3 blocks.\n"
    for precision in dict.fromkeys(row["precision"] for row in result["measured"]):
        rows = [row for row in result["measured"] if row["precision"] == precision]
        if precision != "bf16":  # which the comparison shows
            yield f"Seconds a pass, {precision}:\n"
            yield from grid(rows, "seconds")
            yield "\nMost memory in use by tensors, GiB:\n"
            yield from grid(rows, "peak_bytes", unit=2**30)
            yield ""
        if any("compile_seconds" in row for row in rows):
            yield f"Seconds of compilation before the first pass of a length, {precision}:\n"
            yield from grid(rows, "compile_seconds")
        yield from failures(rows)
        yield ""


def page(folder: Path) -> str:
    """The whole page of the results in `folder`."""
    lines = [
        *comparison(compared(folder)),
        *(line for result in newest(folder) for line in section(result)),
        *small_proteins(folder / "graphs"),
        *many_proteins(folder / "throughput"),
        *(line for result in newest(folder / "cold") for line in cold(result)),
        *(line for result in newest(folder / "ops") for line in floor(result)),
        *(line for result in newest(folder / "training") for line in training(result)),
        *(line for result in newest(folder / "earlier") for line in earlier(result)),
    ]
    return HEAD + "\n".join(lines).rstrip() + "\n"


def main() -> None:
    PAGE.write_text(page(RESULTS), "utf-8")
    for path in [PAGE, *draw(compared(RESULTS), PAGE.parent)]:
        print(f"written: {path}")


if __name__ == "__main__":
    main()

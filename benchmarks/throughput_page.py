"""The parts of docs/benchmarks.md about small and many proteins."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def last_of_each(folder: Path) -> Iterator[dict[str, Any]]:
    """The newest result of each device and setting; names begin with the date."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text("utf-8"))
        found[result["device"], json.dumps(result["settings"])] = result
    return (found[key] for key in sorted(found))


def small_proteins(folder: Path) -> Iterator[str]:
    """Of what `benchmarks/graphs.py` wrote into `folder`."""
    for result in last_of_each(folder):
        settings = result["settings"]
        yield f"\n## {result['device']}: small proteins by CUDA graphs, {settings['precision']}\n"
        yield (
            f"{result['date']}; torch {result['torch']}, axfold {result['axfold']}. {settings['model']}, "
            f"{settings['clusters']} clusters, {settings['extra']:,} extra sequences; the fastest of "
            f"{settings['recycles'] + 1} passes, without heads. The first pass of a shape runs and records; the "
            "numbers are compared bit for bit.\n"
        )
        yield "| residues | s a pass | with graphs | its first pass | launches | with graphs | numbers |"
        yield "| --- |" + " ---: |" * 5 + " --- |"
        for row in result["measured"]:
            before, after = row["without"], row["with"]
            launches = (str(each["launches"]) if "launches" in each else "" for each in (before, after))
            cells = (
                str(row["residues"]),
                f"{before['seconds']:.3f}",
                f"{after['seconds']:.3f}" if after["graphs"] else "not used",
                f"{after['passes'][0]:.3f}",
                *launches,
                "equal" if row["equal"] else "differ",
            )
            yield "| " + " | ".join(cells) + " |"


def many_proteins(folder: Path) -> Iterator[str]:
    """Of what `benchmarks/throughput.py` wrote into `folder`."""
    results = list(last_of_each(folder))
    if not results:
        return
    yield "\n## Proteins per hour\n"
    yield (
        "The whole command on real sequences of 50 to 400 residues with their alignments: features, network, plots "
        "and files. The GPU's share is nvidia-smi's from the first protein to the last; with the start it "
        "includes loading the model. Several processes take a share of the proteins each.\n"
    )
    yield "| device, model, precision | recycles | processes | proteins | s | an hour | GPU busy | with the start |"
    yield "| --- |" + " ---: |" * 7
    for result in results:
        settings, measured = result["settings"], result["measured"]
        busy = (
            "" if measured[name] is None else f"{measured[name]:.0%}" for name in ("busy", "busy_with_start")
        )
        cells = (
            f"{result['device']}, {settings['model']}, {settings['precision']}",
            str(settings["recycles"]),
            str(settings["processes"]),
            str(measured["proteins"]),
            f"{measured['seconds']:.0f}",
            f"{3600 * measured['proteins'] / measured['seconds']:.0f}",
            *busy,
        )
        yield "| " + " | ".join(cells) + " |"

"""The tables of docs/experiments.md that show results of benchmarks/ways.py and benchmarks/calls.py."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "experiments.md"
GAIN = 0.03  # less is noise
SHOWN = 4  # ways of a case


def ways(result: dict[str, Any]) -> Iterator[str]:
    """The fastest ways of each case, and the one that was the default."""
    yield f"\n{result['date']}, {result['device']}, axfold {result['versions']['axfold']}:\n"
    yield "| case | ways, ms | of | TFLOP/s of the fastest |\n| --- | --- | ---: | ---: |"
    cases: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in result["measured"]:
        if "seconds" in row:
            cases.setdefault((row["residues"], row["case"]), []).append(row)
    for (_, case), rows in cases.items():
        rows.sort(key=lambda row: row["seconds"])
        shown = "; ".join(
            f"{way(row)} {1e3 * row['seconds']:.3f}"
            for i, row in enumerate(rows)
            if i < SHOWN or row["today"]
        )
        yield f"| {case} | {shown} | {len(rows)} | {rows[0]['operations_per_second'] / 1e12:.0f} |"


def way(row: dict[str, Any]) -> str:
    return f"**{row['way']}**" if row["today"] else row["way"]


def calls(result: dict[str, Any]) -> Iterator[str]:
    """Calls that another tile makes faster."""
    yield f"\n{result['date']}, {result['device']}, axfold {result['axfold']}:\n"
    yield "| residues | call | times | us | another | us |\n| ---: | --- | ---: | ---: | --- | ---: |"
    for row in result["measured"]:
        for call in row["calls"]:
            others = {name: x for name, x in call.get("tiles", {}).items() if isinstance(x, float)}
            if not others or "seconds" not in call:
                continue
            best = min(others, key=others.__getitem__)
            if others[best] < (1 - GAIN) * call["seconds"]:
                yield (
                    f"| {row['residues']} | {call['call']} | {call['times']} | {1e6 * call['seconds']:.1f} "
                    f"| {best} | {1e6 * others[best]:.1f} |"
                )


def page(text: str, folder: Path) -> str:
    """The page with the tables of results in `folder` renewed."""
    tables: dict[str, Callable[[dict[str, Any]], Iterator[str]]] = {"ways": ways, "calls": calls}
    for name, table in tables.items():
        begin, end = f"<!-- {name}: by benchmarks/report.py -->\n", f"\n<!-- end of {name} -->"
        head, _, rest = text.partition(begin)
        results = [json.loads(path.read_text("utf-8")) for path in sorted((folder / name).glob("*.json"))]
        lines = "\n".join(line for result in results for line in table(result))
        text = head + begin + lines + "\n" + end + rest.partition(end)[2]
    return text

"""Cut and altered files end in an InputError or are read; nothing else escapes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from axfold.data.formats import a3m, fasta, hhr, mmcif, pdb, stockholm, table
from axfold.errors import InputError

INPUTS = Path(__file__).parent / "cases"


def stockholm_edits(text: str, source: str) -> None:
    stockholm.truncate(text, 3)
    stockholm.remove_empty_columns(text)
    stockholm.deduplicate(text, source)
    stockholm.to_a3m(text, source, rows=3)


PARSERS: dict[str, tuple[Callable[[str, str], object], str]] = {
    "fasta": (fasta.parse, "data_parsers/input/P54025.fasta"),
    "a3m": (a3m.parse, "data_parsers/input/2q2k_A_bfd_uniclust_hits.a3m"),
    "stockholm": (stockholm.parse, "data_parsers/input/2q2k_A_mgnify_hits.sto"),
    "stockholm_edits": (stockholm_edits, "data_parsers/input/2q2k_A_mgnify_hits.sto"),
    "hhr": (hhr.parse, "data_parsers/input/pdb70_hits.hhr"),
    "mmcif": (mmcif.parse, "data_mmcif/input/3zee.cif"),
    "pdb": (pdb.parse, "data_pdb/glucagon.pdb"),
    "table": (table.parse, "proteins.csv"),
}


def damaged(text: str, rng: np.random.Generator) -> str:
    """`text` with lines dropped, doubled or exchanged, letters altered, and sometimes cut."""
    lines = text.splitlines(keepends=True)
    for _ in range(rng.integers(3)):
        i, j = rng.integers(len(lines), size=2)
        match rng.integers(3):
            case 0:
                lines[i] = ""
            case 1:
                lines[i] += lines[j]
            case 2:
                lines[i], lines[j] = lines[j], lines[i]
    letters = list("".join(lines) or "\n")
    for at in rng.integers(len(letters), size=rng.integers(6)):
        letters[at] = rng.choice(list("Aa1-*.>#'\"\n\r\t \x00\x07é\u2028_;"))
    return "".join(letters)[: rng.integers(len(letters)) if rng.random() < 0.3 else None]


def refusal(parse: Callable[[str, str], object], text: str) -> str | None:
    """The message with which `text` is refused, None if it is read. Any other error escapes."""
    try:
        parse(text, "x")
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", PARSERS)
def test_only_input_errors_escape(name):
    parse, path = PARSERS[name]
    text = (INPUTS / path).read_text()
    rng = np.random.default_rng(0)
    refusals = [refusal(parse, damaged(text, rng)) for _ in range(20 if name == "mmcif" else 150)]
    assert any(refusals)
    assert all(message is None or message.startswith("x") for message in refusals)


@pytest.mark.parametrize("name", PARSERS)
def test_any_text_is_survived(name):
    parse, _ = PARSERS[name]
    rng = np.random.default_rng(1)
    starts = [
        "",
        ">",
        "# STOCKHOLM 1.0\n",
        "No 1\n",
        "ATOM  ",
        "data_x\nloop_\n_atom_site.id\n",
        "id,sequence\n",
    ]
    for start in starts * 20:
        message = refusal(parse, start + "".join(map(chr, rng.integers(0, 300, size=200))))
        assert message is None or message.startswith("x")

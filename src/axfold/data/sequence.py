"""A protein's letters and name, as users write them."""

import re
from collections.abc import Callable

from axfold.data.formats.lines import shown
from axfold.errors import InputError

_NUCLEOTIDES = re.compile(r"[ACGTUN]{10,}", re.IGNORECASE)
_LONGEST_FILE_NAME = 120  # file systems stop at 255, and the endings of results have about 70


def file_name(name: str) -> str:
    """How files of a protein called `name` start: ColabFold's rule, all but A-Za-z0-9_.- becomes '_'.

    Dots and hyphens at the start do too, so that nothing is hidden, an option, or climbs out of its folder. At
    most 120 characters.
    """
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:_LONGEST_FILE_NAME]
    return re.sub(r"^[.-]+", lambda start: "_" * len(start[0]), safe) or "_"


def residues(sequence: str, where: str, place: Callable[[int], str]) -> str:
    """`sequence` in upper case. Raises InputError unless it is one chain of amino acids.

    `where` names the protein and its file; `place(position)` says where a letter stands.
    """
    if not sequence:
        raise InputError(f"{where} has no sequence.")
    if bad := re.search(r"[^A-Za-z]", sequence):
        letter, position = bad[0], bad.start()
        mend = "write amino acids as one-letter codes"
        if letter in ":/":
            mend = "it parts the chains of a complex, and complexes need a multimer model: give one chain"
        elif letter == "*":
            mend = "it marks the end of a translation: delete it"
        elif letter in "-.~_":
            mend = (
                "a sequence has no gaps: delete them, or give the file the suffix .a3m if it is an alignment"
            )
        elif letter.isdigit():
            mend = "delete the numbers"
        raise InputError(
            f"{place(position)}: {shown(letter)} at residue {position + 1} is no amino acid; {mend}."
        )
    if _NUCLEOTIDES.fullmatch(sequence) and {"A", "C", "G"} < set(sequence.upper()) & set("ACGTU"):
        raise InputError(f"{where} is DNA or RNA by its letters; translate it: only proteins can be folded.")
    return sequence.upper()

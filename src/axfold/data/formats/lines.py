"""Lines of a text, and what messages say of it."""

import math

from axfold.errors import InputError


def lines(text: str) -> list[str]:
    """Lines without their ends, which may be those of Unix, Windows or old Macs.

    Other separators that `str.splitlines` knows (U+2028, form feeds) occur inside of descriptions and stay there.
    """
    found = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return found if found[-1] else found[:-1]


def locate(text: str, line: int, position: int) -> tuple[int, int]:
    """(line, column) of residue `position` (from 0) of the sequence that follows header `line`; all from 1."""
    seen = 0
    for number, content in enumerate(lines(text)[line:], line + 1):
        letters = len("".join(content.split()))
        if position < seen + letters:
            columns = (column for column, letter in enumerate(content, 1) if not letter.isspace())
            # most lines hold no white space, and some are long
            return number, position - seen + 1 if letters == len(content) else [*columns][position - seen]
        seen += letters
    return line, 1


def shown(letter: str) -> str:
    """A letter for a message: characters that don't print are escaped."""
    return repr(letter) if letter.isprintable() else f"the character U+{ord(letter):04X}"


def short(name: str) -> str:
    """A name for a message: quoted, and cut if it is long."""
    return repr(name if len(name) <= 60 else f"{name[:57]}...")


def integer(text: str, where: str, what: str) -> int:
    """`text` as a whole number. Raises InputError, naming `where` it stands and `what` it is."""
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{where}: {what} is {short(text.strip())} in place of a whole number.") from None


def number(text: str, where: str, what: str) -> float:
    """`text` as a finite number. Raises InputError, naming `where` it stands and `what` it is."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: {what} is {short(text.strip())} in place of a number.")
    return value

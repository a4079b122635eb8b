"""Where axfold keeps what it need not fetch or find out again."""

import os
from pathlib import Path


def folder(cache: Path | None = None) -> Path:
    """`cache`, else $AXFOLD_CACHE, else $XDG_CACHE_HOME/axfold or ~/.cache/axfold."""
    if cache is None:
        if own := os.environ.get("AXFOLD_CACHE"):
            cache = Path(own)
        else:
            xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))  # to be ignored where it is not absolute
            cache = (xdg if xdg.is_absolute() else Path("~/.cache")) / "axfold"
    return cache.expanduser()

"""Numbers and names in messages."""

import difflib
from collections.abc import Iterable


def counted(count: int, noun: str) -> str:
    """So many of a thing, as "1 clip" or "1,200 clips"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: "; did you mean that one?", or nothing if none is like it."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""

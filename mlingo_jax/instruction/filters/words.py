"""Texts as words, for the filters."""

import re

_WORD = re.compile(r"\d+(?:\.\d+)?s?|[^\W\d_]+(?:['’][^\W\d_]+)?|[&#]|[.;:!?,]", re.UNICODE)
_PLAIN = re.compile(r"[^\W_]+(?:['’.][^\W_]+)*", re.UNICODE)


def tokens(text: str) -> list[str]:
    """Words, numbers ("120", "80s") and what ends a clause, in lower case; a hyphen parts words."""
    return _WORD.findall(text.lower().replace("’", "'"))


def words(text: str) -> list[str]:
    """The words alone, in lower case."""
    return _PLAIN.findall(text.lower())


def count_words(text: str) -> int:
    """How many words a text has, as white space parts them."""
    return len(text.split())

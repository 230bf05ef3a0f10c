"""Words that give away how a pair was made, or who made the music."""

import functools
import re
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources

from mlingo_jax.instruction.filters.words import words

_SHORTEST_NAME = 4


def find_leak(question: str, answer: str) -> str | None:
    """The words by which a pair gives away that it was made from a text; None if it does not."""
    patterns = _patterns()
    question, answer = question.replace("’", "'"), answer.replace("’", "'")
    found = patterns["answers"].search(answer) or patterns["questions"].search(question)
    return found[0] if found else None


def find_name(text: str, private: Iterable[str], evidence: str) -> str | None:
    """The artist's, title's or album's name that a text tells; None if it tells none.

    A name that the evidence has, too, or one too short to be told from any other word, gives nothing away.
    """
    said, known = _spaced(text), _spaced(evidence)
    for name in private:
        spaced = _spaced(name)
        if len(spaced) >= _SHORTEST_NAME + 2 and spaced in said and spaced not in known:
            return name
    return None


def _spaced(text: str) -> str:
    return f" {' '.join(words(text))} "


@functools.cache
def _patterns() -> Mapping[str, re.Pattern[str]]:
    text = (resources.files("mlingo_jax.instruction.filters") / "leaks.toml").read_text(encoding="utf-8")
    return {part: re.compile("|".join(found), re.IGNORECASE) for part, found in tomllib.loads(text).items()}

"""Whether a pair is sound by itself: its length, its words, and what its source says."""

import re

from mlingo_jax.instruction.filters.leaks import find_leak, find_name
from mlingo_jax.instruction.filters.vocabulary import Vocabulary
from mlingo_jax.instruction.filters.words import count_words, words
from mlingo_jax.instruction.pairs import Pair, Source
from mlingo_jax.instruction.recipes import Task

_YES_OR_NO = re.compile(r"^(is|are|was|were|do|does|did|can|could|would|has|have|which of)\b", re.IGNORECASE)
# Questions of a clip that share so much of their words ask the same.
_SAME_QUESTION = 0.85
# To ask for voices or how fast it is claims nothing.
_FREE_IN_QUESTIONS = frozenset(("vocals", "slow", "medium", "fast"))


class ClipChecks:
    """The checks of one clip's pairs, in the order they come."""

    def __init__(self, source: Source, vocabulary: Vocabulary):
        self._source, self._vocabulary = source, vocabulary
        self._evidence = source.evidence()
        self._known = vocabulary.known(self._evidence)
        self._asked: list[frozenset[str]] = []

    def find_fault(self, pair: Pair, task: Task) -> tuple[str, str] | None:
        """(filter, reason) of the first thing that is wrong with a pair; None if nothing is."""
        return (
            self._find_bad_length(pair, task)
            or self._find_leak(pair)
            or self._find_invention(pair)
            or (self._find_repetition(pair) if task.writes == "pairs" else None)
        )

    def _find_bad_length(self, pair: Pair, task: Task) -> tuple[str, str] | None:
        for name, text, (least, most) in (
            ("question", pair.question, task.question_words),
            ("answer", pair.answer, task.answer_words),
        ):
            if not least <= (found := count_words(text)) <= most:
                return "length", f"the {name} has {found} words, expected {least} to {most}"
        return None

    def _find_leak(self, pair: Pair) -> tuple[str, str] | None:
        if leak := find_leak(pair.question, pair.answer):
            return "leak", f"gives away how it was made: {leak!r}"
        if name := find_name(f"{pair.question} | {pair.answer}", self._source.private, self._evidence):
            return "leak", f"tells a name: {name!r}"
        return None

    def _find_invention(self, pair: Pair) -> tuple[str, str] | None:
        """What the answer names and the source does not; of a question, too, unless it asks whether it is so."""
        known = self._known
        if pair.attributes:
            known = known | self._vocabulary.known(". ".join(pair.attributes))
        invented = self._vocabulary.mentions(pair.answer) - known
        if not _YES_OR_NO.match(pair.question):
            asked = self._vocabulary.mentions(pair.question) - known
            invented |= {m for m in asked if m.concept not in _FREE_IN_QUESTIONS}
        if not invented:
            return None
        named = sorted(f"{'no ' if m.denied else ''}{m.concept}" for m in invented)
        return "invented", f"not in the source: {', '.join(named)}"

    def _find_repetition(self, pair: Pair) -> tuple[str, str] | None:
        asked = frozenset(words(pair.question))
        for before in self._asked:
            if len(asked & before) >= _SAME_QUESTION * len(asked | before):
                return "repeated_question", "asked of this clip before, in the same words or nearly so"
        self._asked.append(asked)
        return None

"""Answers that a model finds without the music: the question alone gives them away."""

from collections import Counter

from mlingo_jax.instruction.filters.vocabulary import Vocabulary
from mlingo_jax.instruction.filters.words import words

# Words without which an answer says the same.
_EMPTY = frozenset((
    "a", "an", "the", "is", "are", "was", "were", "be", "been", "it", "its", "this", "that", "these", "there", "of",
    "in", "on", "at", "to", "and", "or", "with", "for", "by", "as", "has", "have", "song", "music", "piece", "track",
    "recording", "tune", "yes", "no", "very", "quite", "i", "he", "she", "they",
))  # fmt: skip
_SAME_WORDS = 0.6


def is_given_away(answer: str, blind: str, vocabulary: Vocabulary) -> bool:
    """Whether the blind answer says what the answer says.

    Where the answer names something of the vocabulary, the blind one must name all of it; else their words must agree
    (F1 of the words that mean something).
    """
    named = vocabulary.mentions(answer)
    if named:
        return named <= vocabulary.known(blind)
    said, guessed = (Counter(word for word in words(text) if word not in _EMPTY) for text in (answer, blind))
    common = (said & guessed).total()
    return bool(common) and 2 * common / (said.total() + guessed.total()) >= _SAME_WORDS

"""ROUGE-L of many pairs of texts: rouge-score's tokens, and a compiled longest common subsequence."""

import functools
from types import SimpleNamespace

import numpy as np
from jaxtyping import Float

from mlingo_jax.evaluation.optional import require_package
from mlingo_jax.evaluation.pairs import Pairs


def rouge_l(pairs: Pairs, *, stem: bool) -> tuple[Float[np.ndarray, "P"], Float[np.ndarray, "P"]]:
    """(precision, recall) of each pair; 0 where a text has no word.

    stem: compare words' Porter stems, rouge-score's `use_stemmer`.

    Raises:
        MissingMetric: rouge-score or rapidfuzz is not installed.
    """
    tokenize = require_package("rouge_score.tokenize").tokenize
    similarity = require_package("rapidfuzz.distance.LCSseq").similarity
    # One stemmer for all texts that stems each word once.
    porter = functools.cache(require_package("nltk.stem.porter").PorterStemmer().stem)
    stemmer = SimpleNamespace(stem=porter) if stem else None
    numbers: dict[str, int] = {}
    texts = [[numbers.setdefault(word, len(numbers)) for word in tokenize(text, stemmer)] for text in pairs.texts]
    lengths = np.array([len(text) for text in texts], float)
    common = np.array(
        [similarity(texts[a], texts[r]) for a, r in zip(pairs.answers, pairs.references, strict=True)], float
    )
    return common / np.maximum(lengths[pairs.answers], 1), common / np.maximum(lengths[pairs.references], 1)


def f1(precision: Float[np.ndarray, "P"], recall: Float[np.ndarray, "P"]) -> Float[np.ndarray, "P"]:
    """The harmonic mean; 0 where both are."""
    total = precision + recall
    return 2 * precision * recall / np.where(total > 0, total, 1)

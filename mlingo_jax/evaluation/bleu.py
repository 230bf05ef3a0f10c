"""BLEU from counts: of each answer alone, as nltk has it, and of all answers together, as sacrebleu has it.

P: pairs. S: statistics of a pair, which add up.
"""

import numpy as np
from jaxtyping import Float

from mlingo_jax.evaluation.ngrams import ORDERS

# nltk without smoothing takes this for a precision of 0.
_TINY = np.finfo(float).tiny


def sentence_bleu(
    matches: Float[np.ndarray, "P 4"],
    answers: Float[np.ndarray, "P 4"],
    references: Float[np.ndarray, "P 4"],
    weights: tuple[float, ...],
) -> Float[np.ndarray, "P"]:
    """nltk's `sentence_bleu` with one reference and no smoothing.

    Args:
        matches: clipped n-gram matches, orders 1 to 4.
        answers: n-grams of the answer. references: n-grams of the reference. The first column is a text's length.
        weights: of the orders' precisions.
    """
    precisions = np.where(matches > 0, matches / np.maximum(answers, 1), _TINY)
    penalty = _brevity_penalty(answers[:, 0], references[:, 0])
    bleu = penalty * np.exp(np.log(precisions) @ np.array(weights))
    return np.where(matches[:, 0] > 0, bleu, 0.0)


def bleu_statistics(
    matches: Float[np.ndarray, "P 4"], answers: Float[np.ndarray, "P 4"], references: Float[np.ndarray, "P 4"]
) -> Float[np.ndarray, "P 9"]:
    """What corpus BLEU is made of: matches and n-grams of orders 1 to 4, and the reference's length."""
    return np.concatenate([matches, answers, references[:, :1]], axis=1)


def corpus_bleu(sums: Float[np.ndarray, "*shape 9"], order: int) -> Float[np.ndarray, "*shape"]:
    """sacrebleu's BLEU up to `order`, with its default smoothing (exponential), of summed `bleu_statistics`."""
    matches, answers = sums[..., :order], sums[..., ORDERS : ORDERS + order]
    misses = matches == 0
    # mteval-v13a: the k-th order without a match counts as 1 / 2^k matches.
    smoothed = np.where(misses, 0.5 ** np.cumsum(misses, axis=-1), matches)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(smoothed / answers).mean(axis=-1)
        bleu = _brevity_penalty(sums[..., ORDERS], sums[..., 2 * ORDERS]) * np.exp(logs)
    return np.where((answers > 0).all(axis=-1) & (matches > 0).any(axis=-1), bleu, 0.0)


def _brevity_penalty(
    answers: Float[np.ndarray, "*shape"], references: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    return np.asarray(np.exp(np.minimum(0.0, 1 - references / np.maximum(answers, 1))))

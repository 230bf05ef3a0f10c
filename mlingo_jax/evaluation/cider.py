"""CIDEr-D (Vedantam et al. 2015) of many pairs of texts, as COCO's captioning tools and aac-metrics compute it."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array

from mlingo_jax.evaluation.ngrams import count_ngrams, sum_rows, totals
from mlingo_jax.evaluation.pairs import Pairs

_SIGMA, _SCALE = 6.0, 10.0


def cider_d(pairs: Pairs, tokens: Sequence[Sequence[str]]) -> Float[np.ndarray, "P"]:
    """CIDEr-D of each pair, on the usual scale of 0 to 10.

    An n-gram weighs the logarithm of how rare it is among the examples' references (`pairs.documents`), so answers that
    fit any clip get little. As in COCO's tools the penalty compares the numbers of bigrams.

    Args:
        pairs: the texts' pairs. tokens: each text's tokens.
    """
    counts = count_ngrams(tokens)
    scores = [_cosine(_weigh(one, pairs), pairs) for one in counts]
    bigrams = totals(counts)[:, 1]
    difference = bigrams[pairs.answers] - bigrams[pairs.references]
    return _SCALE * np.exp(-(difference**2) / (2 * _SIGMA**2)) * np.mean(scores, axis=0)


def _weigh(counts: csr_array, pairs: Pairs) -> csr_array:
    """Each n-gram's count times the logarithm of (documents / documents that have it)."""
    documents = counts[pairs.documents]
    frequency = np.bincount(documents.indices, minlength=int(counts.indices.max(initial=0)) + 1)
    inverse = np.log(len(pairs.documents)) - np.log(np.maximum(frequency, 1))
    weighed = counts.copy()
    weighed.data = counts.data * inverse[counts.indices]
    return weighed


def _cosine(weighed: csr_array, pairs: Pairs) -> Float[np.ndarray, "P"]:
    """The cosine of two texts' weights, where no weight of the answer counts above the reference's own."""
    norms = np.sqrt(np.asarray(weighed.multiply(weighed).sum(axis=1), float))
    products = sum_rows(weighed, pairs.answers, pairs.references, lambda a, r: a.minimum(r).multiply(r))
    lengths = norms[pairs.answers] * norms[pairs.references]
    return products / np.where(lengths > 0, lengths, 1)

"""N-grams of many texts, counted at once: a sparse matrix for each order, from which pairs are compared row by row.

T: texts. G: distinct n-grams of one order. P: pairs.
"""

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

ORDERS = 4
# Pairs compared at once: their rows are copied out of the matrix.
_AT_ONCE = 4096


def count_ngrams(texts: Sequence[Sequence[Hashable]]) -> list[csr_array]:
    """How often each text has each n-gram of its tokens (characters, for a string): [T, G] for the orders 1 to 4."""
    numbers: dict[Hashable, int] = {}
    tokens = np.array([numbers.setdefault(t, len(numbers)) for text in texts for t in text], np.int64)
    lengths = np.array([len(text) for text in texts], np.int64)
    rows = np.repeat(np.arange(len(texts)), lengths)
    ends = np.repeat(np.cumsum(lengths), lengths)
    starts, ids = np.arange(len(tokens)), tokens
    counts = [_count(rows, ids, len(texts))]
    for order in range(2, ORDERS + 1):
        # An n-gram is the (n-1)-gram at its start, and one more token.
        fits = starts + order <= ends[starts]
        starts, ids = starts[fits], ids[fits]
        codes = ids * max(len(numbers), 1) + tokens[starts + order - 1]
        ids = np.unique(codes, return_inverse=True)[1]
        counts.append(_count(rows[starts], ids, len(texts)))
    return counts


def totals(counts: Sequence[csr_array]) -> Float[np.ndarray, "T 4"]:
    """The number of n-grams in each text."""
    return np.stack([np.asarray(one.sum(axis=1), float) for one in counts], axis=1)


def clipped_matches(
    counts: Sequence[csr_array], answers: Int[np.ndarray, "P"], references: Int[np.ndarray, "P"]
) -> Float[np.ndarray, "P 4"]:
    """How many n-grams of each answer its reference has, too, none more often than the reference has it."""
    return np.stack([sum_rows(one, answers, references, csr_array.minimum) for one in counts], axis=1)


def sum_rows(
    matrix: csr_array,
    left: Int[np.ndarray, "P"],
    right: Int[np.ndarray, "P"],
    combine: Callable[[csr_array, csr_array], csr_array],
) -> Float[np.ndarray, "P"]:
    """The sum over each row of `combine` (left rows, right rows)."""
    sums = [combine(matrix[left[some]], matrix[right[some]]).sum(axis=1) for some in _slices(len(left))]
    return np.concatenate([np.zeros(0), *sums])


def _slices(length: int) -> Iterator[slice]:
    return (slice(start, start + _AT_ONCE) for start in range(0, length, _AT_ONCE))


def _count(rows: Int[np.ndarray, "M"], ids: Int[np.ndarray, "M"], texts: int) -> csr_array:
    width = int(ids.max(initial=0)) + 1
    # Of equal (row, column) pairs the constructor adds up the ones.
    return csr_array((np.ones(len(ids)), (rows, ids)), shape=(texts, width))


def flatten(texts: Sequence[Sequence[str]]) -> list[str]:
    """All distinct tokens, in the order of their first appearance."""
    return list(dict.fromkeys(itertools.chain.from_iterable(texts)))

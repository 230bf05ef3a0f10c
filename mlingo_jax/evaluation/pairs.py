"""Which texts are compared: every text once, and pairs of them by number.

A score needs each answer beside its own reference; its floors need the same answers beside many other references. So a
metric reads each text once, and gets all pairs, those of the floors included, in one call.

T: distinct texts. N: examples. P: distinct pairs.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of an answer and a reference.

    texts: T distinct texts. answers, references: each pair's two texts, by number. documents: the N examples' own
    references, for metrics that weigh words by how many references have them.
    """

    texts: Sequence[str]
    answers: Int[np.ndarray, "P"]
    references: Int[np.ndarray, "P"]
    documents: Int[np.ndarray, "N"]

    def __len__(self) -> int:
        return len(self.answers)


def pair_up(references: Sequence[str], candidates: Sequence[Sequence[str]]) -> tuple[Pairs, list[Int[np.ndarray, "N"]]]:
    """Pairs each list of candidates, one candidate for each of the N references, with the references.

    Returns the distinct pairs, and for each list of candidates the number of each example's pair.
    """
    numbers: dict[str, int] = {}
    of_references = _number(references, numbers)
    of_candidates = np.stack([_number(texts, numbers) for texts in candidates])
    codes = of_candidates * len(numbers) + of_references
    distinct, where = np.unique(codes, return_inverse=True)
    pairs = Pairs(list(numbers), distinct // len(numbers), distinct % len(numbers), of_references)
    return pairs, list(where.reshape(of_candidates.shape))


def _number(texts: Sequence[str], numbers: dict[str, int]) -> Int[np.ndarray, "N"]:
    return np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int64)

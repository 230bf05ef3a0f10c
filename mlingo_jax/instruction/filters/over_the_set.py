"""What shows only beside all other pairs: answers that nearly repeat another's, and lengths far from the usual.

A pair leaves a few numbers here, so the set may be large. Axes: N pairs, H hash values of a text, B bands of them.
"""

import array
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt

from mlingo_jax.errors import UserError
from mlingo_jax.instruction.filters.words import count_words, words
from mlingo_jax.instruction.pairs import Pair
from mlingo_jax.instruction.recipes import Task

# Two texts whose word triples overlap by 0.8 agree in one of 25 bands of 5 values with probability 1 - (1 - 0.8^5)^25,
# which is 0.9999; at an overlap of 0.4 with 0.23, and then all their values are compared.
_VALUES, _ROWS = 125, 5
_SHINGLE = 3
# Shorter answers have too few triples to tell chance from repetition.
_SHORTEST = 10
# However regular all others are, this much (of a logarithm: a quarter) is no deviation to speak of.
_LEAST_DEVIATION = 0.25
_FEWEST = 20
_TO_DEVIATION = 1.4826


class SetChecks:
    """Pairs are added in their order; then the faults are there, by their places in that order."""

    def __init__(self, tasks: Sequence[Task]):
        """Raises UserError if near-duplicates are to be found and the library for it is missing."""
        self._tasks = {task.name: task for task in tasks}
        self._groups: dict[tuple[str, str], int] = {}
        self._group, self._length = array.array("i"), array.array("f")
        self._hashed: list[UInt[np.ndarray, " H"]] = []
        self._places = array.array("q")
        self._hasher = _Hasher() if any(task.near_duplicates for task in tasks) else None

    def add(self, pair: Pair) -> None:
        """Takes note of the next pair."""
        place = len(self._group)
        self._group.append(self._groups.setdefault((pair.task, pair.kind), len(self._groups)))
        self._length.append(np.log(max(count_words(pair.answer), 1)))
        if self._hasher and self._tasks[pair.task].near_duplicates:
            said = words(pair.answer)
            if len(said) >= _SHORTEST:
                self._hashed.append(self._hasher.values(said))
                self._places.append(place)

    def faults(self) -> dict[int, tuple[str, str]]:
        """(filter, reason) of each pair that has a fault, by its place."""
        found = {place: ("near_duplicate", f"says almost what {other} says") for place, other in self._duplicates()}
        for place, deviations in self._outliers():
            found.setdefault(
                place, ("length_outlier", f"{deviations:+.1f} robust deviations from the usual length of its kind")
            )
        return found

    def _duplicates(self) -> Iterator[tuple[int, str]]:
        """(place, what it repeats): of answers alike the first stays."""
        if not self._hashed:
            return
        values = np.stack(self._hashed)
        limits = {g: self._tasks[task].near_duplicates for (task, _), g in self._groups.items()}
        limit = np.array([limits[self._group[place]] for place in self._places])
        repeated = np.zeros(len(values), bool)
        for first, second in _candidates(values):
            if not repeated[first] and not repeated[second]:
                alike = float((values[first] == values[second]).mean())
                repeated[second] = alike >= limit[second]
        for place in np.flatnonzero(repeated):
            yield self._places[place], "an earlier answer"

    def _outliers(self) -> Iterator[tuple[int, float]]:
        groups, lengths = np.array(self._group), np.array(self._length)
        for (task, _), group in self._groups.items():
            limit, members = self._tasks[task].length_deviations, np.flatnonzero(groups == group)
            if limit and len(members) >= _FEWEST:
                for place, deviations in zip(members, robust_deviations(lengths[members]), strict=True):
                    if abs(deviations) > limit:
                        yield int(place), float(deviations)


def robust_deviations(values: np.ndarray) -> np.ndarray:
    """How far each value is from the median, in deviations reckoned from the median absolute one."""
    centre = np.median(values)
    deviation = max(_TO_DEVIATION * np.median(np.abs(values - centre)), _LEAST_DEVIATION)
    return (values - centre) / deviation


class _Hasher:
    """MinHash values of a text's word triples."""

    def __init__(self) -> None:
        try:
            from datasketch import MinHash
        except ImportError as error:
            raise UserError(
                "finding near-duplicates needs datasketch; install it by `pip install mlingo_jax[instruct]`"
            ) from error
        self._make = lambda: MinHash(_VALUES, seed=1, hashfunc=_hash)

    def values(self, said: Sequence[str]) -> UInt[np.ndarray, " H"]:
        minhash = self._make()
        triples = {" ".join(said[n : n + _SHINGLE]) for n in range(len(said) - _SHINGLE + 1)}
        minhash.update_batch([triple.encode() for triple in sorted(triples)])
        return minhash.hashvalues.astype(np.uint32)


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=4).digest(), "little")


def _candidates(values: UInt[np.ndarray, "N H"]) -> Iterator[tuple[int, int]]:
    """(first, second) places of texts that agree in a whole band, in the order of the second."""
    found: list[Int[np.ndarray, "M 2"]] = []
    for band in range(0, _VALUES, _ROWS):
        rows = np.ascontiguousarray(values[:, band : band + _ROWS]).view(f"V{_ROWS * values.itemsize}").ravel()
        _, inverse = np.unique(rows, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        same: Bool[np.ndarray, " M"] = np.diff(inverse[order]) == 0
        # Each with the first of its bucket, and with the one before it.
        starts = np.maximum.accumulate(np.where(np.concatenate([[True], ~same]), np.arange(len(order)), 0))
        later = np.flatnonzero(np.concatenate([[False], same]))
        found += [np.stack([order[starts[later]], order[later]], 1), np.stack([order[later - 1], order[later]], 1)]
    pairs = np.unique(np.concatenate(found), axis=0)
    yield from pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))].tolist()

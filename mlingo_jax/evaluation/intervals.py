"""How sure a number is: bootstrap over clips, not over rows, since rows about one clip are not independent.

N: examples. C: clips. B: resamples. S: statistics of an example.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

RESAMPLES = 1000
_LEVEL = 95.0


class Resamples:
    """Clips drawn with replacement, the same for all metrics, so that differences are paired."""

    def __init__(self, clips: Sequence[str], resamples: int = RESAMPLES, seed: int = 0):
        """clips: the clip of each of the N examples."""
        numbers: dict[str, int] = {}
        rows = np.array([numbers.setdefault(clip, len(numbers)) for clip in clips])
        count = len(numbers)
        self._by_clip = csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=(count, len(rows)))
        draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
        self._draws: Int[np.ndarray, "B C"] = draws

    def sums(self, statistics: Float[np.ndarray, "N *S"]) -> Float[np.ndarray, "B *S"]:
        """The statistics' sum over each resample's examples."""
        flat = statistics.reshape(len(statistics), -1)
        return (self._draws @ (self._by_clip @ flat)).reshape(-1, *statistics.shape[1:])


def interval(values: Float[np.ndarray, "B"]) -> list[float]:
    """The middle 95 % of the resamples' values; resamples without a value are left out."""
    kept = values[np.isfinite(values)]
    if not len(kept):
        return [float("nan"), float("nan")]
    low, high = np.percentile(kept, [(100 - _LEVEL) / 2, (100 + _LEVEL) / 2])
    return [float(low), float(high)]


def chance_probability(differences: Float[np.ndarray, "B"]) -> float:
    """How likely a difference at least as clear of zero would be by chance: two-sided, by the bootstrap.

    Never 0: of B resamples none shows less than 2 / (B + 1).
    """
    fewest = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (fewest + 1) / (len(differences) + 1)))

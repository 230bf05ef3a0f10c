"""Fixed crops: a set number of pieces of each clip, the same ones in a feature cache as in a step that encodes audio.

Axes: N samples of a clip, C samples of a crop.
"""

import dataclasses

import numpy as np
from jaxtyping import Float32

from mlingo_jax.data.excerpts import Excerpts, drawn_start


@dataclasses.dataclass(frozen=True)
class Crops:
    """`count` crops of each clip, of `seconds` each, chosen by `seed`.

    Where a crop begins, one of N - C + 1 samples, follows from `seed`, its number and the clip's name
    (`mlingo_jax.data.excerpts.drawn_start`). It depends on nothing else: neither on the other clips, nor on their
    order, the machine or how many crops there are. A clip no longer than a crop has one alone: itself.

    before_resampling: cut as MusiLingo's loader does (`mlingo_jax.data.excerpts.Excerpts`); a waveform then holds a
    clip's crops one behind the other, all of one length.
    """

    count: int
    seconds: float
    seed: int
    before_resampling: bool = False

    def excerpts(self, sample_rate: int) -> Excerpts | None:
        """What reading a clip for an encoder of this rate cuts out of it, if that is done before resampling."""
        return Excerpts(self.count, self.samples(sample_rate), self.seed) if self.before_resampling else None

    def samples(self, sample_rate: int) -> int:
        """C, a crop's length."""
        return round(self.seconds * sample_rate)

    def distinct(self, samples: int, sample_rate: int) -> int:
        """How many crops a clip of so many samples has."""
        return self.count if self.before_resampling or samples > self.samples(sample_rate) else 1

    def draw(self, rng: np.random.Generator | None) -> int:
        """The number of a crop, each as likely; without `rng` the first."""
        return 0 if rng is None else int(rng.integers(self.count))

    def cut(
        self, waveform: Float32[np.ndarray, "N"], sample_rate: int, clip: str, number: int
    ) -> Float32[np.ndarray, "C"]:
        """One of a clip's crops, a view; the clip itself if that is no longer."""
        length = self.samples(sample_rate)
        start = drawn_start(self.seed, number, clip, max(len(waveform) - length, 0) + 1)
        return waveform[start : start + length]

    def cut_all(
        self, waveform: Float32[np.ndarray, "N"], sample_rate: int, clip: str
    ) -> list[Float32[np.ndarray, "C"]]:
        """All of a clip's crops, views."""
        if self.before_resampling:
            return np.split(waveform, self.count)
        numbers = range(self.distinct(len(waveform), sample_rate))
        return [self.cut(waveform, sample_rate, clip, number) for number in numbers]

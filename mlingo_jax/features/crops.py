"""Fixed crops: a set number of pieces of each clip, the same ones in a feature cache as in a step that encodes audio.

Axes: N samples of a clip, C samples of a crop.
"""

import dataclasses
import hashlib

import numpy as np
from jaxtyping import Float32


@dataclasses.dataclass(frozen=True)
class Crops:
    """`count` crops of each clip, of `seconds` each, chosen by `seed`.

    With h the first 8 bytes (big endian) of the SHA-256 of "SEED:NUMBER:CLIP" (UTF-8, CLIP the clip's name), crop
    NUMBER of a clip of N samples begins at sample floor(h (N - C + 1) / 2^64). It depends on nothing else: neither on
    the other clips, nor on their order, the machine or how many crops there are. A clip no longer than a crop has one
    alone: itself.
    """

    count: int
    seconds: float
    seed: int

    def samples(self, sample_rate: int) -> int:
        """C, a crop's length."""
        return round(self.seconds * sample_rate)

    def distinct(self, samples: int, sample_rate: int) -> int:
        """How many crops a clip of so many samples has."""
        return self.count if samples > self.samples(sample_rate) else 1

    def draw(self, rng: np.random.Generator | None) -> int:
        """The number of a crop, each as likely; without `rng` the first."""
        return 0 if rng is None else int(rng.integers(self.count))

    def cut(
        self, waveform: Float32[np.ndarray, "N"], sample_rate: int, clip: str, number: int
    ) -> Float32[np.ndarray, "C"]:
        """One of a clip's crops, a view; the clip itself if that is no longer."""
        length = self.samples(sample_rate)
        starts = max(len(waveform) - length, 0) + 1
        start = _hash(f"{self.seed}:{number}:{clip}") * starts >> 64
        return waveform[start : start + length]

    def cut_all(
        self, waveform: Float32[np.ndarray, "N"], sample_rate: int, clip: str
    ) -> list[Float32[np.ndarray, "C"]]:
        """All of a clip's crops, views."""
        numbers = range(self.distinct(len(waveform), sample_rate))
        return [self.cut(waveform, sample_rate, clip, number) for number in numbers]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")

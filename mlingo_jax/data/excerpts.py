"""Which part of a clip is taken, by what is known of it alone; and parts that are cut before resampling.

Axes: N samples of a file at its own rate, C samples of an excerpt.
"""

import dataclasses
import hashlib

import numpy as np
from jaxtyping import Float32


def drawn_start(seed: int, number: int, clip: str, starts: int) -> int:
    """One of `starts` positions, floor(h starts / 2^64).

    h is the first 8 bytes (big endian) of the SHA-256 of "SEED:NUMBER:CLIP" (UTF-8).
    """
    digest = hashlib.sha256(f"{seed}:{number}:{clip}".encode()).digest()
    return int.from_bytes(digest[:8], "big") * starts >> 64


@dataclasses.dataclass(frozen=True)
class Excerpts:
    """`count` parts of a file, each of `samples` at the file's own rate, whatever that is.

    A shorter file is filled up with zeros, which count as music. So MusiLingo's loader for MusicQA takes its crops:
    372,000 samples, 15.5 s of a file at 24 kHz and 8.4 s at 44.1 kHz. Where each begins follows from `seed`, its number
    and the clip's name (`drawn_start`).
    """

    count: int
    samples: int
    seed: int

    def cut(self, waveform: Float32[np.ndarray, "N"], clip: str) -> list[Float32[np.ndarray, "C"]]:
        """The parts of a waveform at its file's own rate."""
        filled = np.pad(waveform, (0, max(self.samples - len(waveform), 0)))
        starts = len(filled) - self.samples + 1
        begins = [drawn_start(self.seed, number, clip, starts) for number in range(self.count)]
        return [filled[begin : begin + self.samples] for begin in begins]

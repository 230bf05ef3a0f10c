"""torchaudio's resampling, for those who compare with the reference implementation's numbers; soxr's is the default.

Source: torchaudio.functional.resample with its defaults: a sinc at 0.99 of the lower of both rates' half, six of its
zeros on either side, under a Hann window.

Axes: N samples, M resampled ones, P = target / gcd phases, W taps of a phase.
"""

import functools
import math
from typing import Literal

import numpy as np
from jaxtyping import Float32

Resampling = Literal["soxr", "sinc_hann"]

_ZEROS, _ROLLOFF = 6, 0.99
# Of so many periods of the rates' ratio is the product made at once.
_AT_ONCE = 1 << 12


def sinc_hann(waveform: Float32[np.ndarray, "N"], rate: int, target: int) -> Float32[np.ndarray, "M"]:
    """A waveform of `rate` Hz at `target` Hz; M = ceil(N target / rate)."""
    common = math.gcd(rate, target)
    old, new = rate // common, target // common
    if old == new:
        return waveform
    taps = _taps(old, new)
    reach = (taps.shape[1] - old) // 2
    padded = np.pad(waveform, (reach, reach + old))
    periods = np.lib.stride_tricks.sliding_window_view(padded, taps.shape[1])[::old]
    parts = [periods[at : at + _AT_ONCE] @ taps.T for at in range(0, len(periods), _AT_ONCE)]
    return np.concatenate(parts).reshape(-1)[: -(-new * len(waveform) // old)]


@functools.lru_cache(maxsize=8)
def _taps(old: int, new: int) -> Float32[np.ndarray, "P W"]:
    cutoff = min(old, new) * _ROLLOFF
    reach = math.ceil(_ZEROS * old / cutoff)
    # The first quotient is a float32 in torch, where whole numbers are divided.
    phases = np.arange(0, -new, -1).astype(np.float32) / np.float32(new)
    times = phases[:, None].astype(np.float64) + np.arange(-reach, reach + old, dtype=np.float64) / old
    times = np.clip(times * cutoff, -_ZEROS, _ZEROS)
    window = np.cos(times * math.pi / _ZEROS / 2) ** 2
    return (np.sinc(times) * window * (cutoff / old)).astype(np.float32)

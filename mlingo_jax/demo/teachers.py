"""What the small encoder learns to predict: musical descriptions computed from the audio itself, never from labels.

MERT is taught by an acoustic teacher and a musical one, the constant-Q spectrum. The demo has a few minutes and no
more, so what takes MERT's scale to emerge is asked for by name: timbre, pulse and harmony. Axes: T frames, N samples.
"""

import numpy as np
from jaxtyping import Float

from mlingo_jax.demo.synthesis import SAMPLE_RATE

SPECTRUM = 4096
LOWEST = 65.4  # Hz: C2
SEMITONES = 84
CEPSTRUM = 20
MAJOR, MINOR = (0, 4, 7), (0, 3, 7)

Frames = Float[np.ndarray, "T F"]


def describe(waveform: Float[np.ndarray, " N"], frames: int, hop: int, centre: int) -> dict[str, Frames]:
    """The targets of a clip, by teacher, at `frames` moments: sample `centre` and every `hop` samples after it."""
    spectrum = semitone_spectrum(waveform, frames, hop, centre)
    loudness = np.log1p(2 * spectrum / spectrum.mean())
    rate = SAMPLE_RATE / hop
    return {
        "pitch": loudness,
        "timbre": _cepstrum(spectrum),
        "pulse": _pulse(loudness, rate),
        "harmony": _harmony(loudness, rate),
    }


def semitone_spectrum(waveform: Float[np.ndarray, " N"], frames: int, hop: int, centre: int) -> Frames:
    """Magnitudes of 84 semitone bands from C2 on, [T, 84]."""
    padded = np.pad(waveform, (SPECTRUM // 2, SPECTRUM + hop))
    pieces = np.lib.stride_tricks.sliding_window_view(padded, SPECTRUM)[centre::hop][:frames]
    power = np.square(np.abs(np.fft.rfft(pieces * np.hanning(SPECTRUM).astype(np.float32))))
    return np.sqrt(power @ _BANDS)


def _bands() -> Float[np.ndarray, "B F"]:
    hertz = np.maximum(np.fft.rfftfreq(SPECTRUM, 1 / SAMPLE_RATE), 1)
    distance = 12 * np.log2(hertz / LOWEST)[:, None] - np.arange(SEMITONES)
    bands = np.maximum(0, 1 - np.abs(distance))
    return (bands / np.maximum(bands.sum(0), 1e-3)).astype(np.float32)


_BANDS = _bands()


def _cepstrum(spectrum: Frames) -> Frames:
    """The shape of the spectrum, whatever its level: the first cosines over the logarithm of its bands."""
    logs = np.log(spectrum + 1e-2 * spectrum.mean())
    band = np.arange(SEMITONES)[:, None] + 0.5
    return logs @ np.cos(np.pi / SEMITONES * band * np.arange(1, CEPSTRUM + 1))


def _pulse(loudness: Frames, rate: float) -> Frames:
    """Where notes begin, and the logarithm of the time between two beginnings, smoothed over a second, [T, 2]."""
    rise = _smooth(np.maximum(np.diff(loudness, axis=0, prepend=loudness[:1]), 0).sum(1), 3)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(rise, 4), 9).max(1)
    (onsets,) = np.nonzero((rise == around) & (rise > np.maximum(0.25 * rise.max(), 2 * np.median(rise))))
    beginnings = np.zeros(len(rise))
    beginnings[onsets] = 1
    gaps = np.diff(onsets) / rate if len(onsets) > 1 else np.array([len(rise) / rate])
    which = np.clip(np.searchsorted(onsets, np.arange(len(rise)), side="right") - 1, 0, len(gaps) - 1)
    return np.stack([_smooth(beginnings, 3), _smooth(np.log2(gaps[which]), round(rate))], 1)


def _harmony(loudness: Frames, rate: float) -> Frames:
    """How well each major and minor triad fits a second's pitch classes, and the best major's lead, [T, 25]."""
    classes = loudness.reshape(len(loudness), -1, 12).sum(1)
    classes = np.stack([_smooth(c, round(rate)) for c in classes.T], 1)
    classes -= classes.min(1, keepdims=True)
    classes /= np.linalg.norm(classes, axis=1, keepdims=True) + 1e-6
    fits = np.stack(
        [classes[:, [(root + i) % 12 for i in triad]].sum(1) for triad in (MAJOR, MINOR) for root in range(12)], 1
    )
    lead = fits[:, :12].max(1) - fits[:, 12:].max(1)
    return np.concatenate([fits, lead[:, None]], 1)


def _smooth(values: Float[np.ndarray, " T"], frames: int) -> Float[np.ndarray, " T"]:
    weights = np.hanning(frames + 2)[1:-1]
    pad = len(weights) // 2
    padded = np.pad(values, (pad, len(weights) - 1 - pad), mode="edge")
    return np.convolve(padded, weights / weights.sum(), "valid")

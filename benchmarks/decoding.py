"""What decoding costs: clips a second of CPU, by format, as every command reads them.

    python -m benchmarks.decoding

A clip is thirty seconds of noise, 44.1 kHz, stereo (opus 48 kHz), decoded, checked, mixed down and resampled to 24 kHz.
The same audio decoded by libsndfile, where that reads it, is put beside it.
"""

import io
import time
from collections.abc import Callable

import numpy as np
import soundfile
import soxr

from mlingo_jax.data.audio import AudioSettings, decode_audio

AUDIO = AudioSettings(sample_rate=24000, normalize=True)
SECONDS, REPEATS = 30, 6
FORMATS = {
    "wav": ("WAV", "PCM_16", 44100),
    "flac": ("FLAC", "PCM_16", 44100),
    "ogg": ("OGG", "VORBIS", 44100),
    "mp3": ("MP3", "MPEG_LAYER_III", 44100),
    "opus": ("OGG", "OPUS", 48000),
}


def main() -> None:
    rng = np.random.default_rng(0)
    for name, (container, subtype, rate) in FORMATS.items():
        file = io.BytesIO()
        noise = rng.normal(0, 0.1, (SECONDS * rate, 2)).astype(np.float32)
        soundfile.write(file, noise, rate, format=container, subtype=subtype)
        encoded = file.getvalue()
        own = clips_per_second(lambda encoded: decode_audio(encoded, "clip", AUDIO), encoded)
        other = clips_per_second(by_libsndfile, encoded)
        print(f"{name:<5} {own:6.1f} clips/s; by libsndfile {other:6.1f}, ratio {own / other:.2f}")


def clips_per_second(decode: Callable[[bytes], object], encoded: bytes) -> float:
    """For a second of CPU, the best of some tries: the machine may be busy."""
    times = []
    for _ in range(REPEATS):
        begin = time.process_time()
        decode(encoded)
        times.append(time.process_time() - begin)
    return 1 / min(times)


def by_libsndfile(encoded: bytes) -> np.ndarray:
    """The same work, unchecked."""
    samples, rate = soundfile.read(io.BytesIO(encoded), dtype="float32", always_2d=True)
    return soxr.resample(samples.mean(axis=1), rate, AUDIO.sample_rate, quality="HQ")


if __name__ == "__main__":
    main()

"""The features of silence, kept beside a cache: what a model is given instead of a clip, to see whether it listens.

Axes: K features, S hidden states, D encoder width.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float32

from mlingo_jax.features.encode import SECONDS, AudioEncoder
from mlingo_jax.files import atomic_replace

FILE = "silence.npy"


def keep_silence(encoder: AudioEncoder, folder: Path) -> None:
    """Encodes a clip of zeros, as long as is encoded at once, unless that was done before."""
    if (folder / FILE).exists():
        return
    samples = round(min(encoder.seconds, SECONDS) * encoder.audio.sample_rate)
    (features,) = encoder([np.zeros(samples, np.float32)])
    with atomic_replace(folder / FILE) as partial, partial.open("wb") as file:
        np.save(file, features)


def read_silence(folder: Path) -> Float32[np.ndarray, "*S K D"] | None:
    """The features of silence of a cache's encoder; None if nobody has encoded it, or the file is damaged."""
    try:
        return np.load(folder / FILE)
    except (OSError, ValueError, EOFError):
        return None

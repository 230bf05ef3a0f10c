"""A clip's audio wherever it is: a file, or a record that `prepare` made."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float32

from mlingo_jax.data.audio import AudioSettings, decode_audio, read_audio


@dataclass(frozen=True, slots=True)
class StoredAudio:
    """A clip among the records of `collection` (a name for messages); `read` gives the encoded bytes of an id."""

    collection: str
    clip: str
    read: Callable[[str], bytes]


Audio = Path | StoredAudio


def read_clip(audio: Audio, settings: AudioSettings, *, minimum: int) -> Float32[np.ndarray, "N"]:
    """The clip's waveform, and UserErrors, as `read_audio`'s."""
    if isinstance(audio, Path):
        return read_audio(audio, settings, minimum=minimum)
    name = f"{audio.collection}: clip {audio.clip}"
    return decode_audio(audio.read(audio.clip), name, settings, minimum=minimum)


def duration(audio: Audio) -> float | None:
    """The clip's seconds as its header states them; None if there is no such file any more."""
    with contextlib.suppress(soundfile.SoundFileError, OSError):
        source = audio if isinstance(audio, Path) else io.BytesIO(audio.read(audio.clip))
        return float(soundfile.info(source).duration)
    return None

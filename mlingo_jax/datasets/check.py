"""One clip's audio file: is it there, can it be read, is it as long as it should be; and its bytes for the store."""

import hashlib
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile

from mlingo_jax.data.audio import RECEPTIVE_FIELD, AudioSettings, measure_audio, prepare_waveform
from mlingo_jax.data.convert import convert
from mlingo_jax.data.lookup import ARRAY, DECODED
from mlingo_jax.data.records import Clip
from mlingo_jax.errors import UserError

Status = Literal["there", "missing", "unreadable", "too short", "wrong length"]

SHORTEST_SECONDS = RECEPTIVE_FIELD / 24_000
"""Below this the encoder has no frame (MERT's 400 samples at 24 kHz)."""

# A record is a message of at most 2 GB.
_MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Task:
    """One clip to check: its file (None if there is none), expected length in s, and rate in Hz of a bare array."""

    clip: str
    path: str | None
    seconds: float | None = None
    rate: int | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """What came of it. reason: why it is not used. seconds, rate, digest: of the audio, where it could be read."""

    clip: str
    status: Status
    reason: str = ""
    seconds: float = 0.0
    rate: int = 0
    digest: str = ""


def check(task: Task, tolerance: float) -> tuple[Checked, Clip | None]:
    """Decodes a clip's file to its end; the clip itself if it is to be used.

    tolerance: by how many seconds its length may differ from what is expected. Never raises for a bad file.
    """
    if task.path is None:
        return Checked(task.clip, "missing", "there is no file of this name"), None
    path = Path(task.path)
    most = float("inf") if task.seconds is None else task.seconds + tolerance
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path}: larger than 1 GB; cut it into clips")
        if path.suffix.lower() == ARRAY:
            encoded, samples, rate = _from_array(path, task.rate)
        elif path.suffix.lower() in DECODED:
            samples, rate = measure_audio(path, most_seconds=most)
            encoded = None
        else:
            encoded, samples, rate = _convert(path, most)
        seconds = samples / rate
        if seconds < SHORTEST_SECONDS:
            return Checked(task.clip, "too short", f"{path}: {seconds:.3f} s", seconds, rate), None
        if task.seconds is not None and abs(seconds - task.seconds) > tolerance:
            reason = f"{path}: {seconds:.1f} s, expected {task.seconds:.1f} s"
            return Checked(task.clip, "wrong length", reason, seconds, rate), None
        audio = path.read_bytes() if encoded is None else encoded
    except (UserError, OSError) as error:
        return Checked(task.clip, "unreadable", str(error)), None
    digest = hashlib.sha256(audio).hexdigest()
    return Checked(task.clip, "there", "", seconds, rate, digest), Clip(task.clip, audio, seconds, rate)


def _from_array(path: Path, rate: int | None) -> tuple[bytes, int, int]:
    """The reference implementation's .npy as a wav of the same numbers: (bytes, samples, rate)."""
    if rate is None:
        raise UserError(f"{path}: an array states no sample rate, and the annotations have no sampling_rate for it")
    try:
        waveform = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"{path}: not an array of samples ({error})") from error
    if waveform.size:
        waveform = prepare_waveform(waveform, rate, AudioSettings(rate, normalize=False), minimum=0)
    with io.BytesIO() as file:
        soundfile.write(file, waveform.reshape(-1), rate, format="WAV", subtype="FLOAT")
        return file.getvalue(), len(waveform), rate


def _convert(path: Path, most_seconds: float) -> tuple[bytes, int, int]:
    """What libsndfile does not read, as flac: (bytes, samples, rate)."""
    with tempfile.TemporaryDirectory() as folder:
        flac = Path(folder) / "clip.flac"
        convert(path, flac)
        samples, rate = measure_audio(flac, most_seconds=most_seconds)
        return flac.read_bytes(), samples, rate

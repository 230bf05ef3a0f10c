"""One clip's audio file: is it there, can it be read, is it as long as it should be; and its bytes for the store."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile

from mlingo_jax.data.audio import AudioSettings, measure_audio, prepare_waveform
from mlingo_jax.data.lookup import ARRAY
from mlingo_jax.data.records import Clip
from mlingo_jax.errors import UserError
from mlingo_jax.models.mert_config import RECEPTIVE_FIELD, SAMPLE_RATE

Status = Literal["there", "missing", "unreadable", "too short", "wrong length"]

SHORTEST_SECONDS = RECEPTIVE_FIELD / SAMPLE_RATE
"""Below this MERT has no frame."""

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
    """What came of it. reason: why it is not used. seconds, rate, digest, notes: of the audio, where it could be read.

    notes: what is worth saying of it though it is used.
    """

    clip: str
    status: Status
    reason: str = ""
    seconds: float = 0.0
    rate: int = 0
    digest: str = ""
    notes: Sequence[str] = ()


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
        audio = _from_array(path, task.rate) if path.suffix.lower() == ARRAY else path.read_bytes()
        # Of the very bytes that are stored, and decoded later.
        measured = measure_audio(audio, str(path), most_seconds=most)
        seconds, rate = measured.seconds, measured.rate
        if seconds < SHORTEST_SECONDS:
            return Checked(task.clip, "too short", f"{path}: {seconds:.3f} s", seconds, rate), None
        if task.seconds is not None and abs(seconds - task.seconds) > tolerance:
            found = f"over {most:.1f}" if measured.is_longer else f"{seconds:.1f}"
            reason = f"{path}: {found} s, expected {task.seconds:.1f} s"
            return Checked(task.clip, "wrong length", reason, seconds, rate), None
    except UserError as error:
        return Checked(task.clip, "unreadable", str(error)), None
    except OSError as error:
        return Checked(task.clip, "unreadable", f"{path}: {error.strerror or error}"), None
    except Exception as error:
        reason = f"{path}: cannot be read ({type(error).__name__}: {error})"
        return Checked(task.clip, "unreadable", reason), None
    digest = hashlib.sha256(audio).hexdigest()
    checked = Checked(task.clip, "there", "", seconds, rate, digest, measured.notes)
    return checked, Clip(task.clip, audio, seconds, rate)


def _from_array(path: Path, rate: int | None) -> bytes:
    """The reference implementation's .npy as a wav of the same numbers."""
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
        return file.getvalue()

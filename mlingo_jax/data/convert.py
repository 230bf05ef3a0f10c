"""Cuts a piece out of a recording of any format that is read, as flac."""

import shutil
from pathlib import Path

import soundfile

from mlingo_jax.data.decoding import open_audio
from mlingo_jax.errors import UserError


def has_ffmpeg() -> bool:
    """Whether there is an ffmpeg on the PATH."""
    return shutil.which("ffmpeg") is not None


def cut(source: Path, made: Path, start: float, end: float) -> float:
    """Writes the seconds from `start` to `end` of a recording to `made`, flac of 16 bits, all its channels.

    Returns how many seconds there were of these. Raises UserError if the recording cannot be read.
    """
    written, at = None, 0
    first = last = 0
    with open_audio(source, source.name) as decoding:
        for planes in decoding.planes():
            if written is None:
                first, last = round(start * decoding.rate), round(end * decoding.rate)
                written = soundfile.SoundFile(made, "w", decoding.rate, len(planes), "PCM_16", format="FLAC")
            if written.channels != len(planes):
                raise UserError(f"{source.name}: the number of its channels changes at {at / decoding.rate:.1f} s")
            written.write(planes[:, max(first - at, 0) : max(last - at, 0)].T)
            at += planes.shape[1]
            if at >= last:
                break
    if written is None:
        raise UserError(f"{source.name}: there is no audio in it (0 samples)")
    written.close()
    return max(min(at, last) - first, 0) / written.samplerate

"""What libsndfile does not read (m4a, webm) becomes flac, where the system has ffmpeg."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import soundfile

from mlingo_jax.errors import UserError

_SECONDS = 600
_BLOCK = 1 << 18


def has_ffmpeg() -> bool:
    """Whether there is an ffmpeg on the PATH."""
    return shutil.which("ffmpeg") is not None


def convert(source: Path, made: Path, *, seconds: float | None = None) -> None:
    """Writes a file's first audio track, or its first seconds, to `made` as flac of 16 bits.

    Raises UserError if there is no ffmpeg, or if it cannot read the file.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        raise UserError(f"{source}: {source.suffix} needs ffmpeg, and there is none on this system")
    with tempfile.TemporaryDirectory() as folder:
        # By way of a plain file: ffmpeg's own flac encoder fails where a cut leaves a first block of few samples.
        plain = Path(folder) / "plain.w64"
        length = () if seconds is None else ("-t", str(seconds))
        command = [
            program,
            "-nostdin",
            "-v",
            "error",
            "-i",
            str(source.absolute()),
            "-map",
            "0:a:0",
            *length,
            str(plain),
        ]
        try:
            done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"{source}: ffmpeg did not end within {_SECONDS} s") from error
        if done.returncode or not plain.exists():
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise UserError(f"{source}: ffmpeg cannot read it ({said[-1] if said else f'exit {done.returncode}'})")
        with (
            soundfile.SoundFile(plain) as read,
            soundfile.SoundFile(made, "w", read.samplerate, read.channels, "PCM_16", format="FLAC") as written,
        ):
            for block in read.blocks(_BLOCK, dtype="int16", always_2d=True):
                written.write(block)

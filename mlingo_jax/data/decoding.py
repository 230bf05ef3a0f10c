"""Encoded audio to blocks of mono samples, by FFmpeg's libraries: a file is whole, or refused with the reason.

What a file is and where its audio lies is told by its own bytes (`mlingo_jax.data.containers`); FFmpeg decodes these to
the end, and what came out is compared with what the header counts.

Axes: C channels, N samples.
"""

import contextlib
import io
import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from jaxtyping import Float32

from mlingo_jax.data.containers import Container, Faulty, Part, recognise
from mlingo_jax.data.containers.plain import is_flac_frame
from mlingo_jax.errors import UserError

Mixdown = Literal["mean", "left"]

# Smaller files are read at once: of what is checked and decoded not a byte can change meanwhile.
_WHOLE_BYTES = 16 << 20
# By default FFmpeg reads the first seconds of a wav twice, to see whether it is DTS; this is enough to see that.
_OPTIONS = {name: {"probesize": str(1 << 16)} for name in ("wav", "w64")}
# Frames that are mixed down together, for speed.
_FRAMES = 64
_RATES = range(1_000, 768_001)
# A duration that a header states may be this much longer than the audio: some include what is cut away at both ends.
_SLACK_SECONDS = 0.2
# Channels cancel each other where their mean has less than this share of their energy (-30 dB) ...
_CANCELLED = 1e-3
# ... and they can be read: a mean square of -60 dB.
_AUDIBLE = 1e-6


@contextlib.contextmanager
def open_audio(encoded: Path | bytes, name: str, mixdown: Mixdown = "mean") -> Iterator["Decoding"]:
    """Opens a file or a file's bytes. Whatever goes wrong with it, here or inside, is a UserError that names it."""
    try:
        with _open(encoded) as file:
            yield Decoding(file, mixdown)
    except (UserError, GeneratorExit):
        raise
    except Faulty as fault:
        raise UserError(f"{name}: {fault}") from fault
    except OSError as error:
        raise UserError(f"{name}: {error.strerror or error}") from error
    except Exception as error:
        raise UserError(f"{name}: cannot be read ({type(error).__name__}: {error})") from error


class Mixer:
    """Makes one channel of several, block by block, and sees whether they cancel each other."""

    def __init__(self, mixdown: Mixdown):
        self._mixdown = mixdown
        self._samples = 0
        self._energy_in = self._energy_out = 0.0

    def mix(self, planes: Float32[np.ndarray, "C N"]) -> Float32[np.ndarray, "N"]:
        """The next block."""
        if self._mixdown == "left" or len(planes) == 1:
            return planes[0]
        # What is not finite is refused later, where it is named.
        with np.errstate(all="ignore"):
            mono = planes.mean(axis=0)
            self._energy_in += float(np.vdot(planes, planes)) / len(planes)
            self._energy_out += float(np.vdot(mono, mono))
        self._samples += len(mono)
        return mono

    def notes(self) -> list[str]:
        """What the mixdown lost, after the last block."""
        audible = self._energy_in > _AUDIBLE * self._samples
        if not audible or self._energy_out >= _CANCELLED * self._energy_in:
            return []
        return [
            "its channels cancel each other, so that their mean is next to silence; the mixdown `left` takes the "
            "first one alone"
        ]


class Decoding:
    """Decodes a file from its start to its end.

    rate: in Hz, and samples: decoded so far; both are known with the first block. notes: what is worth saying of the
    file, complete with the last block.
    """

    def __init__(self, file: BufferedIOBase, mixdown: Mixdown = "mean"):
        """Raises Faulty if the file is not audio, damaged or cut off, as far as that is seen without decoding it."""
        self._file, self._container = file, recognise(file)
        self._mixdown: Mixdown = mixdown
        self.rate = self.samples = 0
        self.notes = list(self._container.notes)
        # Of flac: the number of a part's first sample, and the last packet.
        self._first_sample, self._last = 0, b""

    @property
    def seconds(self) -> float:
        """Decoded so far."""
        return self.samples / self.rate if self.rate else 0.0

    def blocks(self) -> Iterator[Float32[np.ndarray, "N"]]:
        """Mono samples, as `planes` gives and refuses them; sees to what the mixdown loses."""
        mixer = Mixer(self._mixdown)
        for planes in self.planes():
            yield mixer.mix(planes)
        self.notes += mixer.notes()

    def planes(self) -> Iterator[Float32[np.ndarray, "C N"]]:
        """Blocks of all channels. Raises Faulty where they cannot be decoded, or have less than the header claims."""
        for part in self._container.parts:
            before, given = self.samples, 0
            for group in _groups(self._frames(part)):
                planes = _planes(group)
                if part.last_page is not None:
                    planes = planes[:, : max(part.last_page - given, 0)]
                given += planes.shape[1]
                yield planes
            self.samples = before + given
            self._compare(part.claimed, given)

    def _compare(self, claimed: int | None, decoded: int) -> None:
        if claimed is None or claimed == decoded:
            return
        counted, found = f"{claimed / self.rate:.1f} s of audio", f"{decoded / self.rate:.1f} s"
        if decoded < claimed:
            raise Faulty(f"the header claims {counted}, the file has {found}; it is cut off or damaged")
        self.notes.append(f"its header counts {counted}; the file has {found}, and all are read")

    def _frames(self, part: Part) -> Iterator[AudioFrame]:
        """The frames of a part, as FFmpeg decodes them."""
        before = self.samples
        try:
            window = _Window(self._file, part)
            name = self._container.format
            # Tags are in any encoding, and are nothing to us.
            with av.open(window, "r", name, options=_OPTIONS.get(name), metadata_errors="replace") as source:
                stream = _audio_stream(source, self._container, part)
                # Of vorbis the first frame is there to begin from, and is no sound.
                before_sound = 1 if part.last_page is not None else 0
                for packet in source.demux(stream):
                    if self._is_behind(packet, part, self.samples - before):
                        break
                    for frame in packet.decode():
                        if before_sound:
                            before_sound -= 1
                            continue
                        self._count(frame)
                        yield frame
                if not self.rate:
                    self.rate = _checked_rate(stream.rate or 0)
                claimed = _stated_seconds(source, stream) if self._container.states_duration else 0.0
        except FFmpegError as error:
            if self.rate and part.claimed is not None and self.samples - before == part.claimed:
                return
            raise Faulty(
                f"damaged or cut off, cannot be decoded beyond {self.seconds:.1f} s ({error.strerror})"
            ) from error
        if self._last and not is_flac_frame(self._last):
            self.notes.append("bytes behind the end of its audio are something else, and are not read")
        found = (self.samples - before) / self.rate
        if found < claimed - _SLACK_SECONDS:
            raise Faulty(f"the header claims {claimed:.1f} s of audio, the file has {found:.1f} s; it is cut off")

    def _is_behind(self, packet: Packet, part: Part, decoded: int) -> bool:
        """Whether a packet of flac is behind the end. Raises Faulty if frames before it are missing.

        FFmpeg leaves out frames that are damaged, and resumes; each frame says which sample is its first.
        """
        if self._container.format != "flac" or not packet.size:
            return False
        if packet.pts is None or (decoded and packet.pts != self._first_sample + decoded):
            if part.claimed is None or decoded < part.claimed:
                raise Faulty(f"damaged at {self.seconds:.1f} s, frames are missing there")
            self.notes.append(f"what follows the {part.claimed / self.rate:.1f} s that its header counts is not read")
            return True
        if not decoded:
            self._first_sample = packet.pts
        self._last = bytes(packet)
        return False

    def _count(self, frame: AudioFrame) -> None:
        if not self.rate:
            self.rate = _checked_rate(frame.sample_rate)
        if frame.sample_rate != self.rate:
            raise Faulty(
                f"its sample rate changes from {self.rate} to {frame.sample_rate} Hz at {self.seconds:.1f} s; convert "
                "it to one rate"
            )
        self.samples += frame.samples


def _groups(frames: Iterator[AudioFrame]) -> Iterator[list[AudioFrame]]:
    """Some frames together, of one format and number of channels each time."""
    for _, alike in itertools.groupby(frames, lambda frame: (frame.format.name, frame.layout.nb_channels)):
        while group := list(itertools.islice(alike, _FRAMES)):
            yield group


def _planes(frames: Sequence[AudioFrame]) -> Float32[np.ndarray, "C N"]:
    """Floats as they are, integers over their full scale (8 bits around 128)."""
    joined = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)
    if not frames[0].format.is_planar:
        joined = joined.reshape(-1, frames[0].layout.nb_channels).T
    planes = np.empty(joined.shape, np.float32)
    half = np.float32(1 << (8 * joined.dtype.itemsize - 1)) if joined.dtype.kind in "iu" else np.float32(1)
    # Exact: a power of two.
    np.multiply(joined, 1 / half, out=planes, dtype=np.float32, casting="unsafe")
    return planes - 1 if joined.dtype.kind == "u" else planes


def _audio_stream(source: InputContainer, container: Container, part: Part) -> AudioStream:
    streams = [stream for stream in source.streams.audio if stream.codec_context is not None]
    if not streams:
        raise Faulty("there is no audio in it that can be decoded")
    stream = streams[0]
    # Clips are decoded side by side; one of them needs one thread.
    stream.codec_context.thread_count = 1
    if container.format == "flac":
        stream.codec_context.options = {"err_detect": "crccheck+explode"}
    elif part.last_page is not None:
        stream.codec_context.options = {"flags2": "+skip_manual"}
    return stream


def _checked_rate(rate: int) -> int:
    if rate not in _RATES:
        raise Faulty(f"its header claims a sample rate of {rate:,} Hz")
    return rate


def _stated_seconds(source: InputContainer, stream: AudioStream) -> float:
    """How long the header says the audio is; 0 where that is said of a film as a whole."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return (source.duration or 0) / av.time_base if len(source.streams) == 1 else 0.0


@contextlib.contextmanager
def _open(encoded: Path | bytes) -> Iterator[BufferedIOBase]:
    if isinstance(encoded, bytes):
        yield io.BytesIO(encoded)
        return
    status = os.stat(encoded)
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        # To open a pipe would wait for somebody to write into it.
        raise Faulty("a pipe, socket or device, and no file")
    with encoded.open("rb") as file:
        if status.st_size > _WHOLE_BYTES:
            yield file
        else:
            yield io.BytesIO(file.read())


class _Window:
    """A part of a file, as a file: what FFmpeg gets to see."""

    def __init__(self, file: BufferedIOBase, part: Part):
        self._file, self._start, self._size, self._at = file, part.start, part.end - part.start, 0

    def read(self, size: int) -> bytes:
        self._file.seek(self._start + self._at)
        data = self._file.read(min(size, self._size - self._at))
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = min(max(base + offset, 0), self._size)
        return self._at

    def tell(self) -> int:
        return self._at

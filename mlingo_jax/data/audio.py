"""Audio files and arrays become the encoder's waveform: float32 [N], mono, at the encoder's sample rate.

wav, flac, ogg and mp3 (whatever libsndfile reads) of any rate, number of channels and length. Files are decoded, mixed
down (mean over the channels) and resampled (soxr's "HQ": 20 bit, linear phase) block by block, so the peak memory is
the resulting waveform and a few megabytes.
"""

import contextlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from jaxtyping import Float32, Shaped

from mlingo_jax.errors import UserError

RECEPTIVE_FIELD = 400
"""Samples below which HuBERT's stack of convolutions has no frame: the least a clip must have by default."""

_BLOCK = 1 << 18
# Writers that cannot seek back (pipes) leave such a size in a header: it stands for "unknown".
_UNKNOWN_BYTES = 0x7FFFF000
# And libsndfile says this many frames, or more, of what states no length.
_UNKNOWN_FRAMES = 1 << 62
# An mp3's own count of its frames may be off by a few of them (encoder delay, the counting frame itself).
_MP3_SLACK_SECONDS = 0.1


@dataclass(frozen=True)
class AudioSettings:
    """What an encoder wants to encode: its sample rate in Hz, and whether a clip is brought to mean 0, variance 1."""

    sample_rate: int
    normalize: bool

    @classmethod
    def from_folder(cls, folder: str | Path) -> "AudioSettings":
        """Reads an encoder folder's preprocessor_config.json, or, without one, the `sample_rate` of its config.json.

        `do_normalize` is true where nothing is said, as in transformers' Wav2Vec2FeatureExtractor.
        Raises UserError if neither file states a rate.
        """
        folder = Path(folder)
        processor = _read_json(folder / "preprocessor_config.json")
        rate = processor.get("sampling_rate", _read_json(folder / "config.json").get("sample_rate"))
        normalize = processor.get("do_normalize", True)
        if not isinstance(rate, int) or isinstance(rate, bool) or rate <= 0 or not isinstance(normalize, bool):
            raise UserError(
                f"{folder}: no valid sampling_rate and do_normalize in preprocessor_config.json (nor sample_rate in "
                f"config.json): found {rate!r} and {normalize!r}; add the encoder's preprocessor_config.json"
            )
        return cls(sample_rate=rate, normalize=normalize)


def read_audio(
    path: str | Path, settings: AudioSettings, *, minimum: int = RECEPTIVE_FIELD
) -> Float32[np.ndarray, "N"]:
    """A file's waveform: mono, at `settings.sample_rate`, not normalised, at least `minimum` samples.

    Raises UserError, naming the file, if it is missing, empty, not audio, damaged, shorter than its header claims, too
    short, or has samples that are not finite. Silence is legal. Two cases cannot be told: an ogg stream claims no
    length, and an mp3 does so only with a Xing, Info or VBRI frame; without one they are as long as they are.
    """
    path = Path(path)
    with _open(path, str(path)) as source:
        blocks = _decode(source, path, str(path))
        return _resample(blocks, source.samplerate, settings.sample_rate, minimum, str(path))


def decode_audio(
    encoded: bytes, name: str, settings: AudioSettings, *, minimum: int = RECEPTIVE_FIELD
) -> Float32[np.ndarray, "N"]:
    """The same for a file's bytes in memory; errors name it by `name`."""
    with _open(encoded, name) as source:
        return _resample(_decode(source, encoded, name), source.samplerate, settings.sample_rate, minimum, name)


def measure_audio(path: str | Path, *, most_seconds: float = float("inf")) -> tuple[int, int]:
    """(samples, sample rate in Hz) of a file that is decoded to its end and not kept; 0 samples are legal here.

    A header that claims more than `most_seconds` is taken at its word, so that nobody waits for an hour of audio that
    is not wanted. Raises UserError as `read_audio` does for what is missing, not audio, damaged, cut off or not finite.
    """
    path = Path(path)
    with _open(path, str(path)) as source:
        if most_seconds * source.samplerate < source.frames < _UNKNOWN_FRAMES:
            return source.frames, source.samplerate
        return sum(map(len, _finite(_decode(source, path, str(path)), str(path)))), source.samplerate


def prepare_waveform(
    waveform: Shaped[np.ndarray, "..."], rate: int, settings: AudioSettings, *, minimum: int = RECEPTIVE_FIELD
) -> Float32[np.ndarray, "N"]:
    """The same for samples in memory: [N], [N, C] or [C, N] at `rate` Hz; of two axes the shorter one is the channels.

    Floats are taken as they are; integers of 8, 16 and 32 bits over their full scale, as an audio file's are (8 bits
    unsigned: around 128). Wider integers have no established scale and are refused. Raises UserError as `read_audio`.
    """
    if rate <= 0 or rate != int(rate):
        raise UserError(f"waveform: the sample rate must be a positive whole number of Hz, found {rate!r}")
    samples = _to_float(np.asarray(waveform))
    if samples.ndim not in (1, 2):
        raise UserError(f"waveform: expected the shape [N], [N, C] or [C, N], found {list(samples.shape)}")
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        samples = samples.T
    mono = samples if samples.ndim == 1 else samples.mean(axis=1)
    blocks = (mono[start : start + _BLOCK] for start in range(0, len(mono), _BLOCK))
    return _resample(blocks, int(rate), settings.sample_rate, minimum, "waveform")


def normalize(waveform: Float32[np.ndarray, "N"]) -> Float32[np.ndarray, "N"]:
    """Mean 0 and variance 1, with 1e-7 added to the variance (transformers' Wav2Vec2FeatureExtractor)."""
    mean, variance = waveform.mean(dtype=np.float64), waveform.var(dtype=np.float64)
    return ((waveform - np.float32(mean)) / np.float32(np.sqrt(variance + 1e-7))).astype(np.float32)


def crop(
    waveform: Float32[np.ndarray, "N"], samples: int, rng: np.random.Generator | None = None
) -> Float32[np.ndarray, "C"]:
    """At most `samples` samples of a waveform, from its start, or from a start drawn evenly by `rng`."""
    spare = max(len(waveform) - samples, 0)
    start = 0 if rng is None else int(rng.integers(spare + 1))
    return waveform[start : start + samples]


def chunks(waveform: Float32[np.ndarray, "N"], chunk_samples: int, sample_rate: int) -> list[Float32[np.ndarray, "W"]]:
    """Cuts long audio into windows (views) that are encoded one by one; together they are the whole waveform.

    A clip no longer than the window is one; a tail shorter than one second joins the window before it.
    """
    starts = list(range(0, max(len(waveform), 1), chunk_samples))
    if len(starts) > 1 and len(waveform) - starts[-1] < sample_rate:
        starts.pop()
    return [waveform[start:end] for start, end in zip(starts, [*starts[1:], len(waveform)], strict=True)]


class _Stream(soundfile.SoundFile):
    """A file read from its start to its end.

    soundfile seeks after each block of a seekable file, and a flac that states no length fails to seek to its end.
    """

    def seekable(self) -> bool:
        return False


@contextlib.contextmanager
def _open(encoded: Path | bytes, name: str) -> Iterator[_Stream]:
    """Opens a file or a file's bytes; UserError if it is missing, empty or not audio."""
    try:
        with _raw(encoded) as file:
            if not file.read(1):
                raise UserError(f"{name}: the file is empty")
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from error
    try:
        source = _Stream(encoded if isinstance(encoded, Path) else io.BytesIO(encoded))
    except soundfile.LibsndfileError as error:
        raise UserError(f"{name}: not audio, or not in a format that can be read (wav, flac, ogg, mp3)") from error
    with source:
        yield source


def _raw(encoded: Path | bytes) -> io.BufferedIOBase:
    return encoded.open("rb") if isinstance(encoded, Path) else io.BytesIO(encoded)


def _decode(source: soundfile.SoundFile, encoded: Path | bytes, name: str) -> Iterator[Float32[np.ndarray, "N"]]:
    """Mono blocks of an open file; at the end, what was read is compared with what the header claims."""
    cut = re.search(r"[Dd]ata[^:\n]*: (\d+) \(should be (\d+)\)", source.extra_info)
    if cut and int(cut[1]) < _UNKNOWN_BYTES:
        raise UserError(f"{name}: the header claims {cut[1]} bytes of audio, the file has {cut[2]}; it is cut off")
    read = 0
    try:
        while len(block := source.read(_BLOCK, dtype="float32", always_2d=True)):
            read += len(block)
            yield block.mean(axis=1)
    except soundfile.LibsndfileError as error:
        seconds = read / source.samplerate
        raise UserError(
            f"{name}: damaged or cut off, cannot be decoded beyond {seconds:.1f} s ({error.error_string.strip()})"
        ) from error
    if source.format == "MP3":
        missing = source.frames - read - _MP3_SLACK_SECONDS * source.samplerate if _mp3_has_count(encoded) else 0
    else:
        missing = source.frames - read if source.frames < _UNKNOWN_FRAMES else 0
    if missing > 0:
        claimed, found = source.frames / source.samplerate, read / source.samplerate
        raise UserError(
            f"{name}: the header claims {claimed:.1f} s of audio, the file has {found:.1f} s; it is cut off"
        )


def _mp3_has_count(encoded: Path | bytes) -> bool:
    """Whether an mp3 states its length: otherwise libsndfile guesses it from the first frame's bit rate."""
    with _raw(encoded) as file:
        tag = file.read(10)
        if tag[:3] == b"ID3":
            file.seek(10 + (tag[6] << 21 | tag[7] << 14 | tag[8] << 7 | tag[9]))
        else:
            file.seek(0)
        return re.search(rb"Xing|Info|VBRI", file.read(4096)) is not None


def _resample(
    blocks: Iterable[Float32[np.ndarray, "_"]], rate: int, target: int, minimum: int, name: str
) -> Float32[np.ndarray, "N"]:
    """Joins and resamples mono blocks; checks that they are finite and long enough."""
    stream = soxr.ResampleStream(rate, target, 1, dtype="float32", quality="HQ")
    # A growing bytearray is remapped rather than copied: joining a list of arrays would need twice the memory.
    joined = bytearray()
    empty = True
    for block in _finite(blocks, name):
        empty = empty and not len(block)
        joined += (block if rate == target else stream.resample_chunk(block)).tobytes()
    if empty:
        raise UserError(f"{name}: there is no audio in it (0 samples)")
    if rate != target:
        joined += stream.resample_chunk(np.zeros(0, np.float32), last=True).tobytes()
    waveform = np.frombuffer(joined, np.float32)
    if len(waveform) < minimum:
        raise UserError(
            f"{name}: too short, {len(waveform)} samples at {target} Hz; the encoder needs at least {minimum} "
            f"({minimum / target * 1000:.0f} ms)"
        )
    return waveform


def _finite(blocks: Iterable[Float32[np.ndarray, "_"]], name: str) -> Iterator[Float32[np.ndarray, "_"]]:
    for block in blocks:
        if not np.isfinite(block).all():
            raise UserError(f"{name}: the audio has samples that are not finite (NaN or infinity)")
        yield block


def _to_float(samples: Shaped[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """Floats as they are, integers over their full scale; UserError for anything else."""
    kind, bits = samples.dtype.kind, 8 * samples.dtype.itemsize
    if kind in "iu" and bits <= 32:
        half = float(1 << (bits - 1))
        return ((samples.astype(np.float64) - (half if kind == "u" else 0)) / half).astype(np.float32)
    if kind == "f" or samples.dtype.name == "bfloat16":
        return samples.astype(np.float32)
    raise UserError(
        f"waveform: cannot take samples of type {samples.dtype}; give floats in -1..1 or integers of 8, 16 or 32 bits"
    )


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is no such file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values

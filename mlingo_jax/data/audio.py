"""Audio files and arrays become the encoder's waveform: float32 [N], mono, at the encoder's sample rate.

Files of many formats (`mlingo_jax.data.containers`), of any rate, number of channels and length, are decoded, mixed
down (mean over the channels) and resampled (soxr's "HQ": 20 bit, linear phase) block by block, so the peak memory is
the resulting waveform and a few megabytes; a file of less than 16 MB is in memory as it is, too.
"""

import itertools
import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from jaxtyping import Float32, Shaped

from mlingo_jax.data.decoding import Mixdown, Mixer, open_audio
from mlingo_jax.data.excerpts import Excerpts
from mlingo_jax.data.resampling import Resampling, sinc_hann
from mlingo_jax.errors import AudioWarning, UserError
from mlingo_jax.models.mert_config import RECEPTIVE_FIELD

_BLOCK = 1 << 18


@dataclass(frozen=True)
class Measured:
    """A file that was decoded. samples: of a channel; rate: in Hz; notes: what is worth saying of it.

    is_longer: it was not decoded to its end, because it is longer than was asked for.
    """

    samples: int
    rate: int
    notes: tuple[str, ...] = ()
    is_longer: bool = False

    @property
    def seconds(self) -> float:
        return self.samples / self.rate


@dataclass(frozen=True)
class AudioSettings:
    """What an encoder wants to encode: its sample rate in Hz, and whether a clip is brought to mean 0, variance 1.

    mixdown: of several channels their `mean`, or the first one, `left`, alone.
    resampling: by soxr, or as torchaudio does ("sinc_hann", `mlingo_jax.data.resampling`).
    excerpts: what is cut out of a file before that, with sinc_hann alone; its waveform is these, one behind the other.
    """

    sample_rate: int
    normalize: bool
    mixdown: Mixdown = "mean"
    resampling: Resampling = "soxr"
    excerpts: Excerpts | None = None

    @classmethod
    def from_folder(
        cls, folder: str | Path, mixdown: Mixdown = "mean", resampling: Resampling = "soxr"
    ) -> "AudioSettings":
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
        return cls(sample_rate=rate, normalize=normalize, mixdown=mixdown, resampling=resampling)


def read_audio(
    path: str | Path, settings: AudioSettings, *, minimum: int = RECEPTIVE_FIELD, clip: str = ""
) -> Float32[np.ndarray, "N"]:
    """A file's waveform: mono, at `settings.sample_rate`, not normalised, at least `minimum` samples.

    clip: the name by which excerpts are drawn.

    What the file is, its first bytes say. Raises UserError, naming the file, if it is missing, empty, not audio,
    damaged, shorter than its header claims, too short, or has samples that are not finite. Silence is legal. Warns
    (`AudioWarning`) of what is worth knowing: bytes behind the audio, a header that states no length or a wrong one,
    channels that cancel each other. What cannot be told: an mp3 or aac without a count of its frames that was cut off
    exactly between two of them.
    """
    return _read(Path(path), str(path), settings, minimum, clip)


def decode_audio(
    encoded: bytes, name: str, settings: AudioSettings, *, minimum: int = RECEPTIVE_FIELD, clip: str = ""
) -> Float32[np.ndarray, "N"]:
    """The same for a file's bytes in memory; errors name it by `name`."""
    return _read(encoded, name, settings, minimum, clip)


def measure_audio(encoded: str | Path | bytes, name: str = "", *, most_seconds: float = float("inf")) -> Measured:
    """How long a file is, or a file's bytes: it is decoded to its end and not kept; 0 samples are legal here.

    Of one that is longer than `most_seconds` the rest is not decoded. Raises UserError as `read_audio` does for what is
    missing, not audio, damaged, cut off or not finite.
    """
    encoded = Path(encoded) if isinstance(encoded, str) else encoded
    name = name or ("audio" if isinstance(encoded, bytes) else str(encoded))
    with open_audio(encoded, name) as decoding:
        for _ in _finite(decoding.blocks(), name):
            if decoding.seconds > most_seconds:
                return Measured(decoding.samples, decoding.rate, tuple(decoding.notes), is_longer=True)
        return Measured(decoding.samples, decoding.rate, tuple(decoding.notes))


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
    planes, mixer = np.atleast_2d(samples.T), Mixer(settings.mixdown)
    blocks = (mixer.mix(planes[:, start : start + _BLOCK]) for start in range(0, len(samples), _BLOCK))
    prepared = _resample(blocks, int(rate), settings, minimum, "waveform")
    _warn("waveform", mixer.notes())
    return prepared


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


def _read(
    encoded: Path | bytes, name: str, settings: AudioSettings, minimum: int, clip: str
) -> Float32[np.ndarray, "N"]:
    with open_audio(encoded, name, settings.mixdown) as decoding:
        blocks = decoding.blocks()
        # The rate is known with the first block.
        first = list(itertools.islice(blocks, 1))
        waveform = _resample(itertools.chain(first, blocks), decoding.rate, settings, minimum, name, clip)
    _warn(name, decoding.notes)
    return waveform


def _warn(name: str, notes: Iterable[str]) -> None:
    for note in notes:
        warnings.warn(f"{name}: {note}", AudioWarning, stacklevel=4)


def _resample(
    blocks: Iterable[Float32[np.ndarray, "_"]],
    rate: int,
    settings: AudioSettings,
    minimum: int,
    name: str,
    clip: str = "",
) -> Float32[np.ndarray, "N"]:
    """Joins and resamples mono blocks; checks that they are finite and long enough."""
    target, streams = settings.sample_rate, settings.resampling == "soxr" and rate != settings.sample_rate
    stream = soxr.ResampleStream(rate, target, 1, dtype="float32", quality="HQ")
    # A growing bytearray is remapped rather than copied: joining a list of arrays would need twice the memory.
    joined = bytearray()
    empty = True
    for block in _finite(blocks, name):
        empty = empty and not len(block)
        joined += (stream.resample_chunk(block) if streams else block).tobytes()
    if empty:
        raise UserError(f"{name}: there is no audio in it (0 samples)")
    if streams:
        joined += stream.resample_chunk(np.zeros(0, np.float32), last=True).tobytes()
    waveform = np.frombuffer(joined, np.float32)
    if not streams:
        parts = settings.excerpts.cut(waveform, clip) if settings.excerpts else [waveform]
        waveform = np.concatenate([sinc_hann(part, rate, target) for part in parts])
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

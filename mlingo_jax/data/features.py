"""The feature cache: every clip is heard once, its music features are kept, and training needs no audio any more.

A cache is a folder of shards (ArrayRecord) beside a fingerprint of what made them. A shard is written under another
name and then renamed, so it is whole or not there; its last record has the clips and shapes of the others. A clip is
known by its name: changed audio belongs under a new name, or into a new cache.

Axes: K features of a clip, D encoder width, S hidden states, N samples.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from jaxtyping import Float, Float32
from tqdm import tqdm

import mlingo_jax
from mlingo_jax.data.audio import RECEPTIVE_FIELD, AudioSettings
from mlingo_jax.data.lock import alone
from mlingo_jax.data.stored import Audio, read_clip
from mlingo_jax.data.unheard import require_few
from mlingo_jax.errors import UserError

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

Waveform = Float32[np.ndarray, "_"]
Features = Float[np.ndarray, "..."]

# Each record can be read by itself; features are noise to a compressor.
_WRITER_OPTIONS = "group_size:1,uncompressed"
# Features of ten minutes of audio are asked for at once: enough for full batches on a device, 60 MB of waveforms.
_BATCH_SECONDS = 600
_BATCH_CLIPS = 64


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What a cache's features were made with.

    encoder: its identity: name, and checksums of its config and weights, and the dtype it computed in.
    window, seconds, keep_states: how it listened (`mlingo_jax.data.hearing.Ear`).
    sample_rate, normalize: what it was given (`AudioSettings`).
    stored: dtype of the features in the cache, a key of `DTYPES`.
    device, versions: where, and by what software. They change the features by rounding errors alone.
    """

    encoder: dict[str, str]
    window: int
    seconds: float
    keep_states: bool
    sample_rate: int
    normalize: bool
    stored: str
    device: str
    versions: dict[str, str]

    @classmethod
    def of(
        cls,
        encoder: Mapping[str, str],
        audio: AudioSettings,
        *,
        window: int,
        seconds: float,
        keep_states: bool = False,
        stored: str = "float32",
    ) -> "Fingerprint":
        """The fingerprint of features made here and now."""
        versions = {"jax": jax.__version__, "mlingo_jax": mlingo_jax.__version__}
        device = jax.devices()[0].device_kind
        listening = window, seconds, keep_states, audio.sample_rate, audio.normalize
        return cls(dict(encoder), *listening, stored, device, versions)

    def differences(self, other: "Fingerprint", *, ignore: Collection[str] = ()) -> list[str]:
        """What differs, as "field: mine and theirs"; an encoder's name is no difference, its checksums are."""
        mine, theirs = self._flat(), other._flat()
        names = [name for name in {**mine, **theirs} if name.split(".")[0] not in ignore]
        return [f"{n}: {mine.get(n)!r} and {theirs.get(n)!r}" for n in names if mine.get(n) != theirs.get(n)]

    def _flat(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        encoder = {f"encoder.{name}": value for name, value in values.pop("encoder").items() if name != "name"}
        versions = {f"versions.{name}": value for name, value in values.pop("versions").items()}
        return {**encoder, **values, **versions}


class FeatureCache:
    """The music features of many clips, read one by one from the shards in `folder`; safe to use from several threads.

    `damaged` lists shards that cannot be read; their clips count as not heard.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.fingerprint = _read_fingerprint(self.folder)
        self.damaged: list[Path] = []
        self._places: dict[str, tuple[Path, int, tuple[int, ...]]] = {}
        self._reader = functools.lru_cache(maxsize=256)(ArrayRecordReader)
        for shard in sorted(self.folder.glob("*.array_record")):
            shapes = _read_shapes(shard)
            if shapes is None:
                self.damaged.append(shard)
                continue
            self._places.update((name, (shard, i, tuple(shape))) for i, (name, shape) in enumerate(shapes.items()))

    @classmethod
    def open(cls, folder: str | Path, fingerprint: Fingerprint) -> "FeatureCache":
        """Opens a cache for a run whose own features would have this fingerprint.

        Raises UserError if there is none, or if its features are others than the run's; the device and the versions
        they were made with may differ.
        """
        cache = cls(folder)
        cache._require_fit(fingerprint, ignore=("device", "versions"))
        return cache

    def __contains__(self, clip: object) -> bool:
        return clip in self._places

    def __len__(self) -> int:
        return len(self._places)

    def shape(self, clip: str) -> tuple[int, ...]:
        """The shape of a clip's features, (K, D) or (S, K, D). Raises UserError if the clip was not heard."""
        return self._place(clip)[2]

    def __getitem__(self, clip: str) -> Float32[np.ndarray, "..."]:
        """A clip's features, [K, D] or [S, K, D]. Raises UserError if it was not heard or its shard is damaged."""
        shard, position, shape = self._place(clip)
        dtype = DTYPES[self.fingerprint.stored]
        try:
            (record,) = self._reader(str(shard)).read([position])
            return np.frombuffer(record, dtype).reshape(shape).astype(np.float32)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{shard}: this shard of the music features is damaged; delete it and hear again"
            ) from error

    def __reduce__(self) -> tuple[Callable[[Path], "FeatureCache"], tuple[Path]]:
        return FeatureCache, (self.folder,)

    def _require_fit(self, fingerprint: Fingerprint, *, ignore: Collection[str]) -> None:
        differences = self.fingerprint.differences(fingerprint, ignore=ignore)
        if differences:
            raise UserError(
                f"{self.folder}: the music features in this cache are not this run's; there and here are "
                f"{'; '.join(differences)}; name another cache folder to hear the clips anew"
            )

    def _place(self, clip: str) -> tuple[Path, int, tuple[int, ...]]:
        if clip not in self._places:
            raise UserError(f"{self.folder}: there are no music features of {clip!r} in this cache; hear it first")
        return self._places[clip]


def hear(
    clips: Mapping[str, Audio],
    ear: Callable[[Sequence[Waveform]], Sequence[Features]],
    folder: str | Path,
    fingerprint: Fingerprint,
    *,
    minimum: int = RECEPTIVE_FIELD,
    shard_clips: int = 512,
    max_bad_fraction: float = 0.0,
) -> tuple[FeatureCache, dict[str, str]]:
    """Puts the features of all clips that are not there yet into the cache in `folder`, made if need be.

    clips: the audio of each clip. ear: from waveforms as `read_audio` gives them to features. minimum: samples a
    clip must have. A shard holds the clips of `shard_clips` files; after a kill, only the shard in work is heard again.

    Returns the cache, and why each clip that cannot be heard cannot. Raises UserError when these are more than
    `max_bad_fraction` of all clips (all others have been heard by then), when the folder holds features of another
    kind or would get some from another kind of device, when it cannot be written, or while another process hears into
    it.
    """
    folder = Path(folder)
    with alone(folder / ".lock", f"{folder}: another process is hearing clips into this cache; wait until it is done"):
        bad = _hear_missing(clips, ear, folder, fingerprint, minimum, shard_clips)
    require_few(bad.values(), len(clips), max_bad_fraction, f"the other clips' features are kept in {folder}")
    return FeatureCache(folder), bad


def _hear_missing(
    clips: Mapping[str, Audio],
    ear: Callable[[Sequence[Waveform]], Sequence[Features]],
    folder: Path,
    fingerprint: Fingerprint,
    minimum: int,
    shard_clips: int,
) -> dict[str, str]:
    """Hears what is not in the cache yet, shard by shard; returns why each clip that cannot be heard cannot."""
    cache = _open_or_make(folder, fingerprint)
    todo = {name: clip for name, clip in clips.items() if name not in cache}
    if todo:
        # Nothing is added from another kind of device: its rounding would set some clips apart from the others.
        cache._require_fit(fingerprint, ignore=("versions",))
    audio = AudioSettings(fingerprint.sample_rate, fingerprint.normalize)
    bad: dict[str, str] = {}
    with tqdm(desc="hearing", total=len(clips), initial=len(clips) - len(todo), unit="clip", disable=None) as bar:
        names = list(todo)
        for start in range(0, len(names), shard_clips):
            shard = {name: todo[name] for name in names[start : start + shard_clips]}
            heard = _hear_in_batches(read_ahead(shard, audio, minimum), ear, audio.sample_rate, bad, bar)
            _write_shard(folder / f"{_digest(shard)}.array_record", heard, DTYPES[fingerprint.stored])
    return bad


def _hear_in_batches(
    waveforms: Iterable[tuple[str, Waveform | UserError]],
    ear: Callable[[Sequence[Waveform]], Sequence[Features]],
    sample_rate: int,
    bad: dict[str, str],
    bar: tqdm,
) -> Iterator[tuple[str, Features]]:
    """Features in the order of the waveforms; clips that could not be read go to `bad`."""
    batch: dict[str, Waveform] = {}
    for name, waveform in waveforms:
        if isinstance(waveform, UserError):
            bad[name] = str(waveform)
            bar.update()
            continue
        batch[name] = waveform
        if len(batch) == _BATCH_CLIPS or sum(map(len, batch.values())) >= _BATCH_SECONDS * sample_rate:
            yield from zip(batch, ear(list(batch.values())), strict=True)
            bar.update(len(batch))
            batch = {}
    if batch:
        yield from zip(batch, ear(list(batch.values())), strict=True)
        bar.update(len(batch))


def read_ahead(
    clips: Mapping[str, Audio], audio: AudioSettings, minimum: int
) -> Iterator[tuple[str, Waveform | UserError]]:
    """Reads clips in threads, a few ahead of what is asked for, and gives them in order."""

    def read(clip: Audio) -> Waveform | UserError:
        try:
            return read_clip(clip, audio, minimum=minimum)
        except UserError as error:
            return error

    workers = min(os.cpu_count() or 1, 8)
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[str, Future[Waveform | UserError]]] = deque()
        for name, clip in clips.items():
            waiting.append((name, pool.submit(read, clip)))
            if len(waiting) > 2 * workers:
                name, future = waiting.popleft()
                yield name, future.result()
        for name, future in waiting:
            yield name, future.result()


def _write_shard(path: Path, features: Iterable[tuple[str, Features]], dtype: np.dtype) -> None:
    """Writes features and, as the last record, {clip: shape}; no file if there are no features."""
    temporary = path.with_name(f".{path.name}.partial")
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with _writing(path):
            writer = ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
        for name, values in features:
            with _writing(path):
                writer.write(values.astype(dtype).tobytes())
            shapes[name] = values.shape
        with _writing(path):
            writer.write(json.dumps(shapes).encode())
            writer.close()
        if shapes:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise UserError(f"{path}: the music features cannot be written ({error})") from error


def _read_shapes(shard: Path) -> dict[str, list[int]] | None:
    """The shapes in a shard's last record; None if the shard is damaged (a shard that is cut off shows no records)."""
    try:
        reader = ArrayRecordReader(str(shard))
        count = reader.num_records()
        shapes = json.loads(reader.read([count - 1])[0]) if count else {}
    except (RuntimeError, ValueError):
        return None
    return shapes if len(shapes) == count - 1 else None


def _open_or_make(folder: Path, fingerprint: Fingerprint) -> FeatureCache:
    """The cache in a folder, made if need be; shards that are damaged or were never finished are removed."""
    path = folder / "fingerprint.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            temporary = folder / ".fingerprint.partial"
            temporary.write_text(json.dumps(dataclasses.asdict(fingerprint), indent=2) + "\n", encoding="utf-8")
            os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{folder}: the music features cannot be kept there ({error.strerror})") from error
    cache = FeatureCache.open(folder, fingerprint)
    for leftover in [*cache.damaged, *folder.glob(".*.partial")]:
        leftover.unlink()
    return cache


def _read_fingerprint(folder: Path) -> Fingerprint:
    path = folder / "fingerprint.json"
    try:
        return Fingerprint(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no feature cache (no fingerprint.json in it)") from error
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: not a feature cache's fingerprint ({error}); delete the folder to make it anew"
        ) from error


def _digest(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]

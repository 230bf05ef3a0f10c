"""The feature cache: every clip is encoded once, its music features are kept, and training needs no audio any more.

A cache is a folder of shards beside a fingerprint of what made them. A clip is known by its name and a digest of its
audio: where the audio has changed since, or another clip of that name was encoded, the features are not taken for its.

Axes: K features of a clip, D encoder width, S hidden states, C crops of a clip, R records of all shards, N clips.
"""

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from jaxtyping import Float32, Int64

import mlingo_jax
from mlingo_jax.data.audio import AudioSettings
from mlingo_jax.data.contents import UNKNOWN, digest_text, digest_words
from mlingo_jax.data.decoding import Mixdown
from mlingo_jax.data.examples import clip_hash
from mlingo_jax.data.resampling import Resampling
from mlingo_jax.differences import current_names, differences, flatten
from mlingo_jax.errors import UserError
from mlingo_jax.features.crops import Crops
from mlingo_jax.features.shards import DTYPES, Features, Shard, read_shard, shard_paths

FINGERPRINT = "fingerprint.json"
# Of an encoder's identity: what it is called, and what follows from its weights.
NO_DIFFERENCE = ("name", "rounded")


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What a cache's features were made with.

    encoder: its identity: name, and checksums of its config and weights, and the dtype it computed in.
    frames_per_token, seconds, per_layer: how it listened (`mlingo_jax.features.encode.AudioEncoder`); a crop is as long
    as `seconds`.
    sample_rate, normalize, mixdown, resampling: what it was given (`AudioSettings`).
    stored: dtype of the features in the cache, a key of `DTYPES`.
    crops, crop_seed: how many crops of each clip, and which (`mlingo_jax.features.crops`); 0 and 0: clips as a whole.
    crops_before_resampling: cut as MusiLingo's loader does.
    device, versions: where, and by what software. They change the features by rounding errors alone.
    """

    encoder: dict[str, str]
    frames_per_token: int
    seconds: float
    per_layer: bool
    sample_rate: int
    normalize: bool
    stored: str
    device: str
    versions: dict[str, str]
    crops: int = 0
    crop_seed: int = 0
    mixdown: Mixdown = "mean"
    resampling: Resampling = "soxr"
    crops_before_resampling: bool = False

    @classmethod
    def of(
        cls,
        encoder: Mapping[str, str],
        audio: AudioSettings,
        *,
        frames_per_token: int,
        seconds: float,
        per_layer: bool = False,
        stored: str = "float32",
        crops: int = 0,
        crop_seed: int = 0,
    ) -> "Fingerprint":
        """The fingerprint of features made here and now."""
        versions = {"jax": jax.__version__, "mlingo_jax": mlingo_jax.__version__}
        device = jax.devices()[0].device_kind
        encoding_settings = frames_per_token, seconds, per_layer, audio.sample_rate, audio.normalize
        audio_settings = audio.mixdown, audio.resampling, audio.excerpts is not None
        return cls(dict(encoder), *encoding_settings, stored, device, versions, crops, crop_seed, *audio_settings)

    @property
    def fixed_crops(self) -> Crops | None:
        """The crops of a clip that were encoded; None for clips that were encoded as a whole."""
        if not self.crops:
            return None
        return Crops(self.crops, self.seconds, self.crop_seed, self.crops_before_resampling)

    @property
    def audio_settings(self) -> AudioSettings:
        """What the encoder was given."""
        crops = self.fixed_crops
        excerpts = crops.excerpts(self.sample_rate) if crops else None
        return AudioSettings(self.sample_rate, self.normalize, self.mixdown, self.resampling, excerpts)

    @property
    def kind(self) -> str:
        """A digest of all that changes the features by more than rounding."""
        ignored = ("device", "versions", *(f"encoder.{name}" for name in NO_DIFFERENCE))
        values = {name: value for name, value in flatten(dataclasses.asdict(self)) if not name.startswith(ignored)}
        # Caches of before there was a choice are of this kind.
        for name, before in (("mixdown", "mean"), ("resampling", "soxr"), ("crops_before_resampling", False)):
            if values[name] == before:
                del values[name]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def differences(self, other: "Fingerprint", *, ignore: Collection[str] = ()) -> list[str]:
        """What differs, as "field: mine and theirs"; an encoder's name is no difference, its checksums are."""
        changed = differences(dataclasses.asdict(self), dataclasses.asdict(other))
        ignored = {f"encoder.{name}" for name in NO_DIFFERENCE}
        kept = [name for name in changed if name.split(".")[0] not in ignore and name not in ignored]
        return [f"{name}: {changed[name][0]!r} and {changed[name][1]!r}" for name in kept]


class FeatureCache:
    """The music features of many clips, read one by one from the shards in `folder`; safe to use from several threads.

    `damaged` lists shards that cannot be read, and `foreign` those that another encoder or other settings made; their
    clips count as not encoded. A clip is found by a hash of its name: of each, 36 bytes are held.
    """

    def __init__(self, folder: str | Path, versions: Mapping[str, str] | None = None):
        """versions: where other audio was encoded under a clip's name as well, the digest of the clip's own."""
        self.folder = Path(folder)
        self.fingerprint = _read_fingerprint(self.folder)
        self.damaged: list[Path] = []
        self.foreign: list[Path] = []
        self._reader = functools.lru_cache(maxsize=256)(ArrayRecordReader)
        self._shards: list[Path] = []
        self._versions = dict(versions or {})
        # Of all records, in the order of the shards: the clip's hash, its audio's, its shape as a position in `shapes`.
        hashes, digests, kinds = [np.empty(0, np.uint64)], [np.empty((0, 2), np.uint64)], [np.empty(0, np.int32)]
        made = [np.empty(0, np.int64)]
        shapes: dict[tuple[int, ...], int] = {}
        for path in shard_paths(self.folder):
            shard = self._open_shard(path)
            if shard is None:
                continue
            self._shards.append(path)
            hashes.append(np.array([clip_hash(name) for name in shard.names], np.uint64))
            digests.append(np.array([digest_words(digest) for digest in shard.digests], np.uint64))
            kinds.append(np.array([shapes.setdefault(shape, len(shapes)) for shape in shard.shapes], np.int32))
            made.append(np.full(len(shard.names), path.stat().st_mtime_ns, np.int64))
        self._starts = list(itertools.accumulate(map(len, hashes)))
        self._kinds, self._shapes = np.concatenate(kinds), list(shapes)
        self._made = np.concatenate(made)
        # Sorted by clip and audio; the same audio that was encoded twice counts once.
        all_hashes, all_digests = np.concatenate(hashes), np.concatenate(digests)
        order = np.lexsort((all_digests[:, 1], all_digests[:, 0], all_hashes))
        keys = np.column_stack([all_hashes, all_digests])[order]
        self._records = order[np.r_[True, (keys[1:] != keys[:-1]).any(axis=1)][: len(order)]]
        self._hashes, self._digests = all_hashes[self._records], all_digests[self._records]

    @classmethod
    def open(cls, folder: str | Path, fingerprint: Fingerprint) -> "FeatureCache":
        """Opens a cache for a run whose own features would have this fingerprint.

        Raises UserError if there is none, or if its features are others than the run's; the device and the versions
        they were made with may differ.
        """
        cache = cls(folder)
        cache.require_fit(fingerprint, ignore=("device", "versions"))
        return cache

    def require_fit(self, fingerprint: Fingerprint, *, ignore: Collection[str]) -> None:
        """Raises UserError, naming every field that differs, unless its features are those of this fingerprint."""
        differences = self.fingerprint.differences(fingerprint, ignore=ignore)
        if differences:
            raise UserError(
                f"{self.folder}: the music features in this cache are not this run's; there and here are "
                f"{'; '.join(differences)}; name another cache folder to encode the clips anew"
            )

    def __contains__(self, clip: object) -> bool:
        return isinstance(clip, str) and len(self._rows(clip)) > 0

    def __len__(self) -> int:
        """The number of clips."""
        return len(np.unique(self._hashes))

    def holds(self, clips: Sequence[str], digests: Sequence[str], changed: Sequence[int]) -> list[bool]:
        """Whether the features of each clip's own audio are there.

        digests: of the audio; any will do for one that is `UNKNOWN`, for then there is nothing to encode anew. changed:
        when each was written last, ns: features from before their audio was kept count if they are younger.
        """
        first, count = self._ranges(clips)
        words = np.array([digest_words(digest) for digest in digests], np.uint64).reshape(-1, 2)
        same = np.zeros(len(clips), bool)
        # Nearly all: one audio under this name, and it is this.
        same[count == 1] = (self._digests[first[count == 1]] == words[count == 1]).all(axis=1)
        rest = zip(clips, digests, changed, same, strict=True)
        return [bool(known) or self._find(clip, digest, at) is not None for clip, digest, at, known in rest]

    def encoded(self, clips: Sequence[str]) -> list[bool]:
        """Whether anything was encoded under each of these names."""
        return (self._ranges(clips)[1] > 0).tolist()

    def versions(self, clips: Sequence[str], digests: Sequence[str], changed: Sequence[int]) -> dict[str, str]:
        """Which features are meant, for those clips that have several: see `__init__`."""
        of_clip = zip(clips, digests, changed, self._ranges(clips)[1], strict=True)
        found = {clip: self._find(clip, digest, at) for clip, digest, at, count in of_clip if count > 1}
        return {name: self._digest(row) for name, row in found.items() if row is not None}

    def audio(self, clips: Sequence[str]) -> str | None:
        """A digest of the audio that these clips' features are of; None if of some of them nobody kept it."""
        digests = self.digests(clips)
        return None if UNKNOWN in digests else hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def digests(self, clips: Sequence[str]) -> list[str]:
        """The digests of many clips' audio."""
        first, count = self._ranges(clips)
        rows = [row if only == 1 else self._row(clip) for clip, row, only in zip(clips, first, count, strict=True)]
        return [digest_text(words) for words in self._digests[np.array(rows, np.int64)]]

    def is_sole(self, clip: str) -> bool:
        """Whether one audio alone was encoded under a name."""
        return len(self._rows(clip)) == 1

    def digest(self, clip: str) -> str:
        """The digest of the audio that a clip's features are of; `UNKNOWN` if nobody kept it."""
        return self._digest(self._row(clip))

    def shape(self, clip: str) -> tuple[int, ...]:
        """The shape of a clip's features: (K, D) or (S, K, D), with crops (C, K, D) or (C, S, K, D).

        Raises UserError if the clip was not encoded.
        """
        return self._place(clip)[2]

    def __getitem__(self, clip: str) -> Float32[np.ndarray, "..."]:
        """A clip's features, of its `shape`. Raises UserError if it was not encoded or its shard is damaged."""
        return self._read(clip).astype(np.float32)

    def crop(self, clip: str, number: int) -> Float32[np.ndarray, "..."]:
        """The features of one of a clip's crops, [K, D] or [S, K, D]. Raises UserError likewise."""
        crops = self._read(clip)
        # A clip no longer than a crop has a single one.
        return crops[min(number, len(crops) - 1)].astype(np.float32)

    def __reduce__(self) -> tuple[Callable[..., "FeatureCache"], tuple[Path, dict[str, str]]]:
        return FeatureCache, (self.folder, self._versions)

    def _read(self, clip: str) -> Features:
        shard, position, shape = self._place(clip)
        dtype = DTYPES[self.fingerprint.stored]
        try:
            (record,) = self._reader(str(shard)).read([position])
            return np.frombuffer(record, dtype).reshape(shape)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{shard}: this shard of the music features is damaged; move it away and encode again"
            ) from error

    def _place(self, clip: str) -> tuple[Path, int, tuple[int, ...]]:
        """A clip's shard, its position among the shard's records, and its shape."""
        record = int(self._records[self._row(clip)])
        shard = bisect.bisect_right(self._starts, record) - 1
        return self._shards[shard], record - self._starts[shard], self._shapes[self._kinds[record]]

    def _row(self, clip: str) -> int:
        """Which row of the index a clip is."""
        rows = self._rows(clip)
        if not rows:
            raise UserError(f"{self.folder}: there are no music features of {clip!r} in this cache; encode it first")
        if len(rows) == 1:
            return rows[0]
        meant = self._versions.get(clip)
        for row in rows:
            if self._digest(row) == meant:
                return row
        raise UserError(
            f"{self.folder}: different audio was encoded as {clip!r}, and it is not known which is meant: its audio is "
            "not there any more; put it back, or name another cache folder"
        )

    def _ranges(self, clips: Sequence[str]) -> tuple[Int64[np.ndarray, "N"], Int64[np.ndarray, "N"]]:
        """Of each clip the first row of what was encoded under its name, and the number of rows."""
        wanted = np.array([clip_hash(clip) for clip in clips], np.uint64)
        first = self._hashes.searchsorted(wanted)
        return first, self._hashes.searchsorted(wanted, "right") - first

    def _rows(self, clip: str) -> range:
        """The rows of all that was encoded under a name."""
        wanted = np.uint64(clip_hash(clip))
        return range(*(int(self._hashes.searchsorted(wanted, side)) for side in ("left", "right")))

    def _find(self, clip: str, digest: str, changed: int) -> int | None:
        """The row of a clip's own audio: see `holds`."""
        rows = self._rows(clip)
        if digest == UNKNOWN:
            meant = self._versions.get(clip)
            rows = [row for row in rows if len(rows) == 1 or self._digest(row) == meant]
            return rows[0] if rows else None
        for row in rows:
            if self._digest(row) == digest:
                return row
        legacy = (row for row in rows if self._digest(row) == UNKNOWN and changed < self._made[self._records[row]])
        return next(legacy, None)

    def _digest(self, row: int) -> str:
        return digest_text(self._digests[row])

    def _open_shard(self, path: Path) -> Shard | None:
        shard = read_shard(path)
        if shard is None:
            self.damaged.append(path)
        elif shard.kind not in (UNKNOWN, self.fingerprint.kind):
            self.foreign.append(path)
            return None
        return shard


def _read_fingerprint(folder: Path) -> Fingerprint:
    path = folder / FINGERPRINT
    try:
        values = current_names(json.loads(path.read_text(encoding="utf-8")))
        _require_types(values)
        return Fingerprint(**values)
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no feature cache (no {FINGERPRINT} in it)") from error
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"{path}: not a feature cache's fingerprint ({error}); put it back, or name another cache folder"
        ) from error


def _require_types(values: Any) -> None:
    """Raises TypeError for what no fingerprint can be, or has a field of another type: JSON may hold anything."""
    if not isinstance(values, dict):
        raise TypeError(f"expected an object, found {type(values).__name__}")
    types: dict[str, Any] = {"encoder": dict, "versions": dict, "seconds": int | float}
    types |= {"per_layer": bool, "normalize": bool, "stored": str, "device": str}
    types |= dict.fromkeys(("frames_per_token", "sample_rate", "crops", "crop_seed"), int)
    wrong = [n for n, v in values.items() if n in types and not _is(v, types[n])]
    wrong += [n for n in ("encoder", "versions") if n not in wrong and not all(_is(v, str) for v in values[n].values())]
    wrong += ["stored"] if values.get("stored") not in DTYPES else []
    if wrong:
        raise TypeError(", ".join(f"{name} is {values.get(name)!r}" for name in wrong))


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))

"""The feature cache: every clip is encoded once, its music features are kept, and training needs no audio any more.

A cache is a folder of shards beside a fingerprint of what made them. A clip is known by its name: changed audio belongs
under a new name, or into a new cache.

Axes: K features of a clip, D encoder width, S hidden states, C crops of a clip.
"""

import bisect
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import jax
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from jaxtyping import Float32

import mlingo_jax
from mlingo_jax.data.audio import AudioSettings
from mlingo_jax.data.examples import clip_hash
from mlingo_jax.differences import current_names, differences
from mlingo_jax.errors import UserError
from mlingo_jax.features.crops import Crops
from mlingo_jax.features.shards import DTYPES, Features, read_shapes, shard_paths

FINGERPRINT = "fingerprint.json"


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What a cache's features were made with.

    encoder: its identity: name, and checksums of its config and weights, and the dtype it computed in.
    frames_per_token, seconds, per_layer: how it listened (`mlingo_jax.features.encode.AudioEncoder`); a crop is as long
    as `seconds`.
    sample_rate, normalize: what it was given (`AudioSettings`).
    stored: dtype of the features in the cache, a key of `DTYPES`.
    crops, crop_seed: how many crops of each clip, and which (`mlingo_jax.features.crops`); 0 and 0: clips as a whole.
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
        return cls(dict(encoder), *encoding_settings, stored, device, versions, crops, crop_seed)

    @property
    def fixed_crops(self) -> Crops | None:
        """The crops of a clip that were encoded; None for clips that were encoded as a whole."""
        return Crops(self.crops, self.seconds, self.crop_seed) if self.crops else None

    def differences(self, other: "Fingerprint", *, ignore: Collection[str] = ()) -> list[str]:
        """What differs, as "field: mine and theirs"; an encoder's name is no difference, its checksums are."""
        changed = differences(dataclasses.asdict(self), dataclasses.asdict(other))
        kept = [name for name in changed if name.split(".")[0] not in ignore and name != "encoder.name"]
        return [f"{name}: {changed[name][0]!r} and {changed[name][1]!r}" for name in kept]


class FeatureCache:
    """The music features of many clips, read one by one from the shards in `folder`; safe to use from several threads.

    `damaged` lists shards that cannot be read; their clips count as not encoded. A clip is found by a hash of its name:
    of each, 20 bytes are held.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.fingerprint = _read_fingerprint(self.folder)
        self.damaged: list[Path] = []
        self._reader = functools.lru_cache(maxsize=256)(ArrayRecordReader)
        self._shards: list[Path] = []
        # Of all records, in the order of the shards: the clip's hash, and its shape as a position in `shapes`.
        hashes, kinds = [np.empty(0, np.uint64)], [np.empty(0, np.int32)]
        shapes: dict[tuple[int, ...], int] = {}
        for shard in shard_paths(self.folder):
            found = read_shapes(shard)
            if found is None:
                self.damaged.append(shard)
                continue
            self._shards.append(shard)
            hashes.append(np.array([clip_hash(name) for name in found], np.uint64))
            kinds.append(np.array([shapes.setdefault(shape, len(shapes)) for shape in found.values()], np.int32))
        self._starts = list(itertools.accumulate(map(len, hashes)))
        self._hashes, self._records = np.unique(np.concatenate(hashes), return_index=True)
        self._kinds, self._shapes = np.concatenate(kinds), list(shapes)

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
        return isinstance(clip, str) and self._record(clip) is not None

    def __len__(self) -> int:
        return len(self._hashes)

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

    def __reduce__(self) -> tuple[Callable[[Path], "FeatureCache"], tuple[Path]]:
        return FeatureCache, (self.folder,)

    def _read(self, clip: str) -> Features:
        shard, position, shape = self._place(clip)
        dtype = DTYPES[self.fingerprint.stored]
        try:
            (record,) = self._reader(str(shard)).read([position])
            return np.frombuffer(record, dtype).reshape(shape)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{shard}: this shard of the music features is damaged; delete it and encode again"
            ) from error

    def _place(self, clip: str) -> tuple[Path, int, tuple[int, ...]]:
        """A clip's shard, its position among the shard's records, and its shape."""
        record = self._record(clip)
        if record is None:
            raise UserError(f"{self.folder}: there are no music features of {clip!r} in this cache; encode it first")
        shard = bisect.bisect_right(self._starts, record) - 1
        return self._shards[shard], record - self._starts[shard], self._shapes[self._kinds[record]]

    def _record(self, clip: str) -> int | None:
        """Which of all records holds a clip's features."""
        wanted = np.uint64(clip_hash(clip))
        position = self._hashes.searchsorted(wanted)
        there = position < len(self) and self._hashes[position] == wanted
        return int(self._records[position]) if there else None


def _read_fingerprint(folder: Path) -> Fingerprint:
    path = folder / FINGERPRINT
    try:
        return Fingerprint(**current_names(json.loads(path.read_text(encoding="utf-8"))))
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no feature cache (no fingerprint.json in it)") from error
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: not a feature cache's fingerprint ({error}); delete the folder to make it anew"
        ) from error

"""A dataset that `prepare` built: its examples by number, its clips by id; nothing but an index of hashes in memory."""

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt64

from mlingo_jax.data.contents import DIGITS, digest_bytes, digest_text, digest_words
from mlingo_jax.data.examples import clip_hash
from mlingo_jax.data.records import CHECKS, CLIPS, HASHES, NAMES, Clip, read_texts
from mlingo_jax.data.stored import StoredAudio
from mlingo_jax.errors import UserError
from mlingo_jax.wording import counted

PREPARED = "prepared.json"


@dataclass(frozen=True)
class PreparedExample:
    """One question about one clip, with its answer; source: where the text is from."""

    clip: str
    question: str
    answer: str
    source: str


_TEXTS = tuple(field.name for field in fields(PreparedExample))


class PreparedExamples:
    """The examples of one split, in the order of the annotations; read one by one."""

    def __init__(self, records: Any):
        """records: random access to them, serialised."""
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> PreparedExample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return PreparedExample(*read_texts(self._records[index % len(self)], _TEXTS))


class PreparedClips:
    """All clips of a collection, found by id."""

    def __init__(self, folder: str | Path):
        """folder: of the TFDS dataset. Raises UserError if it is not one of clips."""
        self.folder = Path(folder)
        self._hashes = _load_hashes(self.folder)
        self._source = _source(self.folder, CLIPS)
        self._made = (self.folder / HASHES).stat().st_mtime_ns
        if len(self._source) != len(self._hashes):
            raise UserError(
                f"{self.folder}: {counted(len(self._source), 'clip')}, but an index of {len(self._hashes)}; prepare "
                "the dataset again"
            )

    def stored(self, clip: str) -> StoredAudio:
        """A clip's audio, to be read when it is needed."""
        return StoredAudio(self.folder.parent.name, clip, self.audio, self.digest, self._made)

    def audio(self, clip: str) -> bytes:
        """A clip's encoded audio, the very bytes that were measured when it was prepared.

        Raises UserError as `[]` does, and if the record holds others.
        """
        audio = self[clip].audio
        if digest_bytes(audio) != self.digest(clip):
            raise UserError(
                f"{self.folder}: the audio of clip {clip!r} is not what was prepared; prepare the dataset again"
            )
        return audio

    def digest(self, clip: str) -> str:
        """What a clip's audio was when it was prepared (`mlingo_jax.data.contents`); no record is read."""
        if clip not in self:
            raise UserError(f"{self.folder}: there is no clip {clip!r} in this collection")
        return digest_text(self._digests[self._first(clip)])

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, clip: object) -> bool:
        """By its hash alone: no record is read."""
        position = self._first(clip) if isinstance(clip, str) else len(self)
        return position < len(self) and bool(self._hashes[position] == clip_hash(str(clip)))

    def __getitem__(self, clip: str) -> Clip:
        """Raises UserError if there is no such clip."""
        position, wanted = self._first(clip), clip_hash(clip)
        while position < len(self) and self._hashes[position] == wanted:
            record = self._source[position]
            if record["clip"].decode() == clip:
                return Clip(clip, record["audio"], float(record["seconds"]), int(record["rate"]))
            position += 1
        raise UserError(f"{self.folder}: there is no clip {clip!r} in this collection")

    def lengths(self) -> Iterator[tuple[str, float, int]]:
        """(id, seconds, sample rate) of every clip, in the order of the records; no audio is read."""
        with (self.folder / NAMES).open(encoding="utf-8") as file:
            for line in file:
                values = json.loads(line)
                yield values["clip"], values["seconds"], values["rate"]

    def __reduce__(self) -> tuple[Callable[[Path], "PreparedClips"], tuple[Path]]:
        return PreparedClips, (self.folder,)

    @functools.cached_property
    def _digests(self) -> UInt64[np.ndarray, "N 2"]:
        """Of each clip's audio, in the order of the records."""
        checks = _read_checks(self.folder)
        there = [(clip_hash(c["clip"]), c["clip"], c["digest"]) for c in checks if c["status"] == "there"]
        words = [digest_words(digest[:DIGITS]) for _, _, digest in sorted(there)]
        if len(words) != len(self):
            raise UserError(
                f"{self.folder / CHECKS}: {counted(len(words), 'clip')}, but {len(self):,} records; prepare it again"
            )
        return np.array(words, np.uint64).reshape(-1, 2)

    def _first(self, clip: str) -> int:
        return int(np.searchsorted(self._hashes, np.uint64(clip_hash(clip))))


class Prepared:
    """A prepared dataset: `splits` has the number of examples of each, `collection` names its clips."""

    def __init__(self, data_dir: str | Path, name: str):
        """name: the dataset, with its config after a slash if it has configs (`music_instruct/short`).

        Raises UserError if it was not prepared there.
        """
        self._data_dir, self.name = Path(data_dir), name
        self.folder = dataset_folder(self._data_dir, name)
        if not (self.folder / PREPARED).is_file():
            parts = prepared_parts(data_dir, name)
            command = f"do so by `python -m mlingo_jax.prepare {name.partition('/')[0]} --data_dir {data_dir} ...`"
            instead = f"name the part that is: {', '.join(parts)}" if parts else command
            raise UserError(f"{data_dir}: {name} is not prepared there; {instead}")
        values = _read_prepared(self.folder)
        self.splits: dict[str, int] = values["splits"]
        self.collection: str = values["clips"]
        # Datasets from before it was written down have none.
        self._clips_plan: str | None = values.get("clips_plan")

    @functools.cached_property
    def clips(self) -> PreparedClips:
        """The clips that the examples are about, and perhaps more.

        Raises UserError if there are other clips under their names by now.
        """
        folder = dataset_folder(self._data_dir, f"clips/{self.collection}")
        clips = PreparedClips(folder)
        if self._clips_plan is not None and _read_prepared(folder).get("plan") != self._clips_plan:
            self._require_same(clips)
        return clips

    def _require_same(self, clips: PreparedClips) -> None:
        """The collection was prepared anew since: raises UserError if clips that are still there are others."""
        there = {c["clip"]: c["digest"][:DIGITS] for c in _read_checks(self.folder) if c["status"] == "there"}
        changed = [clip for clip, digest in there.items() if clip in clips and clips.digest(clip) != digest]
        if changed:
            raise UserError(
                f"{self.folder}: {counted(len(changed), 'clip')} of {self.collection} changed since {self.name} was "
                f"prepared ({changed[0]}{', ...' if len(changed) > 1 else ''}); prepare {self.name} again"
            )

    def examples(self, split: str) -> PreparedExamples:
        """The examples of a split. Raises UserError if there is no such split."""
        if split not in self.splits:
            raise UserError(f"{self.name}: expected the split {' or '.join(self.splits)}, found {split!r}")
        # Past TFDS's decoding, which is made for tensors: it would take four times as long for four texts.
        return PreparedExamples(_source(self.folder, split).data_source)


def prepared_parts(data_dir: str | Path, dataset: str) -> list[str]:
    """The configs of a dataset that are prepared there, by the names that `Prepared` takes."""
    return sorted(f"{dataset}/{path.parts[-3]}" for path in Path(data_dir, dataset).glob(f"*/*/{PREPARED}"))


def dataset_folder(data_dir: Path, name: str) -> Path:
    """Where TFDS keeps a dataset."""
    return data_dir / name / "1.0.0"


def _read_prepared(folder: Path) -> dict[str, Any]:
    """What `prepare` wrote of a dataset or a collection."""
    try:
        values = json.loads((folder / PREPARED).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder / PREPARED}: missing or damaged ({error}); prepare the dataset again") from error
    if not isinstance(values, dict):
        raise UserError(f"{folder / PREPARED}: damaged; prepare the dataset again")
    return values


def _read_checks(folder: Path) -> list[dict[str, Any]]:
    """What came of the checks of a dataset's or a collection's clips."""
    try:
        with (folder / CHECKS).open(encoding="utf-8") as file:
            checks = [json.loads(line) for line in file]
        if any({"clip", "status", "digest"} - check.keys() for check in checks):
            raise ValueError("not a check")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / CHECKS}: missing or damaged ({error}); prepare the dataset again") from error
    return checks


def _source(folder: Path, split: str) -> Any:
    """Random access to the records of a TFDS dataset, as {feature: value}."""
    builder: Any = tfds.builder_from_directory(folder)
    return builder.as_data_source(split)


def _load_hashes(folder: Path) -> np.ndarray:
    try:
        return np.load(folder / HASHES, mmap_mode="r" if (folder / HASHES).stat().st_size > 4096 else None)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no prepared clips there, or their index is damaged ({error})") from error

"""A feature cache's files: ArrayRecords of clips' features, whole or not there.

A shard is written under another name and then renamed; its last record is JSON and says what the others are: of each
clip its name, its features' shape and the digest of the audio that was encoded, and what made them (a digest of the
cache's fingerprint). Shards from before that have names and shapes alone.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from jaxtyping import Float

from mlingo_jax.data.contents import UNKNOWN
from mlingo_jax.errors import UserError

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

Features = Float[np.ndarray, "..."]

# Each record can be read by itself; features are noise to a compressor.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_FORMAT = 2


@dataclasses.dataclass(frozen=True)
class Shard:
    """What is in a shard, in the order of its records.

    digests: of the audio (`mlingo_jax.data.contents`), `UNKNOWN` in a shard from before they were kept. kind: what made
    the features, likewise.
    """

    path: Path
    names: list[str]
    shapes: list[tuple[int, ...]]
    digests: list[str]
    kind: str


def shard_paths(folder: Path) -> list[Path]:
    """All shards in a folder."""
    return sorted(folder.glob("*.array_record"))


def unfinished(folder: Path) -> list[Path]:
    """The shards that writers which were killed have left in a folder."""
    return sorted(folder.glob(".*.array_record.partial"))


def write_shard(
    folder: Path, planned: Iterable[str], features: Iterable[tuple[str, str, Features]], dtype: np.dtype, kind: str
) -> None:
    """Writes features of the clips that are `planned`, in the order in which they come; no file if there are none.

    features: of each clip its name, the digest of its audio and the features. A shard is named by clips and audio: two
    processes never write one another's, and other audio never takes the place of what a run is reading.

    Raises UserError if they cannot be written; what makes the features may raise what it likes.
    """
    temporary = folder / f".{_digest(planned)}.array_record.partial"
    clips: dict[str, tuple[tuple[int, ...], str]] = {}
    try:
        with _writing(folder):
            writer = ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
        for name, digest, values in features:
            with _writing(folder):
                writer.write(values.astype(dtype).tobytes())
            clips[name] = values.shape, digest
        with _writing(folder):
            writer.write(json.dumps({"format": _FORMAT, "kind": kind, "clips": clips}).encode())
            writer.close()
        if clips:
            path = folder / f"{_digest(f'{name} {digest}' for name, (_, digest) in clips.items())}.array_record"
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_shard(path: Path) -> Shard | None:
    """What is in a shard; None if it is damaged. One that is cut off shows no records."""
    try:
        reader = ArrayRecordReader(str(path))
        count = reader.num_records()
        values = json.loads(reader.read([count - 1])[0]) if count else {}
        # A name that happens to be "format" has a shape.
        if isinstance(values.get("format"), int):
            if values["format"] != _FORMAT:
                raise UserError(f"{path}: written by a later version, in format {values['format']}; use that version")
            kind, clips = values["kind"], values["clips"]
        else:
            kind, clips = UNKNOWN, {name: (shape, UNKNOWN) for name, shape in values.items()}
        shapes = [tuple(shape) for shape, _ in clips.values()]
        digests = [digest for _, digest in clips.values()]
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError):
        return None
    return Shard(path, list(clips), shapes, digests, kind) if len(clips) == count - 1 else None


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise UserError(f"{folder}: the music features cannot be written ({error})") from error

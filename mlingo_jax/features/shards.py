"""A feature cache's files: ArrayRecords of clips' features, whole or not there.

A shard is written under another name and then renamed; its last record has the clips and shapes of the others.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from jaxtyping import Float

from mlingo_jax.errors import UserError

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

Features = Float[np.ndarray, "..."]

# Each record can be read by itself; features are noise to a compressor.
_WRITER_OPTIONS = "group_size:1,uncompressed"


def shard_path(folder: Path, clips: Iterable[str]) -> Path:
    """Where the shard of these clips belongs: named by them, so that two processes never write one another's."""
    digest = hashlib.sha256("\n".join(clips).encode()).hexdigest()
    return folder / f"{digest[:16]}.array_record"


def shard_paths(folder: Path) -> list[Path]:
    """All shards in a folder."""
    return sorted(folder.glob("*.array_record"))


def unfinished(folder: Path) -> list[Path]:
    """The shards that writers which were killed have left in a folder."""
    return sorted(folder.glob(".*.array_record.partial"))


def write_shard(path: Path, features: Iterable[tuple[str, Features]], dtype: np.dtype) -> None:
    """Writes features in the order in which they come; no file if there are none.

    Raises UserError if they cannot be written; what makes the features may raise what it likes.
    """
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


def read_shapes(shard: Path) -> dict[str, tuple[int, ...]] | None:
    """Each clip's shape, in the order of the records; None if the shard is damaged.

    One that is cut off shows no records.
    """
    try:
        reader = ArrayRecordReader(str(shard))
        count = reader.num_records()
        shapes = json.loads(reader.read([count - 1])[0]) if count else {}
    except (RuntimeError, ValueError):
        return None
    return {name: tuple(shape) for name, shape in shapes.items()} if len(shapes) == count - 1 else None


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise UserError(f"{path}: the music features cannot be written ({error})") from error

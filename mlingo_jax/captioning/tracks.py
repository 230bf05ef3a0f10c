"""The tracks of a catalogue: files, or a list of them in a text file or a column of Parquet, with ids."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow.parquet as pq
from pyarrow import ArrowException

from mlingo_jax.errors import UserError

# Rows of Parquet in memory at a time.
BATCH = 4096


@dataclass(frozen=True, slots=True)
class Track:
    """An audio file, and its id where the catalogue gives one."""

    path: str
    id: str | None = None

    @property
    def columns(self) -> dict[str, Any]:
        """How the output's lines name it."""
        return {"file": self.path} if self.id is None else {"file": self.path, "id": self.id}


@runtime_checkable
class Tracks(Protocol):
    """Tracks in an order that stays."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Track]: ...


@dataclass(frozen=True)
class Files:
    """Files that have been found."""

    paths: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Track]:
        return map(Track, self.paths)


@dataclass(frozen=True)
class TextList:
    """A text file of one path a line, or an id, a tab and a path; a relative path is below the list's folder."""

    file: Path

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Track]:
        with self.file.open(encoding="utf-8", errors="surrogateescape") as lines:
            for line in map(str.strip, lines):
                if line:
                    name, tab, path = line.partition("\t")
                    yield _track(self.file, path, name) if tab else _track(self.file, line, None)


@dataclass(frozen=True)
class ParquetList:
    """A Parquet file with a column of paths, and maybe one of ids."""

    file: Path
    paths: str
    ids: str | None

    def __len__(self) -> int:
        with pq.ParquetFile(self.file) as table:
            return table.metadata.num_rows

    def __iter__(self) -> Iterator[Track]:
        columns = [self.paths] if self.ids is None else [self.paths, self.ids]
        with pq.ParquetFile(self.file) as table:
            for batch in table.iter_batches(BATCH, columns=columns):
                ids = batch[self.ids].to_pylist() if self.ids else [None] * len(batch)
                for number, (path, name) in enumerate(zip(batch[self.paths].to_pylist(), ids, strict=True)):
                    if not isinstance(path, str):
                        raise UserError(f"{self.file}: column {self.paths!r} has {path!r} (row {number} of a batch)")
                    yield _track(self.file, path, None if name is None else str(name))


def read_list(file: Path, paths: str, ids: str | None) -> Tracks:
    """A list of tracks: Parquet by its ending, else text.

    Raises:
        UserError: it is not there, not Parquet, has no such column, or is empty.
    """
    try:
        if file.suffix != ".parquet":
            tracks = TextList(file)
        else:
            with pq.ParquetFile(file) as table:
                names = table.schema_arrow.names
            for column in filter(None, (paths, ids)):
                if column not in names:
                    raise UserError(f"{file}: no column {column!r}; it has {', '.join(names)}: give --path_column")
            tracks = ParquetList(file, paths, ids)
        if not len(tracks):
            raise UserError(f"{file}: names no file")
    except (OSError, ArrowException) as error:
        raise UserError(f"{file}: cannot be read as a list of files ({error})") from error
    return tracks


def _track(source: Path, path: str, name: str | None) -> Track:
    return Track(str(source.parent / path), name)

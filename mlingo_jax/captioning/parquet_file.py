"""Answers as a folder of Parquet files, which any Arrow tool reads as one table, for catalogues of millions.

    captions.parquet/part-000000.parquet, part-000001.parquet, ...    each whole, or not there
    captions.parquet/_pending.jsonl                                   the rows of the next part; tools pass over it

A killed command loses no row: what is pending is on the disk as lines, and becomes a part when there are enough.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mlingo_jax.errors import UserError
from mlingo_jax.files import atomic_replace
from mlingo_jax.inference.answer_file import AnswerFile, Key, as_text, key

# Rows of a part.
PART = 8192
_PART = pa.struct(
    [("start", pa.float64()), ("end", pa.float64()), ("answer", pa.string()), ("finish_reason", pa.string())]
)
_FIELD = pa.struct([("answer", pa.string()), ("likelihood", pa.float64())])


class ParquetAnswers:
    """A folder of answers, open for appending: what `AnswerFile` is for jsonl. A context manager.

    Raises:
        UserError: the folder was made with other settings, is none of answers, or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        asked: Iterable[Key],
        *,
        fields: Sequence[str] = (),
        sections: bool = False,
        rows: int = PART,
    ):
        self._folder, self._rows = path, rows
        self._schema = schema(fields, sections)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be a folder of Parquet files ({error.strerror})") from error
        parts = self._parts()
        # Both this and the pending lines may have errors that are to be tried again.
        keys = list(asked) if any(_has_errors(part) for part in parts) else asked
        self._pending = AnswerFile(path / "_pending.jsonl", settings, keys, begun=bool(parts))
        self.done: set[Key] = set()
        again = set(keys) if isinstance(keys, list) else set()
        for part in parts:
            self._read_part(part, again)
        rows_kept = [row for row in self._pending.read() if key(row["file"], row["question"]) not in self.done]
        self.done |= self._pending.done
        self._waiting = rows_kept
        self._number = 1 + max((int(part.stem.removeprefix("part-")) for part in parts), default=-1)

    def write(self, *lines: Mapping[str, Any]) -> None:
        """Takes rows; they are on their way to the disk when this returns."""
        self._pending.write(*lines)
        self._waiting += [dict(line) for line in lines]
        if len(self._waiting) >= self._rows:
            self._flush()

    def __enter__(self) -> "ParquetAnswers":
        return self

    def __exit__(self, *error: object) -> None:
        if self._waiting and error[0] is None:
            self._flush()
        self._pending.__exit__()

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob("part-*.parquet"))

    def _flush(self) -> None:
        part = self._folder / f"part-{self._number:06d}.parquet"
        try:
            with atomic_replace(part) as partial:
                pq.write_table(pa.Table.from_pylist([_utf8(row) for row in self._waiting], self._schema), partial)
            self._pending.clear()
        except OSError as error:
            raise UserError(
                f"{part}: cannot be written ({error.strerror}); the same command resumes from there"
            ) from error
        self._waiting = []
        self._number += 1

    def _read_part(self, part: Path, again: set[Key]) -> None:
        """Notes what a part has answers to; its errors that are to be tried again are dropped."""
        table = _read(part, ["file", "question", "error"])
        columns = (table[name].to_pylist() for name in ("file", "question", "error"))
        kept = []
        for file, question, error in zip(*columns, strict=True):
            found = key(file, question)
            if error is None:
                self.done.add(found)
            kept.append(error is None or found not in again)
        if not all(kept):
            with atomic_replace(part) as partial:
                pq.write_table(_read(part, None).filter(pa.array(kept)), partial)


def schema(fields: Sequence[str], sections: bool) -> pa.Schema:
    """The table's columns; a row has those that its line has, the others are null."""
    columns = [
        ("file", pa.string()),
        ("id", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("finish_reason", pa.string()),
        ("seconds", pa.float64()),
        ("error", pa.string()),
    ]
    if sections:
        columns.append(("sections", pa.list_(_PART)))
    if fields:
        columns.append(("fields", pa.struct([(name, _FIELD) for name in fields])))
    return pa.schema(columns)


def _read(part: Path, columns: list[str] | None) -> pa.Table:
    try:
        return pq.read_table(part, columns=columns, partitioning=None)  # pyright: ignore[reportArgumentType]
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{part}: not a part of a folder of answers ({error}); give another --output") from error


def _has_errors(part: Path) -> bool:
    return _read(part, ["error"])["error"].null_count < len(_read(part, ["error"]))


def _utf8(row: Mapping[str, Any]) -> dict[str, Any]:
    # Parquet holds UTF-8 alone.
    return {**row, "file": as_text(row["file"])}

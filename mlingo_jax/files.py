"""How files are read, replaced and locked: a file is there whole or as it was before, whatever ends the process."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlingo_jax.errors import UserError


def write_atomic(path: Path, pieces: Iterable[str]) -> None:
    """Writes a text file of these pieces, in place of the one that is there.

    What makes the pieces must not raise an OSError of its own.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with atomic_replace(path) as partial, partial.open("w", encoding="utf-8") as file:
            file.writelines(pieces)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


@contextlib.contextmanager
def atomic_replace(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file to; it takes the place of `path` if all goes well, or else is removed."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        # A file system may bring the new name to the disk before the data: a power cut would leave an empty file.
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: the file is not there, or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON object for people to read.

    Raises:
        UserError: it cannot be written.
    """
    write_atomic(path, [json.dumps(values, indent=2, ensure_ascii=False), "\n"])


@contextlib.contextmanager
def exclusive_lock(lock: Path, busy: str) -> Iterator[None]:
    """Holds a lock file, made if need be; the system lets go of it when the process ends, however it ends.

    Raises:
        UserError: with the message `busy` if another process holds it; or it cannot be made.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    except OSError as error:
        raise UserError(f"{lock.parent}: cannot be written ({error.strerror})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(busy) from error
        yield

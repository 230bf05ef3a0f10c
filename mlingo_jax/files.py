"""How files are read, replaced and locked: a file is there whole or as it was before, whatever ends the process."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlingo_jax.errors import UserError

# What git puts in place of a large file that it has not downloaded.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


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
        refuse_pointer(path)
        # Windows' editors begin a file with a byte-order mark.
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
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


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal. Raises `OSError` if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_pointer(path: Path) -> None:
    """Raises `UserError` if a file is git-LFS's stand-in for one that was not downloaded."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(
                f"{path}: is a git-LFS pointer, not the file itself; run `git lfs pull` in its folder, or get the "
                "model with `hf download`"
            )


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

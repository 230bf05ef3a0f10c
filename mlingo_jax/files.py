"""Files that are there whole or as they were before, whatever ends the process that writes them."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from mlingo_jax.errors import UserError


def write_atomic(path: Path, pieces: Iterable[str]) -> None:
    """Writes a text file of these pieces, in place of the one that is there.

    Raises UserError if it cannot be written; what makes the pieces must not raise an OSError of its own.
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

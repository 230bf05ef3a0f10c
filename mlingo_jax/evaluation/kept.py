"""What was computed or paid for, kept as it comes: a jsonl file that a killed command goes on with."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlingo_jax.errors import UserError


class Kept:
    """Results by their keys, each on its way to the disk as soon as it is added. A context manager.

    A key says all that its result depends on, so results of other settings do no harm: they are not asked for. A last
    line that was cut off by a kill is dropped. With `writes` false, for all but the first of several processes, what
    is there is read and nothing is written.
    """

    def __init__(self, path: Path, *, writes: bool = True):
        """Raises UserError if the file holds something else, or cannot be written."""
        self.path, self.writes = path, writes
        self._values = _read(path, repair=writes) if path.exists() else {}
        self._file = None
        if writes:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = path.open("ab")
            except OSError as error:
                raise UserError(f"{path}: cannot be written ({error.strerror})") from error

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Mapping[str, Any]:
        return self._values[key]

    def __len__(self) -> int:
        return len(self._values)

    def add(self, key: str, values: Mapping[str, Any]) -> None:
        """Raises UserError if it cannot be written."""
        self._values[key] = values
        if self._file is None:
            return
        try:
            line = json.dumps({"key": key, **values}, ensure_ascii=False)
            # A file name that is not UTF-8 holds lone surrogates, which become JSON's own escapes.
            self._file.write(line.encode("utf-8", "backslashreplace") + b"\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); what is there is kept, and the same command "
                "resumes from it"
            ) from error

    def __enter__(self) -> "Kept":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _read(path: Path, *, repair: bool) -> dict[str, Mapping[str, Any]]:
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if repair and len(whole) < len(data):
        os.truncate(path, len(whole))
    values: dict[str, Mapping[str, Any]] = {}
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        try:
            fields = json.loads(line)
            values[fields.pop("key")] = fields
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}:{number}: not one of this command's results; move the file away, or give another --output"
            ) from error
    return values

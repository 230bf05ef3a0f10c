"""All requests and their replies, as they came: a jsonl file that is only ever appended to.

A line is {"key", "role", "endpoint", "request", "status", "response"}: the request's body as it was sent, and the
server's response to it. A reply is on the disk before anything is made of it, so none is asked for twice.
"""

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlingo_jax.errors import UserError
from mlingo_jax.instruction.requests import UNANSWERED, Reply, Request, Role, read_reply

# A power cut may take the replies of so many seconds; a kill takes none.
_SYNC_SECONDS = 1.0
_OK = 200


class Journal:
    """The file as an index of keys; a reply is read when it is asked for."""

    def __init__(self, path: Path):
        """Opens the file if it is there. A last line that was cut off is no reply, and is left out.

        Raises UserError for a line in its middle that is none of a journal.
        """
        self.path = path
        self._offsets: dict[str, int] = {}
        if path.exists():
            for offset, line in _whole_lines(path):
                self.note(_parse(line, path, offset)["key"], offset)

    def __contains__(self, key: object) -> bool:
        return key in self._offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def note(self, key: str, offset: int) -> None:
        """A reply has been appended at this offset; if there is one to the same request, that one stays."""
        self._offsets.setdefault(key, offset)

    def line(self, key: str) -> dict[str, Any]:
        """The line of a request that is there."""
        with self.path.open("rb") as file:
            file.seek(self._offsets[key])
            return _parse(file.readline(), self.path, self._offsets[key])

    def reply(self, request: Request) -> Reply:
        """The reply to a request, or UNANSWERED."""
        if request.key not in self._offsets:
            return UNANSWERED
        line = self.line(request.key)
        if line["status"] != _OK:
            return Reply("", f"refused by the server ({line['status']}): {line['response']}")
        return read_reply(line["response"], line["request"])


class Writer:
    """Appends to a journal. Threads may share it; processes may not."""

    def __init__(self, path: Path):
        """Takes off a last line that was cut off by a kill. Raises UserError if the file cannot be written."""
        self._path = path
        self._lock, self._synced = threading.Lock(), time.monotonic()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            self._end = sum(len(line) for _, line in _whole_lines(path))
            os.ftruncate(self._file, self._end)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from error

    def append(
        self, key: str, role: Role, endpoint: str, body: Mapping[str, Any], status: int, response: Any, secret: str
    ) -> int:
        """Appends a line in which `secret` does not appear; the offset where it begins."""
        values = {"key": key, "role": role, "endpoint": endpoint, "request": body}
        text = json.dumps({**values, "status": status, "response": response}, ensure_ascii=False)
        data = _without(text, secret).encode("utf-8", "backslashreplace") + b"\n"
        with self._lock:
            offset = self._end
            try:
                self._write(data)
            except OSError as error:
                os.ftruncate(self._file, offset)
                raise UserError(f"{self._path}: cannot be written ({error.strerror})") from error
            self._end += len(data)
            return offset

    def close(self) -> None:
        os.fsync(self._file)
        os.close(self._file)

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._file, data) :]
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            os.fsync(self._file)
            self._synced = time.monotonic()


def _without(text: str, secret: str) -> str:
    return text.replace(secret, "***") if secret else text


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of each line that was written to its end."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield offset, line
            offset += len(line)


def _parse(line: bytes, path: Path, offset: int) -> dict[str, Any]:
    try:
        values = json.loads(line)
        if {"key", "request", "status", "response"} <= set(values):
            return values
    except (ValueError, TypeError):
        pass
    raise UserError(f"{path}: no request and reply in the line at byte {offset:,}; it is damaged, or another's file")

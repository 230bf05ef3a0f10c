"""Requests as files: OpenAI's Batch API and `vllm run-batch` take them, cheaper or without a server.

A line is {"custom_id", "method", "url", "body"}; what comes back is {"custom_id", "response": {"status_code", "body"},
"error"}, in any order.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlingo_jax.data.annotations import read_jsonl
from mlingo_jax.errors import UserError
from mlingo_jax.files import write_atomic
from mlingo_jax.instruction.journal import Journal, Writer
from mlingo_jax.instruction.requests import Dialect, Request, read_reply

# What the Batch API takes at most.
_MOST_LINES, _MOST_BYTES = 50_000, 200 << 20
# One request alone is at fault.
_REFUSED = (400, 413, 422)
_URL = "/v1/chat/completions"


def write_batch(requests: Iterable[Request], path: Path, dialect: Dialect) -> tuple[list[Path], int]:
    """Writes requests to `path`, or, if they are too many for one file, to NAME-2.jsonl and so on. (files, requests).

    Raises UserError if they cannot be written.
    """
    lines = _Lines(_line(request, dialect) for request in requests)
    files: list[Path] = []
    while not lines.done:
        files.append(path if not files else path.with_name(f"{path.stem}-{len(files) + 1}{path.suffix}"))
        write_atomic(files[-1], lines.of_one_file())
    return files, lines.taken


def read_batch(
    path: Path, requests: Iterable[Request], dialect: Dialect, journal: Journal, writer: Writer
) -> Counter[str]:
    """Takes the replies of a file of results into the journal.

    requests: those that the journal has no reply to. Counts "read", "failed" (these are asked again) and "other": known
    before, or of another run. Raises UserError for lines that are no results.
    """
    places = dict(_results(path))
    counts: Counter[str] = Counter()
    with path.open("rb") as file:
        for request in requests:
            if request.key not in places:
                continue
            file.seek(places.pop(request.key))
            line = json.loads(file.readline())
            status, body = _outcome(line)
            if status is None:
                counts["failed"] += 1
            else:
                name = f"batch {path.name}"
                offset = writer.append(request.key, request.role, name, dialect.body(request), status, body, "")
                journal.note(request.key, offset)
                counts["read"] += 1
    counts["other"] = len(places)
    return counts


class _Lines:
    """Lines, dealt out to files that are not too large."""

    def __init__(self, lines: Iterable[str]):
        self._lines = iter(lines)
        self._upcoming = next(self._lines, None)
        self.taken = 0

    @property
    def done(self) -> bool:
        return self._upcoming is None

    def of_one_file(self) -> Iterator[str]:
        count = size = 0
        while (line := self._upcoming) is not None and count < _MOST_LINES:
            size += len(line.encode())
            if size > _MOST_BYTES and count:
                return
            yield line
            count, self.taken = count + 1, self.taken + 1
            self._upcoming = next(self._lines, None)


def _results(path: Path) -> Iterator[tuple[str, int]]:
    """(custom_id, offset of the line) of each result."""
    for where, line in read_jsonl(path):
        if "custom_id" not in line or not ({"response", "error"} & set(line)):
            raise UserError(f"{where}: no result of a batch: expected custom_id, response and error")
    with path.open("rb") as file:
        offset = 0
        for line in file:
            if line.strip():
                yield str(json.loads(line)["custom_id"]), offset
            offset += len(line)


def _outcome(line: Mapping[str, Any]) -> tuple[int | None, Any]:
    """(status, body or message) of a result; no status if it may fare better when it is asked again."""
    response = line.get("response") or {}
    status, body = response.get("status_code"), response.get("body")
    if status in _REFUSED:
        return status, json.dumps(body)[:300]
    return (200, body) if not line.get("error") and status == 200 and _is_reply(body) else (None, None)


def _is_reply(body: Any) -> bool:
    try:
        read_reply(body, {})
    except ValueError:
        return False
    return True


def _line(request: Request, dialect: Dialect) -> str:
    line = {"custom_id": request.key, "method": "POST", "url": _URL, "body": dialect.body(request)}
    return json.dumps(line, ensure_ascii=False) + "\n"

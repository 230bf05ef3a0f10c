"""Answers as a jsonl file that a killed command resumes with: whole lines only, nothing twice, one set of settings."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mlingo_jax.differences import current_names, differences
from mlingo_jax.errors import UserError
from mlingo_jax.files import atomic_replace, read_json, write_atomic
from mlingo_jax.wording import counted

Key = int


def key(file: str, question: str) -> Key:
    """What stands for a file and a question in memory: 64 bits, for there may be millions."""
    text = f"{as_text(file)}\0{question}".encode("utf-8", "backslashreplace")
    return int.from_bytes(blake2b(text, digest_size=8).digest())


def as_text(name: str) -> str:
    """A file's name with escapes in place of bytes that are not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class AnswerFile:
    """A jsonl file of one object per file and question, open for appending. A context manager.

    A line is {"file", "question", "answer", ...}, or {"file", "question", "error"} where the file could not be read.
    `settings` (what the answers depend on: weights, prompt, options) are kept beside it in NAME.settings.json.

    Opened again, a last line that was cut off is dropped, and so are the errors of `asked`: they are tried once more.
    `done` holds the keys of those that have an answer.

    Raises:
        UserError: the file was made with other settings, is not a file of answers, or cannot be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], asked: Iterable[Key], *, begun: bool = False):
        self.path = path
        self.done: set[Key] = set()
        check_output(path)
        try:
            if begun or (path.exists() and path.stat().st_size):
                self._require_settings(settings)
                self._keep_answers(asked)
            else:
                write_atomic(self._settings_path, [json.dumps(settings, indent=2), "\n"])
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise self._cannot_write(error) from error

    def write(self, *lines: Mapping[str, Any]) -> None:
        """Appends lines; they are on their way to the disk when this returns."""
        try:
            _write_all(self._file, b"".join(map(_encode, lines)))
        except OSError as error:
            raise self._cannot_write(error) from error

    def read(self) -> list[dict[str, Any]]:
        """All lines that are there."""
        with self.path.open("rb") as file:
            return [json.loads(line) for line in file]

    def clear(self) -> None:
        """Empties the file."""
        os.ftruncate(self._file, 0)

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    @property
    def _settings_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.settings.json")

    def _cannot_write(self, error: OSError) -> UserError:
        kept = f"; it keeps {counted(len(self.done), 'answer')}" if self.done else ""
        return UserError(
            f"{self.path}: cannot be written ({error.strerror}){kept}; the same command resumes from there"
        )

    def _require_settings(self, settings: Mapping[str, Any]) -> None:
        try:
            before = current_names(read_json(self._settings_path))
        except UserError as error:
            raise UserError(
                f"{self.path}: there already, but not what it was made with ({self._settings_path.name} is missing or "
                "broken); give another --output, or delete it"
            ) from error
        if changed := differences(before, json.loads(json.dumps(settings))):
            listed = "; ".join(f"{name} was {a!r} and is {b!r}" for name, (a, b) in changed.items())
            raise UserError(f"{self.path}: made with other settings: {listed}; give another --output, or delete it")

    def _keep_answers(self, asked: Iterable[Key]) -> None:
        failed: set[Key] = set()
        cut = False
        for line, number in self._lines():
            if not line.endswith(b"\n"):
                cut = True
                break
            found, has_failed = self._read_line(line, number)
            (failed if has_failed else self.done).add(found)
        again = failed.intersection(asked) if failed else failed
        if cut or again:
            with atomic_replace(self.path) as partial, partial.open("wb") as file:
                file.writelines(self._kept_lines(again))

    def _kept_lines(self, again: set[Key]) -> Iterator[bytes]:
        for line, number in self._lines():
            if line.endswith(b"\n"):
                found, has_failed = self._read_line(line, number)
                if not (has_failed and found in again):
                    yield line

    def _lines(self) -> Iterator[tuple[bytes, int]]:
        if self.path.exists():
            with self.path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    yield line, number

    def _read_line(self, line: bytes, number: int) -> tuple[Key, bool]:
        """The line's file and question, and whether it is an error."""
        try:
            values = json.loads(line)
            return key(values["file"], values["question"]), "error" in values
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f'{self.path}:{number}: not an answer ({{"file", "question", ...}}); give another --output'
            ) from error


def check_output(path: Path) -> None:
    """Raises a `UserError` if the file cannot be one to write to; makes its folder."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file for the answers in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be made ({error.strerror}); give another place") from error
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"{path}: cannot be written (no permission); give another place")


def _encode(line: Mapping[str, Any]) -> bytes:
    # A file name that is not UTF-8 holds lone surrogates, which "backslashreplace" writes as JSON's own escapes.
    return json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]

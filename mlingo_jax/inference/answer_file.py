"""Answers as a jsonl file that a killed command resumes with: whole lines only, nothing twice, one set of settings."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlingo_jax.differences import current_names, differences
from mlingo_jax.errors import UserError
from mlingo_jax.files import atomic_replace, read_json, write_atomic
from mlingo_jax.wording import counted

Key = tuple[str, str]


class AnswerFile:
    """A jsonl file of one object per file and question, open for appending. A context manager.

    A line is {"file", "question", "answer", ...}, or {"file", "question", "error"} where the file could not be read.
    `settings` (what the answers depend on: weights, prompt, options) are kept beside it in NAME.settings.json.

    Opened again, a last line that was cut off is dropped, and so are the errors of `asked`: they are tried once more.
    `done` holds the (file, question) pairs that have an answer.

    Raises:
        UserError: the file was made with other settings, is not a file of answers, or cannot be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], asked: set[Key]):
        self.path = path
        self.done: set[Key] = set()
        check_output(path)
        try:
            if path.exists() and path.stat().st_size:
                self._require_settings(settings)
                self._keep_answers(asked)
            else:
                write_atomic(self._settings_path, [json.dumps(settings, indent=2), "\n"])
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise self._cannot_write(error) from error

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends a line; it is on its way to the disk when this returns."""
        try:
            _write_all(self._file, _encode(line))
        except OSError as error:
            raise self._cannot_write(error) from error

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

    def _keep_answers(self, asked: set[Key]) -> None:
        dropped = False
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    dropped = True
                    break
                key, failed = self._read_line(line, number)
                if not failed:
                    self.done.add(key)
                dropped |= failed and key in asked
        if dropped:
            with atomic_replace(self.path) as partial, partial.open("wb") as file:
                file.writelines(self._kept_lines(asked))

    def _kept_lines(self, asked: set[Key]) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    key, failed = self._read_line(line, number)
                    if not (failed and key in asked):
                        yield line

    def _read_line(self, line: bytes, number: int) -> tuple[Key, bool]:
        """The line's file and question, and whether it is an error."""
        try:
            values = json.loads(line)
            return (values["file"], values["question"]), "error" in values
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

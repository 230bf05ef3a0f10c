"""Files of answers, ours and others': the format is seen from the fields.

- A table (jsonl, json or csv): a reference (`reference`, `correct_answer`, ...) and an answer (`answer`, `response`,
  ...), and perhaps clip, question and source.
- `caption`'s jsonl: `file`, `question`, `answer`; the references are in a dataset or manifest.
- CMI-Bench: `question`, `response`, `correct_answer`, `audioid`; one JSON list, whatever the file's name says.
- MuChoMusic: `answers`, `answer_orders`, `model_output`.
- RUListening: `letter_mapping` and `model_output`, or `passes` of them.
- MMAU, MMAR and any other choice: `choices`, `answer`, and `model_output`, `model_prediction`, `answer_prediction`, ...
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlingo_jax.data.annotations import items, read_csv, read_json, read_jsonl
from mlingo_jax.errors import UserError
from mlingo_jax.evaluation.answers import Answer

Rows = list[tuple[str, Mapping[str, Any]]]
"""("file:line", fields) of each row."""

# By which names a field goes, the likelier first. A name that means the truth is never taken for the answer.
REFERENCE = ("reference", "correct_answer", "ground_truth", "target", "label")
ANSWER = ("model_output", "model_prediction", "answer_prediction", "response", "prediction", "candidate", "answer")
CLIP = ("clip", "audioid", "audio_id", "file", "audio", "audio_path", "audio_name", "ytid", "id")
QUESTION = ("question", "instruction", "prompt")
SOURCE = ("source", "dataset")


CHOICES = ("muchomusic", "rul", "choices")
"""The formats of answers to multiple-choice questions."""


@dataclasses.dataclass(frozen=True)
class AnswerFile:
    """A file's rows and what they are: "table", "caption", "cmi_bench", "muchomusic", "rul" or "choices"."""

    path: Path
    format: str
    rows: Rows


def read_file(path: Path) -> AnswerFile:
    """Reads a file of answers, and sees its format from the first row's fields.

    Raises:
        UserError: it is missing, empty or damaged, or no known format has such fields.
    """
    rows = list(read_rows(path))
    return AnswerFile(path, _format(rows[0][1], rows[0][0]), rows)


def read_table(file: AnswerFile) -> list[Answer]:
    """The answers of a table, of CMI-Bench or of `caption` (these without references; lines of errors are left out).

    A row that names no clip is taken for one about a clip of its own.

    Raises:
        UserError: a row lacks a field that the first one has.
    """
    fields = file.rows[0][1]
    reference = None if file.format == "caption" else _name(fields, REFERENCE)
    answer = "answer" if file.format == "caption" else _name(fields, ANSWER)
    clip, question, source = (_name(fields, names) for names in (CLIP, QUESTION, SOURCE))
    assert answer is not None
    answers = []
    for number, (where, row) in enumerate(file.rows, 1):
        if file.format == "caption" and "error" in row:
            continue
        answers.append(
            Answer(
                clip=_text(row, clip, where) if clip else f"row {number}",
                question=_text(row, question, where) if question else "",
                reference=_text(row, reference, where) if reference else "",
                answer=_text(row, answer, where),
                source=_text(row, source, where) if source else "",
                where=where,
            )
        )
    if not answers:
        raise UserError(f"{file.path}: no answers in it, only errors")
    return answers


def read_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """("file:line", fields) of each row of a csv, a jsonl or a JSON list. Raises UserError for none of these."""
    if path.suffix == ".csv":
        rows = list(read_csv(path, ()))
        if not rows:
            raise UserError(f"{path}: no rows below the header")
        return iter(rows)
    if _starts_a_list(path):
        return items(read_json(path), str(path))
    return read_jsonl(path)


def _starts_a_list(path: Path) -> bool:
    """Whether the file is one JSON list (CMI-Bench's .jsonl files are)."""
    try:
        with path.open("rb") as file:
            return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def _format(fields: Mapping[str, Any], where: str) -> str:
    names = set(fields)
    answer, reference = _name(fields, ANSWER), _name(fields, REFERENCE)
    if names >= {"answers", "answer_orders", "model_output"}:
        return "muchomusic"
    if "passes" in names or "letter_mapping" in names:
        return "rul"
    if "choices" in names and answer not in (None, "answer"):
        return "choices"
    if names >= {"response", "correct_answer", "audioid"}:
        return "cmi_bench"
    if answer and reference:
        return "table"
    if names >= {"file", "question"} and names & {"answer", "error"}:
        return "caption"
    raise UserError(
        f"{where}: not answers of a known format: found the fields {', '.join(map(str, fields)) or 'none'}; expected "
        f"one of {', '.join(REFERENCE)} beside one of {', '.join(ANSWER)}, or a file of `caption`, CMI-Bench, "
        "MuChoMusic, RUListening, MMAU or MMAR"
    )


def _name(fields: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in fields), None)


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    """A field's text; of a list its first item, as CMI-Bench writes some truths, and a number spelled out."""
    if name not in row:
        raise UserError(f"{where}: the field {name} is missing; the rows before have it")
    value = row[name]
    if isinstance(value, list) and value:
        value = value[0]
    if value is None:
        return ""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise UserError(f"{where}: expected a text in {name!r}, found {type(value).__name__}")
    return str(value)

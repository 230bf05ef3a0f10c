"""Multiple-choice benchmarks' files: their questions, and systems' answers to them.

MuChoMusic (csv), RUListening's RUL-MuChoMusic (json), MMAU and MMAR (json, jsonl; the questions about music), and any
jsonl of `audio`, `question`, `choices`, `answer`.
"""

import ast
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlingo_jax.data.annotations import read_csv, read_json
from mlingo_jax.errors import UserError
from mlingo_jax.evaluation.choices import LETTERS, Choice, Pass
from mlingo_jax.evaluation.formats import ANSWER, CLIP, AnswerFile, Rows, read_rows

_MUCHOMUSIC = ("correct_answer", "distractor_1_answer", "distractor_2_answer", "distractor_3_answer")
# What a question is about, where a benchmark asks about other sounds, too.
_ABOUT = ("task", "modality")
_MUSIC = "music"


def read_questions(path: Path, orders: int = 3, seed: int = 0) -> list[Choice]:
    """A benchmark's questions, to be answered.

    Options are put in as many orders as the benchmark has: MuChoMusic's `orders` seeded ones, RUListening's four, each
    without another one of the wrong options; MMAU's and MMAR's as they stand.

    Raises:
        UserError: the file is none of a benchmark's, or a question in it is damaged.
    """
    if path.suffix == ".csv":
        choices = [
            _muchomusic_question(where, row, orders, seed) for where, row in read_csv(path, ("question", *_MUCHOMUSIC))
        ]
    elif rul := _read_rul(path):
        choices = [_rul_question(name, values, f"{path}: {name}", seed) for name, values in rul.items()]
    else:
        choices = [choice for choice in _listed_choices(list(read_rows(path))) if choice]
    return _checked(choices, path)


def is_choices(path: Path) -> bool:
    """Whether a file has the fields of a benchmark's multiple-choice questions."""
    if path.suffix == ".csv":
        return set(_MUCHOMUSIC) <= next(read_csv(path, ()), ("", {}))[1].keys()
    return bool(_read_rul(path)) or "choices" in next(iter(read_rows(path)), ("", {}))[1]


def read_choices(file: AnswerFile) -> list[Choice]:
    """A system's answers to a benchmark's questions; those of MMAU and MMAR about music.

    Raises:
        UserError: a row is damaged, a question is there twice, or none is about music.
    """
    readers = {"muchomusic": _muchomusic_answer, "rul": _rul_answer}
    if file.format in readers:
        choices = [readers[file.format](where, row) for where, row in file.rows]
    else:
        choices = [choice for choice in _listed_choices(file.rows) if choice]
    return _checked(choices, file.path)


def prompt(question: str, options: Sequence[str]) -> str:
    """How MuChoMusic puts a question; its rule reads what follows the last words."""
    lettered = " ".join(f"({LETTERS[number]}) {option}" for number, option in enumerate(options))
    return f"Question: {question}\n Options: {lettered} \n The correct answer is: "


def _checked(choices: list[Choice], path: Path) -> list[Choice]:
    if not choices:
        raise UserError(f"{path}: no question about music in it")
    twice = [name for name, count in Counter(choice.id for choice in choices).items() if count > 1]
    if twice:
        raise UserError(f"{path}: the question {twice[0]!r} is there twice; so are {len(twice)} in all")
    return choices


def _read_rul(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """RUListening's questions by their names; none if the file is another one's."""
    values = read_json(path) if path.suffix == ".json" else None
    if not isinstance(values, dict) or not all(
        isinstance(one, dict) and "distractors" in one for one in values.values()
    ):
        return {}
    return values


def _muchomusic_question(where: str, row: Mapping[str, str], orders: int, seed: int) -> Choice:
    options = tuple(row[name] for name in _MUCHOMUSIC)
    name = f"{row.get('dataset_identifier', where)} {row['question']}"
    shuffled = [random.Random(f"{seed} {k} {name}").sample(range(4), 4) for k in range(orders)]
    passes = tuple(Pass(tuple(options[i] for i in order), order.index(0)) for order in shuffled)
    clip = re.sub(r"(_\d+)?\.json$", "", row.get("dataset_identifier", where))
    return Choice(name, clip, row["question"], passes, "muchomusic", row.get("genre") or "", where)


def _rul_question(name: str, values: Mapping[str, Any], where: str, seed: int) -> Choice:
    right, wrong = _field(values, "correct_answer", where, str), _field(values, "distractors", where, list)
    passes = []
    for left_out in range(len(wrong)):
        options = [right, *wrong[:left_out], *wrong[left_out + 1 :]]
        random.Random(f"{seed} {left_out} {name}").shuffle(options)
        passes.append(Pass(tuple(options), options.index(right)))
    question = _field(values, "question", where, str)
    # The clip has no name of its own: questions about one share its caption.
    return Choice(name, values.get("caption") or name, question, tuple(passes), "rul", "", where, audio=name)


def _muchomusic_answer(where: str, row: Mapping[str, Any]) -> Choice:
    options, order = _field(row, "answers", where, list), _field(row, "answer_orders", where, list)
    if sorted(order) != list(range(len(options))):
        raise UserError(f"{where}: answer_orders is {order}; expected the numbers of the {len(options)} answers")
    each = Pass(tuple(options), order.index(0), _field(row, "model_output", where, str))
    # Two orders of one question are two rows with one id.
    name = f"{row.get('id', where)} {order}"
    clip = str(row.get("audio_path") or row.get("id") or where)
    return Choice(name, clip, str(row.get("prompt", "")), (each,), "muchomusic", str(row.get("genre") or ""), where)


def _rul_answer(where: str, row: Mapping[str, Any]) -> Choice:
    right = _field(row, "correct_answer", where, str)
    passes = []
    for one in row.get("passes") or [row]:
        options = tuple(_field(one, "letter_mapping", where, dict).values())
        if right not in options:
            raise UserError(f"{where}: the right answer {right!r} is none of the options in letter_mapping")
        passes.append(Pass(options, options.index(right), _field(one, "model_output", where, str)))
    name = str(row.get("question_id", where))
    return Choice(name, name, "", tuple(passes), "rul", "", where)


def _listed_choices(rows: Rows) -> Iterator[Choice | None]:
    """MMAU, MMAR and the like; None for a question that is not about music."""
    for where, row in rows:
        about = next((row[name] for name in _ABOUT if name in row), _MUSIC)
        if about != _MUSIC:
            yield None
            continue
        options = tuple(str(option) for option in _field(row, "choices", where, list))
        written = next((row[name] for name in ANSWER[:-1] if name in row), "")
        clip = next((str(row[name]) for name in CLIP if name in row), where)
        each = Pass(options, _correct(row.get("answer"), options, where), str(written or ""))
        category = str(row.get("sub-category") or row.get("category") or "")
        yield Choice(str(row.get("id", where)), clip, str(row.get("question", "")), (each,), "mmau", category, where)


def _correct(answer: Any, options: Sequence[str], where: str) -> int:
    """The right option's number, given its text, or its letter if no option's text is that."""
    plain = [option.strip().lower() for option in options]
    text = str(answer).strip()
    if text.lower() in plain:
        return plain.index(text.lower())
    letter = text.strip("().").upper()
    if len(letter) == 1 and letter in LETTERS[: len(options)]:
        return LETTERS.index(letter)
    raise UserError(f"{where}: the answer {answer!r} is none of the choices {list(options)}")


def _field(row: Mapping[str, Any], name: str, where: str, kind: type) -> Any:
    value = row.get(name)
    if isinstance(value, str) and kind is list and value.startswith("["):
        value = ast.literal_eval(value)
    if not isinstance(value, kind):
        raise UserError(f"{where}: expected a {kind.__name__} in {name!r}, found {value!r}")
    return value

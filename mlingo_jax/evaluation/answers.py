"""Answers beside their references: what everything here scores, and the file that keeps them."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from mlingo_jax.errors import UserError
from mlingo_jax.files import write_atomic

_NAMED = 3


@dataclasses.dataclass(frozen=True)
class Answer:
    """One question about one clip, its true answer (`reference`) and the one to score (`answer`).

    source: the dataset it is from, or "". where: in which file, for messages.
    """

    clip: str
    question: str
    reference: str
    answer: str = ""
    source: str = ""
    where: str = dataclasses.field(default="", compare=False)


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """Writes jsonl that `formats.read_answers` reads again. Raises UserError if it cannot be written."""
    fields = ("clip", "question", "reference", "answer", "source")
    lines = ({name: getattr(answer, name) for name in fields} for answer in answers)
    write_atomic(path, (json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def fingerprint(*values: object) -> str:
    """A name for answers, or whatever else JSON or `repr` can spell, that changes if anything of it does."""
    digest = hashlib.sha256()
    for value in values:
        parts = dataclasses.astuple(value)[:-1] if isinstance(value, Answer) else value
        digest.update(json.dumps(parts, default=repr).encode() + b"\n")
    return digest.hexdigest()[:16]


def require_one_answer(answers: Sequence[Answer]) -> None:
    """Raises UserError if one question about one clip has the same reference, but different answers."""
    texts: dict[tuple[str, str, str], Answer] = {}
    for answer in answers:
        first = texts.setdefault((answer.clip, answer.question, answer.reference), answer)
        if first.answer != answer.answer:
            raise UserError(
                f"{answer.where}: the question {answer.question!r} about {answer.clip!r} is answered here and, "
                f"differently, at {first.where}; keep one of the answers"
            )


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    all_names = list(Counter(names))
    more = f" and {len(all_names) - _NAMED:,} more" if len(all_names) > _NAMED else ""
    return ", ".join(map(repr, all_names[:_NAMED])) + more

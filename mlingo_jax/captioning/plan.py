"""What is asked about each track, and how a track's answers become lines of the output."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mlingo_jax.api import MusiLingo
from mlingo_jax.captioning.sections import Section, clock, fitting, sections
from mlingo_jax.captioning.tracks import Track
from mlingo_jax.inference.answering import Script
from mlingo_jax.inference.clips import Music
from mlingo_jax.inference.generate import Answer, Options
from mlingo_jax.inference.prompts import in_words
from mlingo_jax.inference.requests import Request

# What a line of fields has in place of a question.
FIELDS = "fields"
# One short question each; the model says what it hears, or the field stays empty.
FIELD_QUESTIONS = {
    "genre": "What is the genre of the music? Answer in a few words.",
    "tempo": "Is the tempo of the music slow, medium or fast?",
    "key": "What is the key of the music?",
    "mood": "What is the mood of the music? Answer in a few words.",
    "instruments": "Which instruments are playing?",
    "vocals": "Is there singing, and of what kind? Answer in a few words.",
}
SUMMARY = (
    'These are answers to the question "{question}" about successive parts of one piece of music.\n{parts}\n'
    "Write one answer to the question about the whole piece."
)

# What a language model holds that does not say for how many tokens it was made.
CONTEXT = 2048

Line = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is asked about every track.

    Attributes:
        questions: each makes a line.
        fields: short questions by name, which make one line together.
        least_likely: a field whose answer has a lower likelihood is null.
        sections: seconds of the successive windows that questions are asked about; None for the whole track.
        summary: whether the language model makes one answer of those about the sections.
        options, seed: how answers are written.
    """

    questions: tuple[str, ...]
    fields: tuple[tuple[str, str], ...] = ()
    least_likely: float = 0.0
    sections: float | None = None
    summary: bool = False
    options: Options = field(default_factory=Options)
    seed: int = 0

    @property
    def lines(self) -> tuple[str, ...]:
        """The questions of a track's lines."""
        return (*self.questions, *((FIELDS,) if self.fields else ()))


@dataclass(frozen=True, eq=False)
class Encoded:
    """A track that has been encoded, and the model that is asked about it."""

    track: Track
    music: Music
    model: MusiLingo

    @property
    def seconds(self) -> float:
        """How long it is."""
        return round(self.music.samples / self.model.encoder.audio.sample_rate, 3)

    def request(self, question: str, plan: Plan, part: Section | None = None) -> Request:
        """A question about it, or about a part of it."""
        music = self.music if part is None else self.music.part(part.first, part.last)
        return self.model.request(music, question, plan.options, seed=plan.seed)


def script(encoded: Encoded, question: str, plan: Plan) -> Script[Line]:
    """What is asked for the line of a question."""
    if question == FIELDS and plan.fields:
        return _fields(encoded, plan)
    return _whole(encoded, question, plan) if plan.sections is None else _sections(encoded, question, plan)


def error_lines(track: Track, questions: Sequence[str], error: str) -> list[Line]:
    """The lines of a track that cannot be read."""
    return [{**track.columns, "question": question, "error": error} for question in questions]


def likelihood(answer: Answer) -> float:
    """How probable the model holds its answer: the geometric mean over its tokens."""
    return math.exp(sum(answer.log_probs) / len(answer.log_probs)) if answer.log_probs else 0.0


def _whole(encoded: Encoded, question: str, plan: Plan) -> Script[Line]:
    (answer,) = yield [encoded.request(question, plan)]
    return _line(encoded, question, answer=answer.text, finish_reason=answer.finish_reason)


def _fields(encoded: Encoded, plan: Plan) -> Script[Line]:
    answers = yield [encoded.request(question, plan) for _, question in plan.fields]
    values: dict[str, Any] = {}
    for (name, _), answer in zip(plan.fields, answers, strict=True):
        likely = round(likelihood(answer), 4)
        said = answer.text and likely >= plan.least_likely
        values[name] = {"answer": answer.text, "likelihood": likely} if said else None
    return _line(encoded, FIELDS, fields=values)


def _sections(encoded: Encoded, question: str, plan: Plan) -> Script[Line]:
    assert plan.sections is not None
    found = sections(encoded.music.samples, encoded.model.encoder, plan.sections)
    answers = yield [encoded.request(question, plan, part) for part in found]
    parts = [
        {"start": part.start, "end": part.end, "answer": answer.text, "finish_reason": answer.finish_reason}
        for part, answer in zip(found, answers, strict=True)
    ]
    whole: Line = {}
    if plan.summary:
        texts = [f"{clock(p.start)}-{clock(p.end)}: {a.text}" for p, a in zip(found, answers, strict=True)]
        answer = answers[0] if len(found) == 1 else (yield from _summary(encoded, question, plan, texts))
        whole = {"answer": answer.text, "finish_reason": answer.finish_reason}
    return _line(encoded, question, **whole, sections=parts)


def _summary(encoded: Encoded, question: str, plan: Plan, texts: Sequence[str]) -> Script[Answer]:
    """One answer out of many; of more than a prompt holds, out of answers out of groups of them."""

    def request(parts: Sequence[str]) -> Request:
        text = SUMMARY.format(question=question, parts="\n".join(parts))
        return in_words(encoded.model.prompt, text, encoded.music.features, plan.options, seed=plan.seed)

    def tokens(parts: Sequence[str]) -> int:
        asked = request(parts)
        return len(asked.prefix.tokens) + len(asked.question.tokens)

    while True:
        groups = fitting(texts, tokens, (encoded.model.context or CONTEXT) - plan.options.max_new_tokens)
        answers = yield [request(group) for group in groups]
        if len(groups) == 1:
            return answers[0]
        texts = [answer.text for answer in answers]


def _line(encoded: Encoded, question: str, **values: Any) -> Line:
    return {**encoded.track.columns, "question": question, **values, "seconds": encoded.seconds}

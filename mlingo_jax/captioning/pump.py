"""One process's work: tracks are read ahead, encoded some at a time, and asked about as rows come free."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from mlingo_jax.api import MusiLingo
from mlingo_jax.captioning.plan import Encoded, Line, Plan, Script, error_lines, script
from mlingo_jax.captioning.tracks import Track
from mlingo_jax.data.stored import Waveform, read_ahead
from mlingo_jax.errors import UserError
from mlingo_jax.inference.answering import Collected, Writer
from mlingo_jax.inference.generate import Answer
from mlingo_jax.inference.requests import Request

# Tracks that are encoded together.
ENCODED = 8
# What a language model holds that does not say for how many tokens it was made.
CONTEXT = 2048


@dataclass(frozen=True)
class Job:
    """A track and the lines of it that are to be written; `number` is its place among all jobs."""

    number: int
    track: Track
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """A job's lines, in the order of its questions."""

    number: int
    lines: list[Line]


@dataclass
class _Open:
    """A job whose answers are being written: its scripts, and what each waits for."""

    job: Job
    scripts: list[Script]
    answers: dict[int, list[Answer | None]] = field(default_factory=dict)
    lines: dict[int, Line] = field(default_factory=dict)


class Pump:
    """Answers jobs. `seconds`: of audio that has been encoded."""

    def __init__(self, model: MusiLingo, writer: Writer, plan: Plan):
        self.seconds = 0.0
        self._model, self._writer, self._plan = model, writer, plan
        self._collected = Collected(writer.rule)
        # Of each request: its job, the script's place in it, and the request's among those that the script asked.
        self._asked: dict[int, tuple[_Open, int, int]] = {}

    def run(self, jobs: Iterable[Job]) -> Iterator[Result]:
        """Each job's lines as soon as they are all there; jobs are taken as rows come free."""
        encoder, waiting = self._model.encoder, dict[str, Job]()

        def clips() -> Iterator[tuple[str, Path]]:
            for job in jobs:
                waiting[str(job.number)] = job
                yield str(job.number), Path(job.track.path)

        coming = read_ahead(clips(), encoder.audio, encoder.config.receptive_field)
        more = True
        while more or self._asked:
            while more and self._writer.waiting < self._writer.rows:
                some = [(waiting.pop(number), encoded) for number, encoded in islice(coming, ENCODED)]
                more = bool(some)
                yield from self._encode(some)
            for news in self._writer.step():
                if news.request not in self._asked:
                    continue
                try:
                    answer = self._collected.add(news)
                except UserError as error:
                    yield self._fail(self._asked[news.request][0], f"{self._path(news.request)}: {error}")
                    continue
                if answer and (result := self._take(news.request, answer)):
                    yield result

    def _encode(self, some: Sequence[tuple[Job, Waveform | UserError]]) -> list[Result]:
        """Encodes tracks and asks about them; gives the lines of those that cannot be read."""
        unread = [
            Result(job.number, error_lines(job.track, job.questions, str(error)))
            for job, error in some
            if isinstance(error, UserError)
        ]
        rate = self._model.encoder.audio.sample_rate
        read = [(job, waveform) for job, waveform in some if not isinstance(waveform, UserError)]
        features = self._model.encode([(waveform, rate) for _, waveform in read]) if read else []
        model, context = self._model, self._model.context or CONTEXT
        for (job, waveform), music in zip(read, features, strict=True):
            encoded = Encoded(job.track, waveform, music, model.encoder, model.prompt, context)
            self.seconds += encoded.seconds
            opened = _Open(job, [script(encoded, question, self._plan) for question in job.questions])
            for place, one in enumerate(opened.scripts):
                self._submit(opened, place, next(one))
        return unread

    def _submit(self, opened: _Open, place: int, requests: Sequence[Request]) -> None:
        opened.answers[place] = [None] * len(requests)
        for i, request in enumerate(requests):
            self._asked[self._writer.submit(request)] = opened, place, i

    def _path(self, request: int) -> str:
        return self._asked[request][0].job.track.path

    def _fail(self, opened: _Open, error: str) -> Result:
        """Gives up a job of which something cannot be answered; what else it asked is not listened to any more."""
        self._asked = {number: asked for number, asked in self._asked.items() if asked[0] is not opened}
        return Result(opened.job.number, error_lines(opened.job.track, opened.job.questions, error))

    def _take(self, request: int, answer: Answer) -> Result | None:
        """Hands an answer to the script that asked; gives the job's lines if it was the last one."""
        opened, place, i = self._asked.pop(request)
        answers: list[Any] = opened.answers[place]
        answers[i] = answer
        if None in answers:
            return None
        try:
            self._submit(opened, place, opened.scripts[place].send(answers))
        except StopIteration as ended:
            opened.lines[place] = ended.value
        if len(opened.lines) < len(opened.scripts):
            return None
        return Result(opened.job.number, [opened.lines[place] for place in range(len(opened.scripts))])

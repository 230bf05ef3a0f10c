"""One process's work: tracks are read ahead, encoded some at a time, and asked about as rows come free."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mlingo_jax.api import MusiLingo
from mlingo_jax.captioning.plan import Encoded, Line, Plan, error_lines, script
from mlingo_jax.captioning.tracks import Track
from mlingo_jax.errors import UserError
from mlingo_jax.inference.answering import Script, Writer, run, together
from mlingo_jax.inference.clips import Music, encoded


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


class Pump:
    """Answers jobs. `seconds`: of audio that has been encoded."""

    def __init__(self, model: MusiLingo, writer: Writer, plan: Plan):
        self.seconds = 0.0
        self._model, self._writer, self._plan = model, writer, plan

    def run(self, jobs: Iterable[Job]) -> Iterator[Result]:
        """Each job's lines as soon as they are all there; jobs are taken as rows come free."""
        taken: deque[Job] = deque()
        begun: dict[int, Job] = {}

        def paths() -> Iterator[str]:
            for job in jobs:
                taken.append(job)
                yield job.track.path

        def scripts() -> Iterator[Script[list[Line]]]:
            for place, music in enumerate(encoded(paths(), self._model.encoder)):
                begun[place] = taken.popleft()
                yield self._script(begun[place], music)

        for place, lines in run(self._writer, scripts()):
            job = begun.pop(place)
            if isinstance(lines, UserError):
                # A file that cannot be read is named in the reason already.
                named = str(lines) if job.track.path in str(lines) else f"{job.track.path}: {lines}"
                lines = error_lines(job.track, job.questions, named)
            yield Result(job.number, lines)

    def _script(self, job: Job, music: Music | UserError) -> Script[list[Line]]:
        if isinstance(music, UserError):
            raise music
        track = Encoded(job.track, music, self._model)
        self.seconds += track.seconds
        return (yield from together([script(track, question, self._plan) for question in job.questions]))

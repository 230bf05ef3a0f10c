"""A catalogue's tracks are asked about, on all processes, and the first one writes what comes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mlingo_jax.api import MusiLingo
from mlingo_jax.captioning import dealing
from mlingo_jax.captioning.plan import Line, Plan
from mlingo_jax.captioning.progress import CatalogueProgress
from mlingo_jax.captioning.pump import Job, Pump
from mlingo_jax.captioning.sidecar import write_sidecar
from mlingo_jax.captioning.tracks import Tracks
from mlingo_jax.inference.answer_file import key
from mlingo_jax.inference.answering import Writer, in_order
from mlingo_jax.inference.engine import Engine

# Results of several processes wait for one that is late; not more than so many.
LATE = 4096


@runtime_checkable
class Output(Protocol):
    """Where lines go, and which are there already."""

    done: set[int]

    def write(self, *lines: Line) -> None: ...


@dataclass
class Totals:
    """Files of a catalogue: all, answered before, failed; and sidecars that were left alone."""

    files: int
    before: int = 0
    failed: int = 0
    sidecars_left: int = 0


@dataclass(frozen=True)
class Sidecars:
    """That a text file is written beside each audio file."""

    overwrite: bool = False


def answer_catalogue(
    model: MusiLingo,
    tracks: Tracks | None,
    plan: Plan,
    output: Output | None,
    *,
    rows: int | None = None,
    sidecars: Sidecars | None = None,
) -> Totals:
    """Writes the lines of all tracks that are not done; tracks and output are the first process's, None on others."""
    writer = model.writer(plan.options, rows=rows)
    pump = Pump(model, writer, plan)
    if tracks is None or output is None:
        for _ in dealing.results(pump, (), writer.rows):
            pass
        return Totals(0)
    todo = _count(tracks, plan, output)
    totals = Totals(len(tracks), len(tracks) - todo)
    with CatalogueProgress(totals.files, totals.before, shown=True) as progress:
        results = dealing.results(pump, jobs(tracks, plan, output), writer.rows)
        for lines in in_order(((result.number, result.lines) for result in results), LATE):
            output.write(*lines)
            failed = any("error" in line for line in lines)
            totals.failed += failed
            if sidecars and not failed:
                totals.sidecars_left += not write_sidecar(lines, overwrite=sidecars.overwrite)
            progress.file(pump.seconds, busy_share(writer), failed)
    return totals


def jobs(tracks: Tracks, plan: Plan, output: Output) -> Iterator[Job]:
    """What is to be done, in the tracks' order."""
    number = 0
    for track in tracks:
        questions = tuple(q for q in plan.lines if key(track.path, q) not in output.done)
        if questions:
            yield Job(number, track, questions)
            number += 1


def asked(tracks: Tracks, plan: Plan) -> Iterator[int]:
    """The keys of all lines."""
    return (key(track.path, question) for track in tracks for question in plan.lines)


def busy_share(writer: Writer) -> float | None:
    """Which share of the engine's row-steps wrote a token."""
    if not isinstance(writer, Engine) or not writer.counts.row_steps:
        return None
    return writer.counts.busy / writer.counts.row_steps


def _count(tracks: Tracks, plan: Plan, output: Output) -> int:
    return sum(1 for _ in jobs(tracks, plan, output))

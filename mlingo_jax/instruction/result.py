"""From recorded replies to the files that come out: the same inputs, seed and replies give the same bytes.

Two passes, in the order of the clips. The first takes from each clip the pairs that are sound by themselves; the second
leaves out what shows only beside all others, and writes. No pair is held in memory.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from mlingo_jax.errors import UserError
from mlingo_jax.files import atomic_replace
from mlingo_jax.instruction.asking import replay
from mlingo_jax.instruction.conversations import Conversation, Plan
from mlingo_jax.instruction.filters.over_the_set import SetChecks
from mlingo_jax.instruction.journal import Journal
from mlingo_jax.instruction.pairs import Pair, Rejection, Source
from mlingo_jax.instruction.prompts import describe
from mlingo_jax.instruction.sheet import Sheet
from mlingo_jax.instruction.summary import Summary

REJECTED = "rejected.jsonl"
MANIFEST = "manifest.jsonl"
ALL, SHORT, LONG = (f"music_instruct{part}.json" for part in ("", "_short", "_long"))


@dataclasses.dataclass(frozen=True)
class Kept:
    """A pair on its way between the passes, with what the files tell of its clip."""

    pair: Pair
    audio: str
    split: str
    rate: int | None
    known: str

    def line(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, line: str) -> "Kept":
        values = json.loads(line)
        pair = values.pop("pair")
        return cls(Pair(**{**pair, "attributes": tuple(pair["attributes"])}), **values)


def write_result(
    sources: Callable[[], Iterable[Source]],
    plan: Plan,
    journal: Journal,
    output: Path,
    *,
    rate: int,
    advance: Callable[[], None],
) -> Summary:
    """Writes all files of pairs into `output`, and says what came of them. advance: called after each clip.

    rate: what MusicInstruct's files tell of a clip's .npy in Hz, where the source does not. Raises UserError if the
    folder cannot be written.
    """
    summary = Summary(plan.recipe.tasks)
    between = output / ".pairs.partial"
    try:
        with contextlib.ExitStack() as stack:
            stack.callback(between.unlink, missing_ok=True)
            rejected = _open(stack, output / REJECTED)
            faults = _first_pass(sources, plan, journal, between, rejected, summary, advance)
            _second_pass(between, faults, rejected, _Files(stack, output, plan, rate), summary)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from error
    return summary


def _first_pass(
    sources: Callable[[], Iterable[Source]],
    plan: Plan,
    journal: Journal,
    between: Path,
    rejected: IO[str],
    summary: Summary,
    advance: Callable[[], None],
) -> dict[int, tuple[str, str]]:
    """Writes pairs that are sound by themselves to `between`; the faults of those that are not beside the others."""
    checks = SetChecks(plan.recipe.tasks)
    with between.open("w", encoding="utf-8") as file:
        for source in sources():
            made = replay(Conversation(source, plan).steps(), journal, summary.count_reply)
            summary.add_clip(source.split, made)
            known = describe(source, "all")
            for pair in made.pairs:
                checks.add(pair)
                file.write(Kept(pair, source.audio, source.split, source.rate, known).line())
            for rejection in made.rejected:
                _write_rejection(rejected, rejection)
            advance()
    return checks.faults()


def _second_pass(
    between: Path, faults: dict[int, tuple[str, str]], rejected: IO[str], files: "_Files", summary: Summary
) -> None:
    with between.open(encoding="utf-8") as file:
        for place, line in enumerate(file):
            kept = Kept.read(line)
            if place in faults:
                rejection = Rejection(kept.pair.clip, kept.pair.task, *faults[place], kept.pair)
                _write_rejection(rejected, rejection)
                summary.add_rejection(rejection)
            else:
                files.write(kept)
                summary.add_pair(kept.pair, kept.split)
    files.finish()


class _Files:
    """The files of pairs that are kept."""

    def __init__(self, stack: contextlib.ExitStack, output: Path, plan: Plan, rate: int):
        self._parts = {task.name: SHORT if task.part == "short" else LONG for task in plan.recipe.tasks}
        self._rate = rate
        self._lists = {name: _JsonList(_open(stack, output / name)) for name in (ALL, SHORT, LONG)}
        self._manifest = _open(stack, output / MANIFEST)
        self._sheet = Sheet(plan.seed)
        self._sheet_files = _open(stack, output / "sheet.csv", newline=""), _open(stack, output / "sheet.html")

    def write(self, kept: Kept) -> None:
        pair = kept.pair
        item = {
            "question": pair.question,
            "answer": pair.answer,
            "ytid": pair.clip,
            "is_audioset_eval": kept.split == "eval",
            "sampling_rate": kept.rate or self._rate,
        }
        self._lists[ALL].write(item)
        self._lists[self._parts[pair.task]].write(item)
        values = {"audio": kept.audio, "question": pair.question, "answer": pair.answer, "split": kept.split}
        rate = {} if kept.rate is None else {"sampling_rate": kept.rate}
        line = {**values, "clip": pair.clip, "task": pair.task, "kind": pair.kind, **rate}
        self._manifest.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._sheet.add(pair, kept.known)

    def finish(self) -> None:
        for file in self._lists.values():
            file.finish()
        self._sheet.write(*self._sheet_files)


class _JsonList:
    """{"QA": [...]}, an item a line, as it comes."""

    def __init__(self, file: IO[str]):
        self._file, self._separator = file, '{"QA": [\n'

    def write(self, item: dict[str, Any]) -> None:
        self._file.write(self._separator + json.dumps(item, ensure_ascii=False))
        self._separator = ",\n"

    def finish(self) -> None:
        self._file.write('{"QA": []}\n' if self._separator != ",\n" else "\n]}\n")


def _write_rejection(file: IO[str], rejection: Rejection) -> None:
    file.write(json.dumps(rejection.line(), ensure_ascii=False) + "\n")


def _open(stack: contextlib.ExitStack, path: Path, newline: str | None = None) -> IO[str]:
    """A file that takes the place of `path` when the stack is left without an error."""
    partial = stack.enter_context(atomic_replace(path))
    return stack.enter_context(partial.open("w", encoding="utf-8", newline=newline))

"""A run: what a sample costs, all the asking, and then the result from the journal alone."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlingo_jax.errors import UserError
from mlingo_jax.files import exclusive_lock
from mlingo_jax.instruction.asking import Courier, converse, journal_path, missing
from mlingo_jax.instruction.batch import read_batch, write_batch
from mlingo_jax.instruction.conversations import Conversation, Plan
from mlingo_jax.instruction.courier import Orders
from mlingo_jax.instruction.endpoint import Place
from mlingo_jax.instruction.journal import Journal, Writer
from mlingo_jax.instruction.pairs import Source
from mlingo_jax.instruction.progress import Progress
from mlingo_jax.instruction.report import Origin, Prices, write_report
from mlingo_jax.instruction.requests import Dialect, Role
from mlingo_jax.instruction.result import write_result
from mlingo_jax.instruction.selection import draw
from mlingo_jax.wording import counted

SAMPLE = 10
_LOCK = ".run.lock"


@dataclasses.dataclass(frozen=True)
class Clips:
    """The clips that are asked about. read: all of them, in their order, at each call. excluded: by reason."""

    read: Callable[[], Iterator[Source]]
    splits: Mapping[str, int]
    excluded: Mapping[str, int]

    @property
    def count(self) -> int:
        return sum(self.splits.values())


@dataclasses.dataclass(frozen=True)
class Limits:
    """concurrency: requests at once. seconds, tries: of each. most: what the whole may cost, None for any sum."""

    concurrency: int
    seconds: float
    tries: int
    most: float | None


def ask(
    clips: Clips,
    plan: Plan,
    places: Mapping[Role, Place],
    output: Path,
    prices: Prices,
    limits: Limits,
    *,
    estimate: bool,
    say: Callable[[str], None],
) -> None:
    """Asks all that the journal has no reply to, and says before what that will cost, from a sample of ten clips.

    estimate: stop there. Raises UserError if nothing can be asked, or if it would cost more than it may.
    """
    journal = Journal(journal_path(output))
    if next(missing(_steps(clips.read(), plan), journal), None) is None:
        return
    if not places:
        raise UserError("--endpoint: there is something to ask, so the address of a server is needed")
    orders = Orders(str(journal.path), places, limits.concurrency, limits.seconds, limits.tries)
    with Courier(orders, say) as courier:
        # What a run before this one had under way is in it now.
        journal = Journal(journal_path(output))
        sampled = draw(clips.read(), SAMPLE, plan.seed)
        with Progress(len(sampled), prices) as progress:
            sample = (source for place, source in enumerate(clips.read()) if place in sampled)
            _converse(sample, plan, journal, courier, limits, progress)
        say(_statement(progress, len(sampled), clips.count, prices))
        cost = prices.cost(*progress.tokens)
        if limits.most is not None and cost is not None and cost / len(sampled) * clips.count > limits.most:
            raise UserError(
                f"--max_cost: that is more than {limits.most:g}; raise it, ask about fewer clips (--limit), or take "
                "another model; what was answered is kept"
            )
        if estimate:
            return
        with Progress(clips.count, prices) as progress:
            lost = _converse(clips.read(), plan, journal, courier, limits, progress)
        if lost:
            say(f"{counted(lost, 'request')} without a reply after {limits.tries} tries; the same command tries again")


def finish(clips: Clips, plan: Plan, origin: Origin, output: Path, prices: Prices, rate: int) -> dict[str, Any]:
    """Writes everything that comes out of the journal. The report."""
    journal = Journal(journal_path(output))
    with Progress(clips.count, prices) as progress:
        summary = write_result(clips.read, plan, journal, output, rate=rate, advance=progress.ended)
    return write_report(output, origin, summary, prices)


def write_batches(clips: Clips, plan: Plan, output: Path, file: Path, structured: str) -> str:
    """Writes the requests that can be made now to batch files; what to do next."""
    journal = Journal(journal_path(output))
    files, count = write_batch(missing(_steps(clips.read(), plan), journal), file, _dialect(structured))
    if not count:
        return f"nothing is left to ask; the same command without --batch writes {output}"
    names = ", ".join(map(str, files))
    return f"{counted(count, 'request')} in {names}; give what comes back to `--batch read FILE`"


def read_batches(clips: Clips, plan: Plan, output: Path, file: Path, structured: str) -> tuple[str, bool]:
    """Takes the results of a batch into the journal. What came of it, and whether nothing is left to ask."""
    if not file.is_file():
        raise UserError(f"--batch read: there is no file {file}")
    journal = Journal(journal_path(output))
    writer = Writer(journal.path)
    try:
        counts = read_batch(file, missing(_steps(clips.read(), plan), journal), _dialect(structured), journal, writer)
    finally:
        writer.close()
    left = sum(1 for _ in missing(_steps(clips.read(), plan), journal))
    parts = ["1 reply read" if counts["read"] == 1 else f"{counts['read']:,} replies read"]
    parts += [f"{counts[name]:,} {name}" for name in ("failed", "other") if counts[name]]
    after = f"; {counted(left, 'request')} can be asked now: `--batch write FILE`" if left else ""
    return ", ".join(parts) + after, not left


def sole_command(output: Path) -> Any:
    """One command at a time in a folder. Raises UserError if there is another, or if it cannot be made."""
    return exclusive_lock(
        output / _LOCK, f"{output}: another command is at work there; wait for it, or give another --output"
    )


def _steps(sources: Iterable[Source], plan: Plan) -> Iterator[Any]:
    return (Conversation(source, plan).steps() for source in sources)


def _converse(
    sources: Iterable[Source], plan: Plan, journal: Journal, courier: Courier, limits: Limits, progress: Progress
) -> int:
    # Twice as many as can be under way: none waits for the next conversation to begin.
    window = 2 * limits.concurrency
    return converse(_steps(sources, plan), journal, courier, window, progress.on_reply, progress.ended)


def _statement(progress: Progress, sampled: int, clips: int, prices: Prices) -> str:
    prompt, reply = (tokens * clips / sampled for tokens in progress.tokens)
    cost = prices.cost(prompt, reply)
    price = "; --price_in and --price_out tell the cost" if cost is None else f", about {cost:,.2f} by the given prices"
    return (
        f"a sample of {counted(sampled, 'clip')} took {counted(progress.requests, 'request')}, "
        f"{progress.tokens[0]:,} + {progress.tokens[1]:,} tokens; "
        f"all {counted(clips, 'clip')}: about {progress.requests * clips / sampled:,.0f} requests, "
        f"{prompt / 1e6:,.2f} + {reply / 1e6:,.2f} million tokens{price}"
    )


def _dialect(structured: str) -> Dialect:
    return Dialect(structured="schema" if structured == "auto" else structured)  # pyright: ignore[reportArgumentType]

"""From questions to whole answers, many at a time, and from one question to its text as it is written."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from mlingo_jax.errors import UserError
from mlingo_jax.inference.engine import News
from mlingo_jax.inference.generate import Answer
from mlingo_jax.inference.requests import Request
from mlingo_jax.inference.stopping import StopRule, TextReader

T = TypeVar("T")

Script = Generator[Sequence[Request], list[Answer], T]
"""Work that needs answers: gives requests, takes all their answers, maybe gives further ones, and returns what it made.

It may raise a UserError; that is its result then.
"""


@runtime_checkable
class Writer(Protocol):
    """What takes requests and gives news of them, round by round: the engine, or beam search.

    rows: requests worked on at once. waiting: those not begun. busy: whether any is not ended.
    """

    rule: StopRule

    @property
    def rows(self) -> int: ...

    @property
    def waiting(self) -> int: ...

    @property
    def busy(self) -> bool: ...

    def submit(self, request: Request) -> int: ...

    def cancel(self, request: int) -> None: ...

    def step(self) -> list[News]: ...


def run(writer: Writer, scripts: Iterable[Script[T]]) -> Iterator[tuple[int, T | UserError]]:
    """Each script's place and what it returns, as soon as it has ended; scripts are begun as rows come free.

    A script of whose requests one cannot be answered is given up, and the reason comes in place of its result.
    """
    coming, crew = enumerate(scripts), _Crew[T](writer)
    more = True
    while more or crew.asked:
        while more and writer.waiting < writer.rows:
            item = next(coming, None)
            more = item is not None
            if item is not None and (ended := crew.begin(*item)):
                yield ended
        for news in writer.step():
            if ended := crew.take(news):
                yield ended


def in_order(results: Iterable[tuple[int, T]], most: int | None = None) -> Iterator[T]:
    """Results in the order of their places. If `most` are given, no more than these wait for one that is late."""
    waiting: dict[int, T] = {}
    due = 0
    for place, result in results:
        if place < due:
            # The others have passed it.
            yield result
            continue
        waiting[place] = result
        while due in waiting or (most is not None and len(waiting) > most):
            due = due if due in waiting else min(waiting)
            yield waiting.pop(due)
            due += 1


def asking(requests: Sequence[Request] | UserError) -> Script[list[Answer]]:
    """The script that asks once, and returns the answers; of what cannot be asked it raises the reason."""
    if isinstance(requests, UserError):
        raise requests
    return (yield requests)


def together(scripts: Sequence[Script[T]]) -> Script[list[T]]:
    """Several scripts as one, which returns what each of them returns; their rounds are asked together."""
    returned: list[Any] = [None] * len(scripts)
    answers: dict[int, list[Answer] | None] = dict.fromkeys(range(len(scripts)))
    while True:
        asked: dict[int, Sequence[Request]] = {}
        for i, given in answers.items():
            try:
                asked[i] = scripts[i].send(given)  # pyright: ignore[reportArgumentType]
            except StopIteration as ended:
                returned[i] = ended.value
        if not asked:
            return returned
        found = iter((yield [request for requests in asked.values() for request in requests]))
        answers = {i: [next(found) for _ in requests] for i, requests in asked.items()}


def answers(writer: Writer, requests: Iterable[Request]) -> Iterator[tuple[int, Answer]]:
    """Each request's place and its answer, as soon as it has ended; requests are taken as rows come free.

    Raises:
        UserError: a request cannot be answered.
    """
    for place, found in run(writer, (asking([request]) for request in requests)):
        if isinstance(found, UserError):
            raise found
        yield place, found[0]


def text(writer: Writer, request: Request) -> Iterator[str]:
    """The text of one answer in pieces, as it is written; put together they are the answer's.

    Beam search knows its answer only at the end and gives it in one piece.
    """
    writer.submit(request)
    reader = TextReader(writer.rule)
    while writer.busy:
        for news in writer.step():
            if news.error is not None:
                raise UserError(news.error)
            if piece := reader.read(news.tokens):
                yield piece
    if piece := reader.finish():
        yield piece


@dataclass
class _Part:
    """What has been written of one answer, and whose it is: the script's place, and the request's in its round."""

    place: int
    request: int
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)


@dataclass
class _Round(Generic[T]):
    """A script, and the answers to what it has asked; None where one is still written."""

    script: Script[T]
    answers: list[Answer | None] = field(default_factory=list)


class _Crew(Generic[T]):
    """Scripts that have been begun and not ended. `asked`: the requests that they wait for, by the writer's numbers."""

    def __init__(self, writer: Writer):
        self.asked: dict[int, _Part] = {}
        self._writer = writer
        self._rounds: dict[int, _Round[T]] = {}

    def begin(self, place: int, script: Script[T]) -> tuple[int, T | UserError] | None:
        """Starts a script; gives its place and result if it has ended at once."""
        self._rounds[place] = _Round(script)
        return self._go_on(place, None)

    def take(self, news: News) -> tuple[int, T | UserError] | None:
        """Takes a request's news; gives its script's place and result if that has ended by them."""
        part = self.asked.get(news.request)
        if part is None:
            return None
        if news.error is not None:
            return self._end(part.place, UserError(news.error))
        part.tokens.extend(news.tokens)
        part.log_probs.extend(news.log_probs)
        if news.finish_reason is None:
            return None
        del self.asked[news.request]
        text = self._writer.rule.text(part.tokens)
        found = self._rounds[part.place].answers
        found[part.request] = Answer(text, news.finish_reason, tuple(part.tokens), tuple(part.log_probs))
        whole = [answer for answer in found if answer is not None]
        return self._go_on(part.place, whole) if len(whole) == len(found) else None

    def _go_on(self, place: int, answers: list[Answer] | None) -> tuple[int, T | UserError] | None:
        current = self._rounds[place]
        try:
            requests = current.script.send(answers)  # pyright: ignore[reportArgumentType]
            while not requests:
                requests = current.script.send([])
        except StopIteration as ended:
            return self._end(place, ended.value)
        except UserError as error:
            return self._end(place, error)
        current.answers = [None] * len(requests)
        for i, request in enumerate(requests):
            self.asked[self._writer.submit(request)] = _Part(place, i)
        return None

    def _end(self, place: int, result: T | UserError) -> tuple[int, T | UserError]:
        """Forgets a script; what it still waits for is not written any further."""
        del self._rounds[place]
        for number in [number for number, part in self.asked.items() if part.place == place]:
            del self.asked[number]
            self._writer.cancel(number)
        return place, result

"""From requests to whole answers, and from one request to its text as it is written."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

from mlingo_jax.errors import UserError
from mlingo_jax.inference.engine import News
from mlingo_jax.inference.generate import Answer
from mlingo_jax.inference.requests import Request
from mlingo_jax.inference.stopping import StopRule, TextReader


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

    def step(self) -> list[News]: ...


@dataclasses.dataclass
class Collected:
    """Answers that are being put together."""

    rule: StopRule
    tokens: dict[int, list[int]] = dataclasses.field(default_factory=dict)
    log_probs: dict[int, list[float]] = dataclasses.field(default_factory=dict)

    def add(self, news: News) -> Answer | None:
        """Takes a request's news; gives its answer if that has ended. Raises UserError for an error's."""
        if news.error is not None:
            self.tokens.pop(news.request, None)
            self.log_probs.pop(news.request, None)
            raise UserError(news.error)
        self.tokens.setdefault(news.request, []).extend(news.tokens)
        self.log_probs.setdefault(news.request, []).extend(news.log_probs)
        if news.finish_reason is None:
            return None
        tokens, log_probs = self.tokens.pop(news.request), self.log_probs.pop(news.request)
        return Answer(self.rule.text(tokens), news.finish_reason, tuple(tokens), tuple(log_probs))


def answers(writer: Writer, requests: Iterable[Request]) -> Iterator[tuple[int, Answer]]:
    """Each request's place and its answer, as soon as it has ended; requests are taken as rows come free."""
    coming, positions, collected = enumerate(requests), dict[int, int](), Collected(writer.rule)
    while True:
        for place, request in itertools.islice(coming, max(0, writer.rows - writer.waiting)):
            positions[writer.submit(request)] = place
        if not writer.busy:
            return
        for news in writer.step():
            if answer := collected.add(news):
                yield positions.pop(news.request), answer


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

"""The engine: a fixed number of rows on the device, each of which is given another question as soon as its answer ends.

A round: what the last chunk of decoding wrote is fetched; rows that have ended are given the next questions, whose
prompts are read; the next chunk is begun. Its tokens come with the next round, and meanwhile the device does not wait
for the host. What is compiled: one program for a chunk, and one for each padded length of a piece of a prompt.

How rows lie in memory, and why an answer is the same in any company, is told in layout.py.
"""

import dataclasses
import itertools
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mlingo_jax.inference.layout import Layout, bucket
from mlingo_jax.inference.programs import Pieces, Rows, Written, begin, read_prefixes, read_questions, write_chunk
from mlingo_jax.inference.requests import Piece, Request, ask, pad
from mlingo_jax.inference.stopping import NOT_FINITE, START, FinishReason, StopRule, finish_reason
from mlingo_jax.models.musilingo import Networks


@dataclasses.dataclass(frozen=True)
class News:
    """New tokens of an answer, and if it has ended, by what. `request` is the number that `submit` gave.

    `log_probs` are the tokens' own, as the model gives them: at temperature 1, without limits. With an `error` the
    request has ended without an answer; the others go on.
    """

    request: int
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: FinishReason | None
    error: str | None = None


@dataclasses.dataclass
class Counts:
    """What an engine has done: `row_steps` are decoding steps times rows, `busy` those that wrote a token."""

    row_steps: int = 0
    busy: int = 0
    prefixes_read: int = 0
    questions_read: int = 0


@dataclasses.dataclass
class _Row:
    """A row with a request, its number, and how many of its tokens have been fetched."""

    number: int
    request: Request
    tokens: int = 0


class Engine:
    """Writes the answers to requests in the rows of a layout.

    `submit` and `cancel` may be called from any thread at any time, all else from one alone. A request for which the
    layout has no room waits until the rows before it have ended; then the layout grows, and is compiled for. Nothing is
    on the device before the first request, and the layout grows for all that have come by then.

    Attributes:
        rule: when answers end.
        counts: what has been done so far.
    """

    def __init__(
        self,
        networks: Networks,
        params: Any,
        layout: Layout,
        opening: Sequence[int],
        rule: StopRule,
        mesh: Mesh | None = None,
    ):
        if len(opening) != layout.opening:
            raise ValueError(f"the layout is for an opening of {layout.opening} tokens, not of {len(opening)}")
        self.rule = rule
        self.counts = Counts()
        self._networks, self._params, self._mesh = networks, params, mesh
        self._opening = jnp.array(opening, jnp.int32)[None]
        self._numbers = itertools.count()
        self._arrived: deque[tuple[int, Request]] = deque()
        self._cancelled: deque[int] = deque()
        self._queue: deque[tuple[int, Request]] = deque()
        self._written: Written | None = None
        self._layout = layout
        self._held: list[_Row | None] = [None] * layout.rows
        self._rows: Rows | None = None

    @property
    def layout(self) -> Layout:
        """The sizes of what is on the device now."""
        return self._layout

    @property
    def rows(self) -> int:
        """Answers that are written at once."""
        return self._layout.rows

    @property
    def waiting(self) -> int:
        """Requests that have no row yet."""
        return len(self._arrived) + len(self._queue)

    @property
    def busy(self) -> bool:
        """Whether there is a request that has not ended."""
        return self.waiting > 0 or any(self._held)

    def submit(self, request: Request) -> int:
        """Takes a request, to be answered when its turn comes; gives its number."""
        if request.options.num_beams > 1:
            raise ValueError("the engine writes one hypothesis a row; `beams.Beams` searches")
        number = next(self._numbers)
        self._arrived.append((number, request))
        return number

    def cancel(self, request: int) -> None:
        """Ends a request, wherever it is; from the next `step` on there is no more news of it."""
        self._cancelled.append(request)

    def step(self) -> list[News]:
        """One round; gives what the last round's chunk has written. Without anything to do, does nothing."""
        self._queue.extend(_drain(self._arrived))
        self._drop(set(_drain(self._cancelled)))
        news = self._fetch()
        with self._on_mesh():
            self._admit()
            self._write()
        return news

    def _begin(self, layout: Layout) -> None:
        self._layout = layout
        self._held: list[_Row | None] = [None] * layout.rows
        # The clips whose prefixes are kept, the one that was needed longest ago first, and where.
        self._kept: OrderedDict[Hashable, int] = OrderedDict()
        with self._on_mesh():
            self._rows, self._prefixes = begin(self._networks, self._params, layout, self._opening)

    def _drop(self, cancelled: set[int]) -> None:
        if cancelled:
            self._queue = deque(item for item in self._queue if item[0] not in cancelled)
            self._held = [None if row and row.number in cancelled else row for row in self._held]

    def _fetch(self) -> list[News]:
        if self._written is None:
            return []
        written, self._written = self._written, None
        parts = (written.tokens, written.log_probs, written.counts, written.stop_states, written.steps)
        tokens, log_probs, counts, states, steps = (part.tolist() for part in jax.device_get(parts))
        self.counts.row_steps += steps * self._layout.rows
        news = []
        for place, row in enumerate(self._held):
            if row is None:
                continue
            count, state = counts[place], states[place]
            new = count - row.tokens
            ended = state < START or count == row.request.options.max_new_tokens
            if state == NOT_FINITE:
                self._held[place] = None
                news.append(News(row.number, (), (), None, not_finite(row.request)))
                continue
            reason = finish_reason(state) if ended else None
            news.append(News(row.number, tuple(tokens[place][:new]), tuple(log_probs[place][:new]), reason))
            self.counts.busy += new
            row.tokens = count
            if ended:
                self._held[place] = None
        return news

    def _admit(self) -> None:
        while self._queue and None in self._held:
            grown = _grown(self._layout, self._queue[0][1])
            if self._rows is None or grown != self._layout:
                if any(self._held):
                    return
                for _, request in self._queue:
                    grown = _grown(grown, request)
                self._begin(grown)
            self._read(self._take_alike())

    def _take_alike(self) -> list[tuple[int, Request]]:
        """The first request and those behind it whose question has the same padded length, as many as are read at once.

        None of them waits for more than the rows that are free now.
        """
        free = self._held.count(None)
        some = [self._queue.popleft() for _ in range(min(free, len(self._queue)))]
        size = bucket(len(some[0][1].question.tokens))
        fit = [_grown(self._layout, r) == self._layout and bucket(len(r.question.tokens)) == size for _, r in some]
        chosen = set([i for i, fits in enumerate(fit) if fits][: self._layout.admitted])
        self._queue.extendleft(reversed([item for i, item in enumerate(some) if i not in chosen]))
        return [item for i, item in enumerate(some) if i in chosen]

    def _read(self, group: Sequence[tuple[int, Request]]) -> None:
        """Reads the prompts of a group into free rows."""
        requests = [request for _, request in group]
        self._read_prefixes(requests)
        rows = [place for place, row in enumerate(self._held) if row is None][: len(group)]
        for place, (number, request) in zip(rows, group, strict=True):
            self._held[place] = _Row(number, request)
        count = self._layout.admitted
        pieces = self._pad([request.question for request in requests], music=1)
        asked = ask(requests, count, rows, [self._kept[r.clip] for r in requests], none=self._layout.rows)
        networks = self._networks, self._params, self._layout
        self._rows = read_questions(*networks, self._rows, self._prefixes, pieces, asked)
        self.counts.questions_read += len(group)

    def _read_prefixes(self, requests: Sequence[Request]) -> None:
        """Sees to it that the prefixes of a group are kept, those of like length read together."""
        missing: dict[int, dict[Hashable, Piece]] = {}
        for request in requests:
            if request.clip in self._kept:
                self._kept.move_to_end(request.clip)
            else:
                size = bucket(len(request.prefix.tokens))
                missing.setdefault(size, {})[request.clip] = request.prefix
        for pieces in missing.values():
            entries = [self._entry(clip) for clip in pieces]
            spare = self._layout.admitted - len(entries)
            positions = np.array([*entries, *[self._layout.prefixes + 1] * spare], np.int32)
            padded = self._pad(list(pieces.values()))
            networks = self._networks, self._params, self._layout
            self._prefixes = read_prefixes(*networks, self._prefixes, padded, positions)
            self.counts.prefixes_read += len(entries)

    def _entry(self, clip: Hashable) -> int:
        """A place for a clip's prefix: a free one, or that of the clip that was needed longest ago."""
        full = len(self._kept) == self._layout.prefixes
        self._kept[clip] = self._kept.popitem(last=False)[1] if full else len(self._kept)
        return self._kept[clip]

    def _pad(self, pieces: Sequence[Piece], music: int | None = None) -> Pieces:
        size = bucket(max(len(piece.tokens) for piece in pieces))
        return pad(pieces, self._layout.admitted, size, size if music is None else music)

    def _write(self) -> None:
        if any(self._held):
            held = np.array([row is not None for row in self._held])
            networks = self._networks, self._params, self._layout
            self._rows, self._written = write_chunk(*networks, self._rows, self.rule.table, held)

    def _on_mesh(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)


def not_finite(request: Request) -> str:
    """Why there is no answer where the logits are no numbers."""
    if all(np.isfinite(piece.music).all() for piece in (request.prefix, request.question)):
        cause = "though its music is finite: the language model overflows; load it in float32, or quantise it less"
    else:
        cause = "because its music is not: look at its clip, and the encoder's dtype"
    return f"no answer: the logits are NaN or infinite, {cause}"


def _grown(layout: Layout, request: Request) -> Layout:
    sizes = len(request.prefix.tokens), len(request.question.tokens), request.options.max_new_tokens
    return layout.grown(*sizes)


def _drain(items: deque[Any]) -> Iterator[Any]:
    """Takes out what is there; other threads may put in meanwhile."""
    for _ in range(len(items)):
        yield items.popleft()

"""Requests answered by beam search: a batch at a time, each run to its end. Takes what the engine takes.

Axes: B rows, P positions of a prompt, M music tokens, E language-model width.
"""

import itertools
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from mlingo_jax.data.statistics import round_up
from mlingo_jax.inference.beam import beam_search
from mlingo_jax.inference.decode import Prompts
from mlingo_jax.inference.engine import News, not_finite
from mlingo_jax.inference.programs import Pieces
from mlingo_jax.inference.requests import Request, pad, whole
from mlingo_jax.inference.stopping import NOT_FINITE, StopRule, finish_reason
from mlingo_jax.models.musilingo import Networks, bind, embed_rows

# Prompts are padded to a multiple of this many positions, so that questions of like length share a compiled program.
PLACES = 64


class Beams:
    """Searches for the answers to up to `rows` requests at once, those with the first one's options."""

    def __init__(
        self,
        networks: Networks,
        params: Any,
        rows: int,
        opening: Sequence[int],
        rule: StopRule,
        mesh: Mesh | None = None,
    ):
        self.rows = rows
        self.rule = rule
        self._networks, self._params, self._opening, self._mesh = networks, params, opening, mesh
        self._numbers = itertools.count()
        self._queue: deque[tuple[int, Request]] = deque()

    @property
    def waiting(self) -> int:
        """Requests that have not been answered."""
        return len(self._queue)

    @property
    def busy(self) -> bool:
        """Whether there is one."""
        return bool(self._queue)

    def submit(self, request: Request) -> int:
        """Takes a request; gives its number."""
        number = next(self._numbers)
        self._queue.append((number, request))
        return number

    def cancel(self, request: int) -> None:
        """Drops a request."""
        self._queue = deque(item for item in self._queue if item[0] != request)

    def step(self) -> list[News]:
        """The answers to the first requests, whole; log-probabilities of tokens are not told."""
        if not self._queue:
            return []
        options = self._queue[0][1].options
        group = []
        while self._queue and len(group) < self.rows and self._queue[0][1].options == options:
            group.append(self._queue.popleft())
        with nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
            found = beam_search(
                self._networks.llm,
                self._params[0]["llm"],
                self._prompts([request for _, request in group]),
                self.rule.table,
                num_beams=options.num_beams,
                max_new_tokens=options.max_new_tokens,
            )
        fields = (part.tolist() for part in jax.device_get((found.tokens, found.lengths, found.stop_states)))
        return [_news(*item, *found) for item, *found in zip(group, *fields, strict=False)]

    def _prompts(self, requests: Sequence[Request]) -> Prompts:
        pieces = [whole(request, self._opening) for request in requests]
        positions = round_up(max(len(piece.tokens) for piece in pieces), PLACES)
        music = 1 << (max(piece.music.shape[-2] for piece in pieces) - 1).bit_length()
        padded = pad(pieces, self.rows, positions, music)
        positions = np.broadcast_to(np.arange(positions, dtype=np.int32), padded.tokens.shape)
        segments = (positions < padded.lengths[:, None]).astype(np.int32)
        embeddings = _embed(self._networks, self._params, padded)
        return Prompts(embeddings, jnp.asarray(positions), jnp.asarray(segments))


def _news(number: int, request: Request, tokens: list[int], length: int, state: int) -> News:
    if state == NOT_FINITE:
        return News(number, (), (), None, not_finite(request))
    return News(number, tuple(tokens[:length]), (), finish_reason(state))


@partial(jax.jit, static_argnums=0)
def _embed(networks: Networks, params: Any, pieces: Pieces) -> Float[Array, "B P E"]:
    llm, adapter, _ = bind(networks, *params)
    music = adapter.tokens(jnp.asarray(pieces.music))
    return embed_rows(llm, jnp.asarray(pieces.tokens), jnp.asarray(pieces.music_index), music)

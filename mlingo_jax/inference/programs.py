"""The engine's programs: read openings, prefixes and questions into the rows' columns, and write a chunk of answers.

Axes: B rows, A prompts read at once, T tokens of a piece, P prefixes, C steps of a chunk, E language-model width,
V vocabulary, U automaton states. The columns are explained in layout.py.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, Key, UInt32

from mlingo_jax.inference import columns
from mlingo_jax.inference.layout import Layout
from mlingo_jax.inference.sampling import Sampling, choose
from mlingo_jax.inference.stopping import START, next_states
from mlingo_jax.models.llama import KVCache
from mlingo_jax.models.musilingo import Networks, bind, embed_rows
from mlingo_jax.models.partition import constrain


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pieces:
    """Pieces of prompts to be read: tokens, padded at the end, and the music that some of them are.

    `lengths` 0 marks a place without a piece. `music_index` is -1 for text, else the music token that stands there.
    `opened` says whether a prefix stands behind the opening; a prompt without music begins with its prefix.
    """

    tokens: Int32[Array, "A T"] | Int32[np.ndarray, "A T"]
    music_index: Int32[Array, "A T"] | Int32[np.ndarray, "A T"]
    lengths: Int32[Array, " A"] | Int32[np.ndarray, " A"]
    music: Float[Array, "A ..."] | Float[np.ndarray, "A ..."]
    opened: Bool[Array, " A"] | Bool[np.ndarray, " A"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Asked:
    """Where the answers to questions are written, and how: one each of `Pieces`. A row past the last is none."""

    rows: Int32[Array, " A"] | Int32[np.ndarray, " A"]
    prefixes: Int32[Array, " A"] | Int32[np.ndarray, " A"]
    limits: Int32[Array, " A"] | Int32[np.ndarray, " A"]
    seeds: UInt32[Array, " A"] | UInt32[np.ndarray, " A"]
    salts: UInt32[Array, " A"] | UInt32[np.ndarray, " A"]
    sampling: Sampling


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefixes:
    """Prefixes of clips: their keys and values in a row's first columns. The last one holds the opening alone."""

    cache: KVCache
    lengths: Int32[Array, " P"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
    """How far each row is.

    Attributes:
        hidden: the last hidden state of what a row holds so far, from which its next token is chosen.
        prompts: the tokens of its prompt.
        counts: the tokens of its answer.
        limits: the most that the answer may have.
        stop_states: the stop automaton's state.
        keys: its random key; token n is drawn with the key folded with n.
        sampling: how it is drawn.
    """

    hidden: Float[Array, "B E"]
    prompts: Int32[Array, " B"]
    counts: Int32[Array, " B"]
    limits: Int32[Array, " B"]
    stop_states: Int32[Array, " B"]
    keys: Key[Array, " B"]
    sampling: Sampling

    def running(self, held: Bool[Array, " B"] | Bool[np.ndarray, " B"]) -> Bool[Array, " B"]:
        """Which of the rows that are held have not ended."""
        return (self.stop_states >= START) & (self.counts < self.limits) & held


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """All rows between two tokens. In the cache, staging columns are empty between two chunks."""

    cache: KVCache
    progress: Progress


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Written:
    """What a chunk wrote: row b's new tokens are `tokens[b, : counts[b] - counts before]`. `steps` of C were made.

    `log_probs` are the tokens' log-probabilities as the model gives them: at temperature 1, without limits.
    """

    tokens: Int32[Array, "B C"]
    log_probs: Float[Array, "B C"]
    counts: Int32[Array, " B"]
    stop_states: Int32[Array, " B"]
    steps: Int32[Array, ""]


@partial(jax.jit, static_argnames=("networks", "layout"))
def begin(networks: Networks, params: Any, layout: Layout, opening: Int32[Array, "1 T"]) -> tuple[Rows, Prefixes]:
    """Empty rows, and no prefixes but the opening, which is read here."""
    llm = bind(networks, *params).llm
    dtype, count = llm.embedding.dtype, layout.rows
    kept = llm.init_cache(layout.prefixes + 1, layout.prompt, dtype)
    if layout.opening:
        read = llm.init_cache(1, layout.opening, dtype)
        positions = jnp.arange(layout.opening, dtype=jnp.int32)[None]
        _, read = llm.extend(llm.embed(opening), positions, jnp.ones_like(opening), read, 0)
        kept = columns.put(kept, read, jnp.full(1, layout.prefixes))
    none = jnp.zeros(count, jnp.int32)
    progress = Progress(
        hidden=jnp.zeros((count, llm.config.embed_dim), dtype),
        prompts=none,
        counts=none,
        limits=none,
        stop_states=none + START,
        keys=jax.random.split(jax.random.key(0), count),
        sampling=Sampling(jnp.zeros(count, jnp.float32), none, jnp.ones(count, jnp.float32)),
    )
    lengths = jnp.full(layout.prefixes + 1, layout.opening, jnp.int32)
    rows = Rows(llm.init_cache(count, layout.columns, dtype), progress)
    return _laid(rows), Prefixes(columns.laid(kept), _whole(lengths))


@partial(jax.jit, static_argnames=("networks", "layout"), donate_argnames=("prefixes",))
def read_prefixes(
    networks: Networks,
    params: Any,
    layout: Layout,
    prefixes: Prefixes,
    pieces: Pieces,
    entries: Int32[Array, " A"] | Int32[np.ndarray, " A"],
) -> Prefixes:
    """Reads pieces behind the opening and keeps them as these entries; an entry past the last is none."""
    opened = jnp.asarray(pieces.opened)
    opening = columns.take(prefixes.cache, jnp.full(len(entries), layout.prefixes), layout.opening)
    opening = dataclasses.replace(opening, positions=jnp.where(opened[:, None], opening.positions, -1))
    before = jnp.where(opened, layout.opening, 0).astype(jnp.int32)
    _, read, lengths = _read(networks, params, opening, before, pieces)
    lengths = prefixes.lengths.at[entries].set(lengths, mode="drop")
    return Prefixes(columns.laid(columns.put(prefixes.cache, read, entries)), _whole(lengths))


@partial(jax.jit, static_argnames=("networks", "layout"), donate_argnames=("rows",))
def read_questions(
    networks: Networks, params: Any, layout: Layout, rows: Rows, prefixes: Prefixes, pieces: Pieces, asked: Asked
) -> Rows:
    """Reads questions behind their clips' prefixes into rows, which are to be answered from now on."""
    before = columns.take(prefixes.cache, asked.prefixes, layout.prompt)
    hidden, read, lengths = _read(networks, params, before, prefixes.lengths[asked.prefixes], pieces)
    last = jnp.maximum(pieces.lengths - 1, 0)[:, None, None]
    new = Progress(
        hidden=jnp.take_along_axis(hidden, last, axis=1)[:, 0],
        prompts=lengths,
        counts=jnp.zeros_like(lengths),
        limits=jnp.asarray(asked.limits),
        stop_states=jnp.full_like(lengths, START),
        keys=jax.vmap(lambda seed, salt: jax.random.fold_in(jax.random.key(seed), salt))(asked.seeds, asked.salts),
        sampling=jax.tree.map(jnp.asarray, asked.sampling),
    )
    progress = jax.tree.map(lambda old, new: old.at[asked.rows].set(new, mode="drop"), rows.progress, new)
    return _laid(Rows(columns.put(rows.cache, read, asked.rows), progress))


@partial(jax.jit, static_argnames=("networks", "layout"), donate_argnames=("rows",))
def write_chunk(
    networks: Networks,
    params: Any,
    layout: Layout,
    rows: Rows,
    table: Int32[Array, "U V"],
    held: Bool[Array, " B"] | Bool[np.ndarray, " B"],
) -> tuple[Rows, Written]:
    """Writes up to C tokens in every row that is `held` and has not ended; stops early once none is left."""
    llm = bind(networks, *params).llm

    def unfinished(carry: tuple[Array, Rows, Array, Array]) -> Array:
        step, rows, *_ = carry
        return (step < layout.chunk) & rows.progress.running(held).any()

    def advance(carry: tuple[Array, Rows, Array, Array]) -> tuple[Array, Rows, Array, Array]:
        step, rows, tokens, log_probs = carry
        positions = rows.progress.prompts + rows.progress.counts
        logits = llm.logits(rows.progress.hidden)
        token, progress = _next(rows.progress, logits, table, held)
        # A row's last token is written, not read.
        more = progress.running(held).astype(jnp.int32)
        embedded = llm.embed(token[:, None])
        hidden, cache = llm.extend(embedded, positions[:, None], more[:, None], rows.cache, layout.staging_at + step)
        rows = Rows(cache, dataclasses.replace(progress, hidden=hidden[:, 0]))
        log_prob = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)
        return step + 1, _laid(rows), tokens.at[:, step].set(token), log_probs.at[:, step].set(log_prob)

    empty = jnp.zeros((layout.rows, layout.chunk), jnp.int32)
    begun = jnp.int32(0), rows, empty, empty.astype(jnp.float32)
    steps, after, tokens, log_probs = jax.lax.while_loop(unfinished, advance, begun)
    after = _laid(Rows(columns.settle(after.cache, layout, rows.progress.counts), after.progress))
    written = Written(tokens, log_probs, after.progress.counts, after.progress.stop_states, steps)
    return after, jax.tree.map(_whole, written)


def _next(
    progress: Progress, logits: Float[Array, "B V"], table: Int32[Array, "U V"], held: Any
) -> tuple[Int32[Array, " B"], Progress]:
    """Chooses each running row's next token; the others get 0 and stay as they are."""
    running = progress.running(held)
    token = jnp.where(running, choose(logits, progress.keys, progress.counts, progress.sampling), 0)
    states = jnp.where(running, next_states(table, progress.stop_states, token, logits), progress.stop_states)
    return token, dataclasses.replace(progress, counts=progress.counts + running, stop_states=states)


def _read(
    networks: Networks, params: Any, before: KVCache, lengths: Int32[Array, " A"], pieces: Pieces
) -> tuple[Float[Array, "A T E"], KVCache, Int32[Array, " A"]]:
    """Reads pieces behind columns that hold `lengths` tokens: their hidden states, all columns, all tokens' number."""
    llm, adapter, _ = bind(networks, *params)
    music = adapter.tokens(jnp.asarray(pieces.music))
    embeddings = embed_rows(llm, jnp.asarray(pieces.tokens), jnp.asarray(pieces.music_index), music)
    count, size = pieces.tokens.shape
    room = llm.init_cache(count, size, llm.embedding.dtype)
    positions = jnp.arange(size, dtype=jnp.int32)[None]
    segments = (positions < pieces.lengths[:, None]).astype(jnp.int32)
    cache = columns.join(before, room)
    hidden, cache = llm.extend(embeddings, lengths[:, None] + positions, segments, cache, before.positions.shape[1])
    return hidden, cache, lengths + pieces.lengths


def _laid(rows: Rows) -> Rows:
    """On a mesh: rows over its parts, as the layers take them."""
    progress = jax.tree.map(lambda x: constrain(x, "BE"[: x.ndim]), rows.progress)
    return Rows(columns.laid(rows.cache), progress)


def _whole(x: Array) -> Array:
    """On a mesh: the same on every device, for the host to read."""
    return constrain(x, "." * x.ndim)

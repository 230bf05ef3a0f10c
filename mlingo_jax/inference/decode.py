"""Greedy decoding and sampling: the prompt is read once, then one jitted loop writes an answer in every row.

Axes: B rows, P positions of the padded prompt, N positions for answer tokens, S = P + N - 1 slots of the key/value
cache (the last token of an answer is never read), E language-model width, V vocabulary, A automaton states.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Int32, Key

from mlingo_jax.inference.sampling import Sampling, choose
from mlingo_jax.inference.stopping import ENDED_BY_EOS, START, next_states
from mlingo_jax.models.llama import KVCache, Llama


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """What is read before the first token: rows that begin at position 0 and are padded at their end with segment 0."""

    embeddings: Float[Array, "B P E"]
    positions: Int[Array, "B P"]
    segments: Int[Array, "B P"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Generated:
    """Answers as tokens: row b's are `tokens[b, :lengths[b]]`, the token that ended it included.

    `stop_states` are the stop automaton's last states (stopping.py): ENDED_BY_EOS, ENDED_BY_STOP, NOT_FINITE, or from
    START on for an answer that was cut at its greatest length.
    """

    tokens: Int32[Array, "B N"]
    lengths: Int32[Array, " B"]
    stop_states: Int32[Array, " B"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """The decode loop between two tokens.

    Attributes:
        answers: what has been written; positions not reached yet hold 0.
        step: tokens written in each row that has not ended; the newest one is not in the cache yet.
        positions: RoPE position of each row's newest token. Rows have prompts of different lengths, so position and
            cache slot (the same for all rows: P + step - 1 for the newest token) differ.
        cache: keys and values of the prompt and of all tokens but the newest.
        keys: each row's random key; token n is drawn with the key folded with n.
    """

    answers: Generated
    step: Int32[Array, ""]
    positions: Int32[Array, " B"]
    cache: KVCache
    keys: Key[Array, " B"]


def read_prompts(llm: Llama, prompts: Prompts, slots: int) -> tuple[Float[Array, "B V"], Int32[Array, " B"], KVCache]:
    """Fills a cache of P + `slots` slots; gives the logits of each row's first answer token, and its position."""
    embeddings, positions, segments = prompts.embeddings, prompts.positions, prompts.segments
    batch, length = segments.shape
    cache = llm.init_cache(batch, length + slots, embeddings.dtype)
    hidden, cache = llm.extend(embeddings, positions, segments, cache, jnp.int32(0))
    last = jnp.maximum((segments > 0).sum(axis=1) - 1, 0)[:, None]
    logits = llm.logits(jnp.take_along_axis(hidden, last[..., None], axis=1)[:, 0])
    return logits, jnp.take_along_axis(positions, last, axis=1)[:, 0].astype(jnp.int32) + 1, cache


@partial(jax.jit, static_argnames=("graphdef", "max_new_tokens"))
def prefill(
    graphdef: nnx.GraphDef[Llama],
    params: Any,
    prompts: Prompts,
    table: Int32[Array, "A V"],
    keys: Key[Array, " B"],
    sampling: Sampling | None,
    *,
    max_new_tokens: int,
) -> DecodeState:
    """Reads the prompts and writes each row's first token. A row of padding alone has ended from the start."""
    llm = nnx.merge(graphdef, nnx.State(params))
    logits, first, cache = read_prompts(llm, prompts, max_new_tokens - 1)
    batch = prompts.segments.shape[0]
    answers = Generated(
        tokens=jnp.zeros((batch, max_new_tokens), jnp.int32),
        lengths=jnp.zeros(batch, jnp.int32),
        stop_states=jnp.where((prompts.segments > 0).any(axis=1), START, ENDED_BY_EOS).astype(jnp.int32),
    )
    # One before the first: `_write` moves on to the token that it writes.
    state = DecodeState(answers, jnp.int32(0), first - 1, cache, keys)
    return _write(state, logits, table, sampling)


@partial(jax.jit, static_argnames=("graphdef",), donate_argnames=("state",))
def decode(
    graphdef: nnx.GraphDef[Llama],
    params: Any,
    state: DecodeState,
    table: Int32[Array, "A V"],
    sampling: Sampling | None,
    limit: Int32[Array, ""],
) -> DecodeState:
    """Goes on until every row has ended or holds `limit` tokens; `limit` is traced, so streaming compiles nothing new.

    The memory of `state` is used again: it cannot be read afterwards.
    """
    llm = nnx.merge(graphdef, nnx.State(params))
    length = state.answers.tokens.shape[1]
    prompt = state.cache.positions.shape[1] - (length - 1)

    def unfinished(state: DecodeState) -> Array:
        return (state.step < jnp.minimum(limit, length)) & (state.answers.stop_states >= START).any()

    def advance(state: DecodeState) -> DecodeState:
        newest = state.answers.tokens[:, state.step - 1]
        running = (state.answers.stop_states >= START).astype(jnp.int32)
        hidden, cache = llm.extend(
            llm.embed(newest[:, None]),
            state.positions[:, None],
            running[:, None],
            state.cache,
            prompt + state.step - 1,
        )
        return _write(dataclasses.replace(state, cache=cache), llm.logits(hidden[:, 0]), table, sampling)

    return jax.lax.while_loop(unfinished, advance, state)


def _write(
    state: DecodeState, logits: Float[Array, "B V"], table: Int32[Array, "A V"], sampling: Sampling | None
) -> DecodeState:
    """Chooses each row's next token and writes it; rows that have ended get 0 and stay as they are."""
    old = state.answers
    running = old.stop_states >= START
    steps = jnp.full_like(old.lengths, state.step)
    token = jnp.where(running, choose(logits, state.keys, steps, sampling), 0)
    answers = Generated(
        tokens=old.tokens.at[:, state.step].set(token),
        lengths=old.lengths + running,
        stop_states=next_states(table, old.stop_states, token, logits),
    )
    return dataclasses.replace(state, answers=answers, step=state.step + 1, positions=state.positions + 1)

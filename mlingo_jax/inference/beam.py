"""Beam search, as transformers does it by default.

The length penalty is 1 (the mean log-probability per token counts), and a row is done when its best running hypothesis
has a lower mean than its worst finished one (early_stopping=False).

Axes: B rows, K beams, P positions of the padded prompt, N positions for answer tokens, V vocabulary, E language-model
width, A automaton states.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int32

from mlingo_jax.inference.decode import Generated, Prompts, read_prompts
from mlingo_jax.inference.stopping import NOT_FINITE, START
from mlingo_jax.models.llama import KVCache, Llama

# The score of a beam or hypothesis that does not exist.
NO_SCORE = -1e9


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hypotheses:
    """K finished answers of each row, the best first. One that does not exist has length 0 and the score NO_SCORE.

    `scores` are mean log-probabilities per token; `stop_states` the stop automaton's last states.
    """

    tokens: Int32[Array, "B K N"]
    lengths: Int32[Array, "B K"]
    stop_states: Int32[Array, "B K"]
    scores: Float[Array, "B K"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BeamState:
    """The beam loop between two tokens.

    Attributes:
        tokens: the running hypotheses, the most probable first; positions not reached yet hold 0.
        scores: their summed log-probabilities.
        stop_states: their states of the stop automaton.
        finished: the best finished hypotheses.
        open: whether a running hypothesis of the row may still replace a finished one.
        broken: whether logits of the row were not finite.
        step: tokens in each running hypothesis; the newest is not in the cache yet.
        positions: RoPE position of each row's newest tokens.
        cache: keys and values, B * K rows, those of a row's beams together.
    """

    tokens: Int32[Array, "B K N"]
    scores: Float[Array, "B K"]
    stop_states: Int32[Array, "B K"]
    finished: Hypotheses
    open: Bool[Array, " B"]
    broken: Bool[Array, " B"]
    step: Int32[Array, ""]
    positions: Int32[Array, " B"]
    cache: KVCache


@partial(jax.jit, static_argnames=("graphdef", "num_beams", "max_new_tokens"))
def beam_search(
    graphdef: nnx.GraphDef[Llama],
    params: Any,
    prompts: Prompts,
    table: Int32[Array, "A V"],
    *,
    num_beams: int,
    max_new_tokens: int,
) -> Generated:
    """Each row's best hypothesis. A stop text ends a hypothesis as an end-of-sequence token does."""
    llm = nnx.merge(graphdef, nnx.State(params))
    logits, first, cache = read_prompts(llm, prompts, max_new_tokens - 1)
    batch, prompt = prompts.segments.shape
    state = BeamState(
        tokens=jnp.zeros((batch, num_beams, max_new_tokens), jnp.int32),
        # All beams but the first do not exist yet, or the first step would find every token K times.
        scores=jnp.full((batch, num_beams), NO_SCORE).at[:, 0].set(0.0),
        stop_states=jnp.full((batch, num_beams), START, jnp.int32),
        finished=_no_hypotheses(batch, num_beams, max_new_tokens),
        open=(prompts.segments > 0).any(axis=1),
        broken=jnp.zeros(batch, bool),
        step=jnp.int32(0),
        positions=first - 1,
        cache=_repeat_rows(cache, num_beams),
    )
    state = _extend_beams(state, jnp.repeat(logits[:, None], num_beams, axis=1), table)

    def unfinished(state: BeamState) -> Array:
        return (state.step < max_new_tokens) & state.open.any()

    def advance(state: BeamState) -> BeamState:
        newest = state.tokens[:, :, state.step - 1].reshape(-1, 1)
        hidden, cache = llm.extend(
            llm.embed(newest),
            jnp.repeat(state.positions, num_beams)[:, None],
            jnp.ones_like(newest),
            state.cache,
            prompt + state.step - 1,
        )
        logits = llm.logits(hidden.reshape(batch, num_beams, -1))
        return _extend_beams(dataclasses.replace(state, cache=cache), logits, table)

    last = jax.lax.while_loop(unfinished, advance, state)
    best = last.finished
    stop_states = jnp.where(last.broken, NOT_FINITE, best.stop_states[:, 0])
    return Generated(best.tokens[:, 0], best.lengths[:, 0], stop_states)


def _extend_beams(state: BeamState, logits: Float[Array, "B K V"], table: Int32[Array, "A V"]) -> BeamState:
    """One token more: the K best continuations that go on run on, those of the K best that end are finished."""
    batch, beams, length = state.tokens.shape
    vocab_size = logits.shape[-1]
    totals = jax.nn.log_softmax(logits, axis=-1) + state.scores[..., None]
    next_states = table[state.stop_states]
    ended = next_states < START

    def continuations(totals: Float[Array, "B K V"]) -> tuple[Array, Array, Array, Array]:
        scores, flat = jax.lax.top_k(totals.reshape(batch, -1), beams)
        parents, token = flat // vocab_size, (flat % vocab_size).astype(jnp.int32)
        tokens = jnp.take_along_axis(state.tokens, parents[..., None], axis=1).at[:, :, state.step].set(token)
        stop_states = jnp.take_along_axis(next_states.reshape(batch, -1), flat, axis=1)
        return scores, parents, tokens, stop_states

    step = state.step + 1
    scores, _, tokens, stop_states = continuations(totals)
    ends = ((stop_states < START) | (step == length)) & state.open[:, None]
    lengths = jnp.where(ends, step, 0)
    means = jnp.where(ends, scores / step, NO_SCORE)
    finished = _best(state.finished, Hypotheses(tokens, lengths, stop_states, means))

    scores, parents, tokens, stop_states = continuations(jnp.where(ended, NO_SCORE, totals))
    full = (finished.lengths > 0).all(axis=1)
    return BeamState(
        tokens=tokens,
        scores=scores,
        stop_states=stop_states,
        finished=finished,
        broken=state.broken | (state.open & ~jnp.isfinite(logits).all(axis=(1, 2))),
        open=state.open & (~full | (scores[:, 0] / step > finished.scores.min(axis=1))),
        step=step,
        positions=state.positions + 1,
        cache=_follow(state.cache, parents, length),
    )


def _best(one: Hypotheses, other: Hypotheses) -> Hypotheses:
    """The best K of the two sets of K, in each row."""
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), one, other)
    _, kept = jax.lax.top_k(both.scores, one.scores.shape[1])
    return jax.tree.map(lambda x: jnp.take_along_axis(x, kept.reshape(*kept.shape, *[1] * (x.ndim - 2)), axis=1), both)


def _no_hypotheses(batch: int, beams: int, length: int) -> Hypotheses:
    return Hypotheses(
        tokens=jnp.zeros((batch, beams, length), jnp.int32),
        lengths=jnp.zeros((batch, beams), jnp.int32),
        stop_states=jnp.full((batch, beams), START, jnp.int32),
        scores=jnp.full((batch, beams), NO_SCORE),
    )


def _repeat_rows(cache: KVCache, times: int) -> KVCache:
    keys, values = jax.tree.map(lambda x: jnp.repeat(x, times, axis=-4), (cache.key, cache.value))
    return KVCache(keys, values, jnp.repeat(cache.positions, times, axis=0))


def _follow(cache: KVCache, parents: Int[Array, "B K"], length: int) -> KVCache:
    """Each beam takes over the answer so far of its parent: the cache's last `length` - 1 slots.

    The prompt and the positions are the same in all beams of a row and stay where they are.
    """
    beams = parents.shape[1]
    rows = (jnp.arange(parents.shape[0])[:, None] * beams + parents).reshape(-1)
    prompt = cache.positions.shape[1] - (length - 1)

    def reorder(x: Array) -> Array:
        return x.at[..., prompt:, :, :].set(x[..., rows, prompt:, :, :])

    return dataclasses.replace(cache, key=jax.tree.map(reorder, cache.key), value=jax.tree.map(reorder, cache.value))

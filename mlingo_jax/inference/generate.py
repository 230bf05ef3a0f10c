"""From prompts as embeddings to answers as text: the one entry to greedy decoding, sampling and beam search.

Axes: B rows, P positions of the padded prompt, E language-model width.
"""

import dataclasses
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Int32, Key

from mlingo_jax.errors import UserError
from mlingo_jax.inference.beam import beam_search
from mlingo_jax.inference.decode import Generated, decode, prefill
from mlingo_jax.inference.sampling import Sampling
from mlingo_jax.inference.stopping import NOT_FINITE, START, FinishReason, StopRule, TextReader, finish_reason
from mlingo_jax.models.llama import Llama


@dataclasses.dataclass(frozen=True)
class Options:
    """How answers are generated.

    At temperature 0 the most probable token is taken; above it tokens are drawn, after `top_k` and `top_p` if given.
    With several beams the hypothesis of the highest mean log-probability per token is searched for, without drawing.
    Warns of a `top_k` or `top_p` at temperature 0, where it is not used.

    Raises:
        UserError: a number is out of its range, or beams and a temperature are given together.
    """

    max_new_tokens: int = 300
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    num_beams: int = 1

    def __post_init__(self):
        _require(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "at least 1")
        finite = math.isfinite(self.temperature)
        _require(finite and self.temperature >= 0, "temperature", self.temperature, "at least 0 (0: the most probable)")
        _require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "at least 1; leave it out for no limit")
        in_range = self.top_p is None or 0 < self.top_p <= 1
        _require(in_range, "top_p", self.top_p, "above 0 and at most 1; leave it out for no limit")
        _require(self.num_beams >= 1, "num_beams", self.num_beams, "at least 1")
        if self.num_beams > 1 and self.temperature > 0:
            raise UserError(
                f"num_beams is {self.num_beams} and temperature {self.temperature}: beam search does not draw; "
                "give num_beams 1 or temperature 0"
            )
        limits = {"top_k": self.top_k is not None, "top_p": self.top_p not in (None, 1)}
        if self.temperature == 0 and any(limits.values()):
            given = " and ".join(name for name, is_given in limits.items() if is_given)
            warnings.warn(
                f"{given} will not be used: at temperature 0 nothing is drawn; give a temperature above 0", stacklevel=3
            )

    def sampling(self, rows: int) -> Sampling | None:
        """What `sampling.choose` takes for so many rows; None for the most probable token."""
        return None if self.temperature == 0 else sampling_of([self] * rows)


def sampling_of(options: Sequence[Options]) -> Sampling:
    """How rows that have an `Options` each are drawn."""
    return Sampling(
        temperature=np.array([o.temperature for o in options], np.float32),
        top_k=np.array([o.top_k or 0 for o in options], np.int32),
        top_p=np.array([o.top_p or 1 for o in options], np.float32),
    )


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer's text, without the stop text and white space around it, and what ended it.

    `finish_reason` is "stop" for a stop text, "eos" for an end-of-sequence token, "length" where the answer was cut at
    the greatest number of tokens. `tokens` are the ids as generated, with those of the ending.
    """

    text: str
    finish_reason: FinishReason
    tokens: tuple[int, ...]


def generate(
    graphdef: nnx.GraphDef[Llama],
    params: Any,
    embeddings: Float[Array, "B P E"],
    positions: Int[Array, "B P"],
    segments: Int[Array, "B P"],
    *,
    rule: StopRule,
    options: Options,
    keys: Key[Array, " B"],
) -> list[Answer]:
    """The answer to each row's prompt; what a row gets does not depend on the others.

    Rows begin at position 0 and are padded at their end with segment 0; a row of padding alone gets an empty answer and
    costs no steps. `keys` are the rows' random keys (`sampling.row_keys`), unused at temperature 0. One program is
    compiled for each shape of the prompts, `max_new_tokens`, number of beams and set of stop texts.

    Raises:
        UserError: the logits of a row are not finite.
    """
    prompt = (graphdef, params, embeddings, positions, segments, rule.table)
    if options.num_beams > 1:
        found = beam_search(*prompt, num_beams=options.num_beams, max_new_tokens=options.max_new_tokens)
        return _answers(found, rule, embeddings)
    sampling = options.sampling(len(keys))
    state = prefill(*prompt, keys, sampling, max_new_tokens=options.max_new_tokens)
    limit = jnp.int32(options.max_new_tokens)
    return _answers(decode(graphdef, params, state, rule.table, sampling, limit).answers, rule, embeddings)


def stream(
    graphdef: nnx.GraphDef[Llama],
    params: Any,
    embeddings: Float[Array, "1 P E"],
    positions: Int[Array, "1 P"],
    segments: Int[Array, "1 P"],
    *,
    rule: StopRule,
    options: Options,
    keys: Key[Array, "1"],
) -> Iterator[str]:
    """The text of one row's answer in pieces, as it is written; put together they are `generate`'s text.

    Beam search knows its answer only at the end and gives it in one piece.
    """
    prompt = (graphdef, params, embeddings, positions, segments)
    if options.num_beams > 1:
        yield generate(*prompt, rule=rule, options=options, keys=keys)[0].text
        return
    reader = TextReader(rule)
    sampling = options.sampling(1)
    state = prefill(*prompt, rule.table, keys, sampling, max_new_tokens=options.max_new_tokens)
    for step in range(1, options.max_new_tokens + 1):
        check_finite(np.asarray(state.answers.stop_states), embeddings)
        if piece := reader.read([int(state.answers.tokens[0, step - 1])]):
            yield piece
        if step == options.max_new_tokens or int(state.answers.stop_states[0]) < START:
            break
        state = decode(graphdef, params, state, rule.table, sampling, jnp.int32(step + 1))
    if piece := reader.finish():
        yield piece


def _answers(generated: Generated, rule: StopRule, embeddings: Float[Array, "B P E"]) -> list[Answer]:
    fields = jax.device_get((generated.tokens, generated.lengths, generated.stop_states))
    check_finite(fields[2], embeddings)
    return [
        Answer(rule.text(tokens[:length]), finish_reason(state), tuple(tokens[:length]))
        for tokens, length, state in zip(*(field.tolist() for field in fields), strict=True)
    ]


def check_finite(stop_states: Int32[np.ndarray, " B"], embeddings: Float[Array, "B P E"]) -> None:
    """Raises UserError, with the cause, if a row was ended because its logits are not finite."""
    rows = np.flatnonzero(stop_states == NOT_FINITE)
    if not len(rows):
        return
    given = bool(jnp.isfinite(embeddings[rows[0]]).all())
    cause = (
        f"though its prompt's embeddings are finite: the language model overflows in {embeddings.dtype.name}; load it "
        "in float32, or quantise it less"
        if given
        else "because its prompt's embeddings are not: look at its clip, the encoder's dtype and the adapter"
    )
    raise UserError(f"no answer to prompt {rows[0] + 1}: its logits are NaN or infinite, {cause}")


def _require(holds: bool, name: str, value: Any, expected: str) -> None:
    if not holds:
        raise UserError(f"{name} is {value}; expected {expected}")

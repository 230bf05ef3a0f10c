"""How likely given answers are: the log-probabilities of their tokens, for many questions about many clips at once.

A prompt with several answers is read once, and each answer behind its keys and values. Where each prompt has a single
answer that would save nothing: such rows are read whole, several packed into one.

Axes: P prompts, A answers, T tokens, K music tokens, S hidden states, D encoder width, E language-model width.
"""

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int32

from mlingo_jax.data.packing import ROW_LENGTH, join, pack
from mlingo_jax.data.prompt import Prompt, Question, Row, collate
from mlingo_jax.inference import columns
from mlingo_jax.models.musilingo import Networks, bind, embed_rows, next_token_log_probs, token_log_probs

LogProbs = Float32[np.ndarray, " T"]

# Tokens of a program's rows: 4.3 GB of keys and values of a LLaMA of 7B in bfloat16.
TOKENS = 8192
# Lengths are padded to multiples of these, so that few programs are compiled.
_PROMPT, _ANSWER, _ROW = 32, 16, 64


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """A question about a clip's music features (with K = 0, without music), and answers to be scored."""

    features: Float[np.ndarray, "*S K D"]
    question: str | Question
    answers: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class _Rows:
    """The rows of one prompt, one for each answer; all begin with the same `prompt` tokens."""

    features: Float[np.ndarray, "*S K D"]
    rows: list[Row]
    places: list[tuple[int, int]]

    @property
    def prompt(self) -> int:
        return int(np.argmax(self.rows[0].loss_weights > 0))

    @property
    def alike(self) -> bool:
        """Whether there is a prompt: with neither template, music nor a first token, a row is its answer alone."""
        first = self.rows[0].tokens[: self.prompt]
        return all(np.array_equal(row.tokens[: self.prompt], first) for row in self.rows)

    @property
    def answer(self) -> int:
        """The longest answer's tokens."""
        return max(len(row.tokens) for row in self.rows) - self.prompt


def answer_log_probs(
    networks: Networks,
    params: Any,
    prompt: Prompt,
    asked: Sequence[Asked],
    *,
    tokens: int = TOKENS,
    mesh: Mesh | None = None,
) -> list[list[LogProbs]]:
    """The log-probability of each token of each answer, the end symbol's included, given music and question.

    What an answer gets does not depend on the others. Answers are cut as in training.

    Args:
        networks, params: the language model and the adapter, and what is frozen and trained of their parameters.
        prompt: how questions are put.
        asked: what to score.
        tokens: in the rows of one program, about.
        mesh: the parameters' own, if they are on one.

    Returns:
        For each of `asked` a list of one array per answer.
    """
    found: dict[tuple[int, int], LogProbs] = {}
    alone, shared = [], []
    for rows in _rows(prompt, asked):
        (shared if len(rows.rows) > 1 and rows.alike else alone).append(rows)
    # A mesh splits rows evenly.
    least = 1 if mesh is None else math.prod(mesh.shape.get(axis, 1) for axis in ("data", "fsdp"))
    with nullcontext() if mesh is None else jax.set_mesh(mesh):
        for some in _batches_of_prompts(shared, tokens):
            found |= _score_shared(networks, params, some, least)
        found |= _score_packed(networks, params, alone, tokens, least)
    return [[found[i, j] for j in range(len(one.answers))] for i, one in enumerate(asked)]


def tokens_read(prompt: Prompt, asked: Sequence[tuple[str | Question, Sequence[str], int]]) -> tuple[int, int]:
    """The tokens that are read for these (question, answers, music tokens), each prompt once.

    And as many as it would be with every answer by itself.
    """
    texts = [(question, answer, music) for question, answers, music in asked for answer in answers]
    rows = iter(prompt.rows(texts))
    read = whole = 0
    for _, answers, _ in asked:
        sizes = [(len(row.tokens), int((row.loss_weights > 0).sum())) for row in itertools.islice(rows, len(answers))]
        whole += sum(size for size, _ in sizes)
        read += sum(answer for _, answer in sizes) + (sizes[0][0] - sizes[0][1])
    return read, whole


def _rows(prompt: Prompt, asked: Sequence[Asked]) -> list[_Rows]:
    texts = [(one.question, answer, one.features.shape[-2]) for one in asked for answer in one.answers]
    rows = iter(prompt.rows(texts))
    return [
        _Rows(one.features, [next(rows) for _ in one.answers], [(i, j) for j in range(len(one.answers))])
        for i, one in enumerate(asked)
        if one.answers
    ]


def _batches_of_prompts(prompts: Sequence[_Rows], tokens: int) -> Iterator[list[_Rows]]:
    """Prompts of like length with answers of like length, as many as one program takes."""
    alike: defaultdict[tuple[int, int], list[_Rows]] = defaultdict(list)
    for one in prompts:
        size = _up(one.prompt, _PROMPT) + _up(one.answer, _ANSWER)
        most = _power_below(max(tokens // size, 1))
        for start in range(0, len(one.rows), most):
            part = _Rows(one.features, one.rows[start : start + most], one.places[start : start + most])
            alike[_up(part.prompt, _PROMPT), _up(part.answer, _ANSWER)].append(part)
    for size, some in sorted(alike.items()):
        most, batch = _power_below(max(tokens // sum(size), 1)), list[_Rows]()
        for one in some:
            if batch and sum(len(b.rows) for b in batch) + len(one.rows) > most:
                yield batch
                batch = []
            batch.append(one)
        yield batch


def _score_shared(
    networks: Networks, params: Any, prompts: Sequence[_Rows], least: int
) -> dict[tuple[int, int], LogProbs]:
    """The log-probabilities of the answers of some prompts, each prompt read once."""
    count, size = _power_above(max(len(prompts), least)), _up(max(one.prompt for one in prompts), _PROMPT)
    heads = [_cut(one.rows[0], 0, one.prompt) for one in prompts]
    fields, music = collate(heads, size, count), _pad_music([one.features for one in prompts], count)
    answers = [(p, row.tokens[one.prompt :]) for p, one in enumerate(prompts) for row in one.rows]
    rows, longest = _power_above(max(len(answers), least)), _up(max(one.answer for one in prompts), _ANSWER)
    tokens = np.zeros((rows, longest), np.int32)
    lengths, of = np.zeros(len(tokens), np.int32), np.zeros(len(tokens), np.int32)
    for a, (p, ids) in enumerate(answers):
        tokens[a, : len(ids)], lengths[a], of[a] = ids, len(ids), p
    scores = np.asarray(_log_probs_behind(networks, params, fields, music, tokens, lengths, of))
    places = itertools.chain.from_iterable(one.places for one in prompts)
    return {place: scores[a, : lengths[a]] for a, place in enumerate(places)}


def _score_packed(
    networks: Networks, params: Any, prompts: Sequence[_Rows], tokens: int, least: int
) -> dict[tuple[int, int], LogProbs]:
    """The log-probabilities of answers whose rows are read whole, several in a row of the program."""
    rows = [(one.features, row, place) for one in prompts for row, place in zip(one.rows, one.places, strict=True)]
    if not rows:
        return {}
    lengths = np.array([len(row.tokens) for _, row, _ in rows], np.int32)
    music = np.array([features.shape[-2] for features, _, _ in rows], np.int32)
    length = _up(max(int(lengths.max()), min(ROW_LENGTH, int(lengths.sum()))), _ROW)
    packing = pack(lengths, music, [range(len(rows))], length=length, seed=0)
    at_once, found = _power_below(max(tokens // length, 1)), dict[tuple[int, int], LogProbs]()
    for start in range(0, len(packing), at_once):
        held = [packing[r] for r in range(start, min(start + at_once, len(packing)))]
        count = _power_above(max(len(held), least))
        fields = collate([join([rows[i][1] for i in some]) for some in held], length, count)
        features = [np.concatenate([rows[i][0] for i in some], axis=-2) for some in held]
        scores = np.asarray(_log_probs(networks, params, fields, _pad_music(features, count)))
        for some, of_row in zip(held, scores, strict=False):
            ends = np.cumsum(lengths[some])
            for i, end in zip(some, ends, strict=True):
                _, row, place = rows[i]
                found[place] = of_row[end - lengths[i] : end][row.loss_weights > 0]
    return found


@partial(jax.jit, static_argnums=0)
def _log_probs(
    networks: Networks, params: Any, batch: dict[str, Array], music: Float[Array, "B ..."]
) -> Float32[Array, "B T"]:
    llm, adapter, _ = bind(networks, *params)
    return token_log_probs(llm, adapter, batch, music)


@partial(jax.jit, static_argnums=0)
def _log_probs_behind(
    networks: Networks,
    params: Any,
    prompts: dict[str, Array],
    music: Float[Array, "P ..."],
    answers: Int32[Array, "A T"],
    lengths: Int32[Array, " A"],
    of: Int32[Array, " A"],
) -> Float32[Array, "A T"]:
    """The log-probabilities of answers, each behind the prompt that `of` says."""
    llm, adapter, _ = bind(networks, *params)
    embeddings = embed_rows(llm, prompts["tokens"], prompts["music_index"], adapter.tokens(music))
    count, size = prompts["tokens"].shape
    room = llm.init_cache(count, size, llm.embedding.dtype)
    hidden, cache = llm.extend(embeddings, prompts["positions"], prompts["segments"], room, 0)
    read = prompts["segments"].sum(axis=1)
    last = jnp.take_along_axis(hidden, jnp.maximum(read - 1, 0)[:, None, None], axis=1)

    rows, length = answers.shape
    cache = columns.join(columns.take(cache, of, size), llm.init_cache(rows, length, llm.embedding.dtype))
    steps = jnp.arange(length, dtype=jnp.int32)[None]
    positions, segments = read[of][:, None] + steps, (steps < lengths[:, None]).astype(jnp.int32)
    hidden, _ = llm.extend(llm.embed(answers), positions, segments, cache, size)
    hidden = jnp.concatenate((last[of], hidden), axis=1)
    return next_token_log_probs(llm, hidden, jnp.pad(answers, ((0, 0), (1, 0))))[:, 1:]


def _cut(row: Row, start: int, end: int) -> Row:
    fields = ("tokens", "music_index", "positions", "segments", "loss_weights")
    return Row(*(getattr(row, name)[start:end] for name in fields))


def _pad_music(features: Sequence[Float[np.ndarray, "..."]], count: int) -> Float32[np.ndarray, "P ..."]:
    """Music features of `count` rows, zeros where there are none; at least one music token, for the shape's sake."""
    *states, _, width = features[0].shape
    most = _power_above(max(max(f.shape[-2] for f in features), 1))
    music = np.zeros((count, *states, most, width), np.float32)
    for b, f in enumerate(features):
        music[b, ..., : f.shape[-2], :] = f
    return music


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _power_above(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _power_below(count: int) -> int:
    return 1 << (count.bit_length() - 1)

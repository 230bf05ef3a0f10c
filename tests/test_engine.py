"""The engine: an answer is the same alone and in any company, nothing is computed twice, nothing compiled again."""

import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mlingo_jax.inference import programs
from mlingo_jax.inference.answering import answers
from mlingo_jax.inference.engine import Engine
from mlingo_jax.inference.generate import Answer, Options
from mlingo_jax.inference.layout import Layout, layout, row_bytes
from mlingo_jax.inference.requests import Piece, Request, cut, whole
from mlingo_jax.inference.stopping import StopRule
from mlingo_jax.models.adapter import Adapter
from mlingo_jax.models.llama import Llama
from mlingo_jax.models.musilingo import Networks, embed_rows
from tests.asking import (
    CLIPS,
    OPENING,
    in_order,
    make_engine,
    random_requests,
    request,
    tiny_layout,
    tiny_networks,
    tiny_rule,
)

PROGRAMS: list[Any] = [programs.begin, programs.read_prefixes, programs.read_questions, programs.write_chunk]
REQUESTS = 200


@pytest.fixture(scope="module")
def networks() -> tuple[Llama, Adapter]:
    return tiny_networks()


@pytest.fixture(scope="module")
def rule(tmp_path_factory) -> StopRule:
    return tiny_rule(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    return random_requests(REQUESTS, seed=0)


@pytest.fixture(scope="module")
def engine(networks, rule) -> Engine:
    return make_engine(networks, rule, tiny_layout(8))


@pytest.fixture(scope="module")
def alone(networks, rule, requests) -> list[Answer]:
    """Each request's answer from an engine that has nothing else to do."""
    engine = make_engine(networks, rule, tiny_layout(8))
    return [in_order(engine, [request])[0] for request in requests]


def test_an_answer_is_that_of_one_pass_over_the_whole_prompt(networks, requests, alone):
    """Greedy answers: each token is the most probable one behind all before it, without a cache or a cut."""
    llm, adapter = networks
    greedy = [(r, a) for r, a in zip(requests, alone, strict=True) if r.options.temperature == 0][:20]
    places = 64
    tokens, index = np.zeros((len(greedy), places), np.int32), np.full((len(greedy), places), -1, np.int32)
    music = np.zeros((len(greedy), CLIPS, 8), np.float32)
    for i, (r, answer) in enumerate(greedy):
        prompt = whole(r, OPENING)
        length = len(prompt.tokens)
        tokens[i, : length + len(answer.tokens)] = [*prompt.tokens, *answer.tokens]
        index[i, :length] = prompt.music_index
        music[i, : len(prompt.music)] = prompt.music
    embeddings = embed_rows(llm, jnp.asarray(tokens), jnp.asarray(index), adapter.tokens(jnp.asarray(music)))
    positions = jnp.broadcast_to(jnp.arange(places), tokens.shape)
    likeliest = llm.logits(llm(embeddings, positions, jnp.ones_like(positions))).argmax(-1)
    for row, (r, answer) in zip(likeliest, greedy, strict=True):
        first = len(whole(r, OPENING).tokens) - 1
        assert tuple(row[first : first + len(answer.tokens)].tolist()) == answer.tokens


def test_two_hundred_requests_are_answered_as_each_alone(engine, requests, alone):
    assert in_order(engine, requests) == alone
    assert {answer.finish_reason for answer in alone} == {"eos", "length"}
    assert len({len(answer.tokens) for answer in alone}) > 20
    # Of a row's steps few are idle, though answers have from one token to thirty.
    assert engine.counts.busy / engine.counts.row_steps > 0.6


@settings(max_examples=15)
@given(st.data())
def test_whenever_a_request_comes_its_answer_is_the_same(engine, requests, alone, data):
    order = data.draw(st.permutations(range(REQUESTS)))[:25]
    pauses = data.draw(st.lists(st.integers(0, 3), min_size=len(order), max_size=len(order)))
    cancelled = data.draw(st.sets(st.sampled_from(order), max_size=4))
    numbers, tokens, ended = {}, {}, {}

    def step() -> None:
        for news in engine.step():
            place = numbers[news.request]
            tokens[place] = tokens.get(place, ()) + news.tokens
            if news.finish_reason:
                ended[place] = news.finish_reason

    for place, pause in zip(order, pauses, strict=True):
        numbers[engine.submit(requests[place])] = place
        for _ in range(pause):
            step()
    for number, place in numbers.items():
        if place in cancelled:
            engine.cancel(number)
    before = set(ended)
    while engine.busy:
        step()
    assert set(ended) == set(order) - (cancelled - before)
    for place, reason in ended.items():
        assert (tokens[place], reason) == (alone[place].tokens, alone[place].finish_reason)
    for place in cancelled - before:
        assert alone[place].tokens[: len(tokens.get(place, ()))] == tokens.get(place, ())


def test_in_bfloat16_and_with_layers_apart_nothing_depends_on_the_company(rule, requests):
    engine = make_engine(tiny_networks(jnp.bfloat16, stacked=False), rule, tiny_layout(8))
    together = in_order(engine, requests[:60])
    assert [in_order(engine, [request])[0] for request in requests[:60]] == together


def test_nothing_is_compiled_once_each_length_has_been_seen(networks, rule, requests):
    make = lambda: make_engine(networks, rule, tiny_layout(8))  # noqa: E731
    in_order(make(), requests)
    compiled = [program._cache_size() for program in PROGRAMS]
    engine = make()
    in_order(engine, random_requests(150, seed=1))
    for some in random_requests(40, seed=2):
        engine.submit(some)
        engine.step()
    assert [program._cache_size() for program in PROGRAMS] == compiled


def test_each_clip_is_read_once_for_all_its_questions(networks, rule):
    engine = make_engine(networks, rule, tiny_layout(8))
    asked = [request(i, clip, [20 + i, 30], Options(1 + i % 9)) for clip in range(CLIPS) for i in range(10)]
    in_order(engine, asked)
    assert engine.counts.prefixes_read == CLIPS
    assert engine.counts.questions_read == len(asked)


def test_a_request_too_large_waits_for_the_rows_and_has_them_grow(networks, rule, requests, alone):
    engine = make_engine(networks, rule, tiny_layout(8, question=8))
    assert in_order(engine, requests[:30]) == alone[:30]
    assert engine.layout == tiny_layout(8)


def test_requests_come_from_other_threads_while_rows_are_written(engine, requests, alone):
    def submit(positions: range) -> None:
        for place in positions:
            numbers[engine.submit(requests[place])] = place

    numbers: dict[int, int] = {}
    threads = [threading.Thread(target=submit, args=(range(start, 60, 3),)) for start in range(3)]
    for thread in threads:
        thread.start()
    found: dict[int, tuple[int, ...]] = {}
    while any(thread.is_alive() for thread in threads) or engine.busy:
        for news in engine.step():
            found[news.request] = found.get(news.request, ()) + news.tokens
    assert {numbers[number]: tokens for number, tokens in found.items()} == {i: alone[i].tokens for i in range(60)}


def test_requests_are_taken_as_rows_come_free(engine, requests):
    taken = []

    def coming():
        for i, some in enumerate(requests):
            taken.append(i)
            yield some

    for ended, _ in enumerate(answers(engine, coming()), 1):
        assert len(taken) <= ended + 3 * engine.layout.rows
    assert len(taken) == REQUESTS


def test_on_a_mesh_of_eight_the_answers_are_the_same(requests, alone):
    command = [sys.executable, "-m", "tests.asking", "2x2x2"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [(answer["text"], answer["finish_reason"], tuple(answer["tokens"])) for answer in json.loads(done.stdout)]
    assert found == [(answer.text, answer.finish_reason, answer.tokens) for answer in alone[:100]]


def test_each_token_comes_with_its_log_probability(networks, engine, requests, alone):
    """And a prompt without music is read without the opening before it."""
    llm, _ = networks
    text = Piece(np.array([4, 9, 2], np.int32), np.full(3, -1, np.int32), np.zeros((0, 8), np.float32), opened=False)
    question = requests[0].question
    number = engine.submit(Request("text", text, question, Options(8)))
    tokens, log_probs = [], []
    while engine.busy:
        for news in engine.step():
            assert news.request == number
            tokens, log_probs = [*tokens, *news.tokens], [*log_probs, *news.log_probs]
    whole = jnp.array([[*text.tokens, *question.tokens, *tokens]], jnp.int32)
    positions, prompt = jnp.arange(whole.shape[1])[None], whole.shape[1] - len(tokens)
    scores = jax.nn.log_softmax(llm.logits(llm(llm.embed(whole), positions, jnp.ones_like(whole))))[0, prompt - 1 : -1]
    assert scores.argmax(-1).tolist() == tokens
    np.testing.assert_allclose(log_probs, scores.max(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("number", [np.nan, -np.inf])
def test_a_clip_that_is_no_numbers_ends_its_own_requests_alone(engine, requests, alone, number):
    """The others, also in rows and with prefixes where it has been, are answered to the bit as ever; twice over."""
    some = [_spoilt(r, number) if r.clip in (3, CLIPS - 1) else r for r in requests[:60]]
    numbers = {engine.submit(r): place for place, r in enumerate([*some, *some])}
    tokens: dict[int, tuple[int, ...]] = {}
    errors: dict[int, str] = {}
    while engine.busy:
        for news in engine.step():
            place = numbers[news.request]
            tokens[place] = tokens.get(place, ()) + news.tokens
            errors |= {place: news.error} if news.error else {}
    spoilt = [place for place, r in enumerate([*some, *some]) if isinstance(r.clip, tuple)]
    assert sorted(errors) == spoilt
    assert all("because its music is not: look at its clip" in error for error in errors.values())
    for place in numbers.values():
        assert tokens[place] == (() if place in errors else alone[place % len(some)].tokens)


def _spoilt(request: Request, number: float) -> Request:
    """With one number of its music put in; another clip, for its prefix is another."""
    music = request.prefix.music.copy()
    music[-1, 0] = number
    prefix = dataclasses.replace(request.prefix, music=music)
    return dataclasses.replace(request, clip=("spoilt", request.clip), prefix=prefix)


def test_a_prompt_is_cut_where_its_clip_ends():
    tokens, index = np.arange(7, dtype=np.int32), np.array([-1, 0, 1, 2, -1, -1, -1], np.int32)
    music = np.arange(6, dtype=np.float32).reshape(3, 2)
    prefix, question = cut(tokens, index, music, 1, 3), cut(tokens, index, music, 3, 7)
    assert prefix.tokens.tolist() == [1, 2]
    assert prefix.music_index.tolist() == [0, 1]
    np.testing.assert_array_equal(prefix.music, music[:2])
    # Where nothing closes the music, its last token is what the answer is written behind.
    assert question.music_index.tolist() == [0, -1, -1, -1]
    np.testing.assert_array_equal(question.music, music[2:])


def test_what_the_engine_cannot_do_is_refused(networks, rule):
    with pytest.raises(ValueError, match="Beams"):
        make_engine(networks, rule, tiny_layout(8)).submit(request(0, 0, [4], Options(num_beams=2)))
    with pytest.raises(ValueError, match="at least one token"):
        request(0, 0, [], Options())
    with pytest.raises(ValueError, match="an opening of 4 tokens, not of 3"):
        make_engine(networks, rule, Layout(1, 4, 8, 8, 8, 4, 1))


@given(st.integers(1, 64), st.integers(1, 300), st.integers(1, 300), st.integers(1, 600))
def test_a_layout_has_room_for_what_it_is_made_for(rows, prefix, question, answer):
    sizes = layout(rows, 3, prefix=prefix, question=question, answer=answer)
    assert sizes.prefix >= prefix
    assert sizes.question >= question
    assert sizes.answers_at + answer <= sizes.staging_at
    assert sizes.answer % sizes.chunk == 0
    assert sizes.grown(prefix, question, answer) == sizes
    assert sizes.prefixes >= 2 * sizes.admitted


def test_a_row_takes_the_memory_that_is_reckoned(networks):
    sizes = tiny_layout(8)
    llm, adapter = networks
    (llm_graph, llm_params), (adapter_graph, adapter_params) = nnx.split(llm, nnx.Param), nnx.split(adapter, nnx.Param)
    params = {"llm": nnx.to_pure_dict(llm_params)}, {"adapter": nnx.to_pure_dict(adapter_params)}
    made = programs.begin(Networks(llm_graph, adapter_graph), params, sizes, jnp.array([OPENING], jnp.int32))
    kept = (made[0].cache.key, made[0].cache.value, made[1].cache.key, made[1].cache.value)
    held = sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(kept))
    # And the opening's own place among the prefixes.
    own = 2 * llm.config.num_layers * llm.config.num_kv_heads * llm.config.head_dim * 4 * sizes.prompt
    assert held - own == pytest.approx(8 * row_bytes(llm.config, sizes, 4), abs=8)

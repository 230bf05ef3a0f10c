"""Decoding: the loop gives what the model's whole pass gives, row by row, whatever else is in the batch."""

import collections
import itertools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlingo_jax.errors import UserError
from mlingo_jax.inference.answering import answers, text
from mlingo_jax.inference.beam import beam_search
from mlingo_jax.inference.beams import Beams
from mlingo_jax.inference.decode import Prompts
from mlingo_jax.inference.engine import Engine
from mlingo_jax.inference.generate import Answer, Options
from mlingo_jax.inference.layout import layout
from mlingo_jax.inference.requests import Request, cut
from mlingo_jax.inference.stopping import StopRule, stop_rule
from mlingo_jax.models.adapter import Adapter, AdapterConfig
from mlingo_jax.models.llama import Llama
from mlingo_jax.models.llama_config import LlamaConfig
from mlingo_jax.models.musilingo import Networks
from mlingo_jax.weights.keymap import entries, parameters
from mlingo_jax.weights.llama import RULES
from tests.tiny import tiny_tokenizer

CONFIG = {
    "model_type": "llama",
    "vocab_size": 330,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
LENGTHS = (5, 1, 9, 3, 7, 2, 12)
PLACES = 16
TOKENS = 24


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def llm() -> Llama:
    model = Llama(LlamaConfig.from_json(CONFIG, "config.json"), dtype=jnp.float32, rngs=nnx.Rngs(3))
    # With larger logits the margins between tokens are far above the noise of float32.
    assert model.head is not None
    model.head.set_value(5 * model.head[...])
    return model


@pytest.fixture(scope="module")
def split(llm) -> tuple[Any, Any]:
    graphdef, params = nnx.split(llm, nnx.Param)
    return graphdef, nnx.to_pure_dict(params)


@pytest.fixture(scope="module")
def prompts() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.normal(size=(length, 32)).astype(np.float32) for length in LENGTHS]


@pytest.fixture(scope="module")
def no_stop(tokenizer) -> StopRule:
    return stop_rule(tokenizer, (), (), 330)


@pytest.fixture(scope="module")
def greedy(writers, prompts, no_stop) -> list[Answer]:
    return run(writers, prompts, no_stop)


@pytest.fixture(scope="module")
def rule(tokenizer, greedy, no_stop) -> StopRule:
    """A stop text of two tokens that ends one answer, and an end-of-sequence id that ends another."""
    spelled = [[no_stop.token_bytes[t] if t < len(no_stop.token_bytes) else b"" for t in a.tokens] for a in greedy]
    pairs = [{a + b for a, b in itertools.pairwise(row[2:]) if a and b and (a + b).isascii()} for row in spelled]
    stopped, text = next(
        (i, pair) for i, row in enumerate(pairs) for pair in sorted(row) if sum(pair in p for p in pairs) == 1
    )
    counts = collections.Counter(t for answer in greedy for t in set(answer.tokens))
    eos = next(t for i, a in enumerate(greedy) if i != stopped for t in a.tokens[3:] if counts[t] == 1)
    return stop_rule(tokenizer, (text.decode(),), (eos,), 330)


def batch(prompts: list[np.ndarray]) -> Prompts:
    embeddings = np.zeros((len(prompts), PLACES, 32), np.float32)
    positions, segments = np.zeros((2, len(prompts), PLACES), np.int32)
    for row, prompt in enumerate(prompts):
        embeddings[row, : len(prompt)] = prompt
        positions[row, : len(prompt)] = np.arange(len(prompt))
        segments[row, : len(prompt)] = 1
    return Prompts(jnp.asarray(embeddings), jnp.asarray(positions), jnp.asarray(segments))


def maker(graphdef: Any, params: Any) -> Callable[[StopRule, int], Engine | Beams]:
    """Makes what answers prompts that are embeddings: music of the language model's own width, handed on as it is."""
    adapter = Adapter(AdapterConfig(32, 32), rngs=nnx.Rngs(0))
    adapter.projection.kernel.set_value(jnp.eye(32))
    assert adapter.projection.bias is not None
    adapter.projection.bias.set_value(jnp.zeros(32))
    graph, kept = nnx.split(adapter, nnx.Param)
    networks, both = Networks(graphdef, graph), ({"llm": params}, {"adapter": nnx.to_pure_dict(kept)})

    def make(rule: StopRule, beams: int) -> Engine | Beams:
        if beams > 1:
            return Beams(networks, both, len(LENGTHS), [], rule)
        return Engine(networks, both, layout(4, 0, prefix=PLACES, question=8, answer=TOKENS), [], rule)

    return make


@pytest.fixture(scope="module")
def writers(split) -> Callable[[StopRule, int], Engine | Beams]:
    return maker(*split)


def asked(prompts: list[np.ndarray], seed: int, **options) -> list[Request]:
    settings = Options(**{"max_new_tokens": TOKENS, **options})

    def request(number: int, prompt: np.ndarray) -> Request:
        index, tokens, end = np.arange(len(prompt), dtype=np.int32), np.zeros(len(prompt), np.int32), len(prompt) - 1
        prefix, last = cut(tokens, index, prompt, 0, end), cut(tokens, index, prompt, end, end + 1)
        return Request(number, prefix, last, settings, seed, zlib.crc32(prompt.tobytes()))

    return [request(number, prompt) for number, prompt in enumerate(prompts)]


def run(writers, prompts: list[np.ndarray], rule: StopRule, *, seed: int = 0, **options) -> list[Answer]:
    found = dict(answers(writers(rule, options.get("num_beams", 1)), asked(prompts, seed, **options)))
    return [found[place] for place in range(len(prompts))]


def next_token_log_probs(llm: Llama, prompts: list[np.ndarray], answers: list[tuple[int, ...]]) -> list[np.ndarray]:
    """The slow, plain way: one pass over each prompt and its whole answer, without a cache."""
    rows = [np.concatenate([p, llm.embed(jnp.array([a]))[0]]) for p, a in zip(prompts, answers, strict=True)]
    embeddings, segments = (
        np.zeros((len(rows), PLACES + TOKENS, 32), np.float32),
        np.zeros((len(rows), PLACES + TOKENS)),
    )
    for i, row in enumerate(rows):
        embeddings[i, : len(row)], segments[i, : len(row)] = row, 1
    positions = jnp.broadcast_to(jnp.arange(PLACES + TOKENS), segments.shape)
    log_probs = jax.nn.log_softmax(llm.logits(llm(jnp.asarray(embeddings), positions, jnp.int32(segments))))
    positions = [slice(len(p) - 1, len(p) - 1 + len(a)) for p, a in zip(prompts, answers, strict=True)]
    return [np.asarray(row[place]) for row, place in zip(log_probs, positions, strict=True)]


def test_greedy_decoding_takes_the_most_probable_token_of_the_whole_pass(llm, prompts, greedy):
    for scores, answer in zip(next_token_log_probs(llm, prompts, [a.tokens for a in greedy]), greedy, strict=True):
        assert tuple(scores.argmax(-1)) == answer.tokens
        assert answer.finish_reason == "length"
        assert len(answer.tokens) == TOKENS


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "top_k": 40, "top_p": 0.9}, {"num_beams": 3}])
def test_seven_rows_of_seven_lengths_are_each_row_alone(writers, prompts, rule, options):
    together = run(writers, prompts, rule, **options)
    assert len({answer.tokens for answer in together}) == len(prompts)
    assert [run(writers, [prompt], rule, **options)[0] for prompt in prompts] == together


def test_an_answer_ends_where_its_text_holds_a_stop_text_or_at_an_end_of_sequence(writers, prompts, rule, greedy):
    found = run(writers, prompts, rule)
    assert {answer.finish_reason for answer in found} == {"length", "eos", "stop"}
    for answer, endless in zip(found, greedy, strict=True):
        assert answer.tokens == endless.tokens[: len(answer.tokens)]
        known = dict(enumerate(rule.token_bytes))
        spelled = [b"".join(known.get(t, b"") for t in answer.tokens[:n]) for n in range(len(answer.tokens) + 1)]
        stops = [rule.texts[0].encode() in text for text in spelled]
        assert not any(stops[:-1])
        assert (answer.finish_reason == "stop") == stops[-1]
        assert rule.texts[0] not in answer.text
        assert answer.text == spelled[-1].decode(errors="replace").split(rule.texts[0])[0].strip()


def test_draws_depend_on_the_seed(writers, prompts, rule):
    options = {"temperature": 1.5, "top_k": 40, "top_p": 0.9}
    assert run(writers, prompts, rule, seed=1, **options) == run(writers, prompts, rule, seed=1, **options)
    assert run(writers, prompts, rule, seed=1, **options) != run(writers, prompts, rule, seed=2, **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 1.5, "top_k": 40, "top_p": 0.9}, {"num_beams": 3}, {"max_new_tokens": 1}],
)
def test_a_stream_put_together_is_the_answer(writers, prompts, rule, options):
    for prompt in prompts[:5]:
        writer = writers(rule, options.get("num_beams", 1))
        pieces = list(text(writer, asked([prompt], 0, **options)[0]))
        assert all(pieces)
        assert "".join(pieces) == run(writers, [prompt], rule, **options)[0].text


def test_a_search_of_the_same_shapes_is_compiled_once(writers, prompts, rule):
    search: Any = beam_search
    run(writers, prompts, rule, num_beams=3)
    compiled = search._cache_size()
    run(writers, prompts[::-1], rule, num_beams=3)
    assert search._cache_size() == compiled


def test_as_many_beams_as_tokens_find_the_best_of_all_answers_of_two_tokens(split, llm, tokenizer, prompts):
    eos = tuple(range(0, 330, 11))
    table = stop_rule(tokenizer, (), eos, 330).table
    found = beam_search(*split, batch(prompts[:1]), table, num_beams=330, max_new_tokens=2)
    rows = next_token_log_probs(llm, prompts[:1] * 330, [(token, 0) for token in range(330)])
    first, second = rows[0][0], np.stack([row[1] for row in rows])
    pairs = (first[:, None] + second) / 2
    pairs[list(eos)] = -np.inf
    best = max((pairs.max(), divmod(int(pairs.argmax()), 330)), max((first[t], (t,)) for t in eos))[1]
    assert tuple(found.tokens[0, : int(found.lengths[0])].tolist()) == best


@pytest.mark.parametrize("num_beams", [2, 4])
@pytest.mark.parametrize("eos", [(), (7,), (7, 11, 200)])
def test_beam_search_is_that_of_transformers(writers, llm, no_stop, tokenizer, num_beams, eos):
    torch = pytest.importorskip("torch")
    reference = reference_llm(llm)
    rule = stop_rule(tokenizer, (), eos, 330)
    random = np.random.default_rng(len(eos))
    for _ in range(6):
        tokens = random.integers(3, 320, (1, 4))
        out = reference.generate(
            torch.tensor(tokens),
            attention_mask=torch.ones(1, 4, dtype=torch.long),
            num_beams=num_beams,
            do_sample=False,
            max_new_tokens=TOKENS,
            eos_token_id=list(eos) or None,
            pad_token_id=0,
        )
        wanted = out[0, 4:].tolist()
        found = run(writers, [np.asarray(llm.embed(jnp.asarray(tokens)))[0]], rule, num_beams=num_beams)[0]
        assert list(found.tokens) == wanted
        assert found.finish_reason == ("eos" if wanted[-1] in eos else "length")


def reference_llm(llm: Llama) -> Any:
    """transformers' model with the same weights."""
    import torch
    from transformers import LlamaConfig as ReferenceConfig
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(ReferenceConfig(**CONFIG, eos_token_id=None, bos_token_id=None)).eval()
    values = nnx.to_flat_state(nnx.state(llm, nnx.Param))
    values = {".".join(map(str, path)): np.asarray(param[...]) for path, param in values}
    weights = {}
    for entry in entries(RULES, parameters(llm)):
        value = values[entry.parameter.name]
        weights[entry.torch] = torch.tensor(entry.to_torch(value if entry.layer is None else value[entry.layer]))
    model.load_state_dict(weights, strict=True)
    return model


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected at least 1"),
        ({"temperature": -0.1}, "temperature is -0.1; expected at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0; expected at least 1"),
        ({"top_p": 0.0}, "top_p is 0.0; expected above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"num_beams": 0}, "num_beams is 0"),
        ({"num_beams": 2, "temperature": 0.5}, "beam search does not draw"),
    ],
)
def test_options_out_of_range_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        Options(**wrong)


@pytest.mark.parametrize("beams", [1, 2])
def test_limits_of_a_draw_that_is_none_are_told(beams):
    with pytest.warns(UserWarning, match="^top_p will not be used: at temperature 0 nothing is drawn"):
        Options(top_p=0.9, num_beams=beams)
    with pytest.warns(UserWarning, match="^top_k and top_p will not be used"):
        Options(top_k=5, top_p=0.9, num_beams=beams)
    Options(top_p=1.0, num_beams=beams)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"num_beams": 2}])
def test_logits_that_are_no_numbers_end_a_request_with_the_cause(split, writers, prompts, rule, options):
    beams = options.get("num_beams", 1)
    graphdef, params = split
    spoilt = {**params, "norm": {"scale": params["norm"]["scale"] * jnp.inf}}
    broken = maker(graphdef, spoilt)
    with pytest.raises(UserError, match=r"no answer: the logits are NaN or infinite, though its music is finite"):
        run(broken, prompts, rule, **options)
    with pytest.raises(UserError, match="load it in float32"):
        list(text(broken(rule, beams), asked(prompts[:1], 0, **options)[0]))
    heard_wrong = [*prompts[:2], np.full_like(prompts[2], np.nan), *prompts[3:]]
    writer = writers(rule, beams)
    numbers = [writer.submit(request) for request in asked(heard_wrong, 0, **options)]
    errors = {}
    while writer.busy:
        errors |= {news.request: news.error for news in writer.step() if news.error or news.finish_reason}
    # The others are answered.
    assert [errors[number] is None for number in numbers] == [i != 2 for i in range(len(prompts))]
    assert "because its music is not: look at its clip" in errors[numbers[2]]

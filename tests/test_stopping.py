"""Where answers end: the automaton against plain string search, on made-up vocabularies and real kinds of tokenizer."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mlingo_jax.data.tokenizer import load_tokenizer
from mlingo_jax.errors import UserError
from mlingo_jax.inference.stopping import (
    ENDED_BY_EOS,
    ENDED_BY_STOP,
    START,
    StopRule,
    TextReader,
    finish_reason,
    stop_rule,
    token_bytes,
    transition_table,
)
from tests.tiny import tiny_tokenizer

# Few letters, so that texts overlap themselves and each other; 'é' and '音' are two and three bytes.
ALPHABET = "#ab é音"
texts = st.text(st.sampled_from(ALPHABET), min_size=1, max_size=5)


@st.composite
def vocabularies(draw) -> list[bytes]:
    """Tokens that are texts, single bytes of characters, or nothing."""
    whole = draw(st.lists(texts.map(str.encode), min_size=1, max_size=6))
    pieces = [bytes([byte]) for byte in set("".join(ALPHABET).encode())]
    return [*whole, *pieces, b""]


@st.composite
def written(draw) -> tuple[list[bytes], list[str], list[int]]:
    """A vocab_size, stop texts and an answer's tokens."""
    vocab_size = draw(vocabularies())
    return (
        vocab_size,
        draw(st.lists(texts, max_size=3)),
        draw(st.lists(st.integers(0, len(vocab_size) - 1), max_size=12)),
    )


@given(written())
def test_the_automaton_fires_at_the_first_token_at_which_the_text_holds_a_stop_text(case):
    vocabulary, stops, tokens = case
    table = transition_table(vocabulary, [stop.encode() for stop in stops], len(vocabulary))
    state = START
    for n, token in enumerate(tokens, 1):
        state = table[state, token]
        written = b"".join(vocabulary[t] for t in tokens[:n])
        assert (state == ENDED_BY_STOP) == any(stop.encode() in written for stop in stops)


@given(written(), st.data())
def test_a_reader_gives_the_text_in_pieces_that_are_never_taken_back(case, data):
    vocabulary, stops, tokens = case
    rule = StopRule(tuple(stops), tuple(vocabulary), jnp.zeros((3, 1), jnp.int32))
    whole = b"".join(vocabulary[t] for t in tokens).decode(errors="replace")
    ends = [at for stop in stops if (at := whole.find(stop)) >= 0]
    expected = whole[: min(ends, default=len(whole))].strip()
    assert rule.text(tokens) == expected

    reader, text = TextReader(rule), ""
    while tokens:
        n = data.draw(st.integers(1, len(tokens)))
        text += reader.read(tokens[:n])
        tokens = tokens[n:]
        assert expected.startswith(text)
    assert text + reader.finish() == expected


def test_tokens_beyond_the_tokenizer_add_nothing_and_ends_are_never_left():
    table = transition_table([b"#", b"##", b"x"], [b"###"], vocab_size=5)
    none, one, two = START, START + 1, START + 2
    assert table.tolist() == [
        [ENDED_BY_EOS] * 5,
        [ENDED_BY_STOP] * 5,
        [one, two, none, none, none],
        [two, ENDED_BY_STOP, none, one, one],
        [ENDED_BY_STOP, ENDED_BY_STOP, none, two, two],
    ]


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of LLaMA's kind: '▁' for a space, <0xNN> for bytes, the space before the first word dropped."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁###",
        "##",
        "#",
        "####",
        "a",
        "▁b",
    ]
    tokenizer = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module", params=["bytes", "sentencepiece"])
def tokenizer(request, tmp_path_factory):
    if request.param == "bytes":
        return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return sentencepiece_tokenizer()


@given(text=st.text(st.sampled_from("#ab é音\n🎵"), max_size=20))
def test_the_bytes_of_a_text_s_tokens_are_the_text(tokenizer, text):
    tokens = tokenizer.encode(text, add_special_tokens=False)
    known = token_bytes(tokenizer)
    assert b"".join(known[t] for t in tokens).decode().lstrip() == text.lstrip()
    assert tokenizer.decode(tokens).lstrip() == text.lstrip()


def test_special_tokens_add_nothing_but_may_be_a_stop_text(tokenizer):
    rule = stop_rule(tokenizer, ("###", "</s>"), (1,), 400)
    a = tokenizer.encode("a", add_special_tokens=False)[-1]
    end = tokenizer.convert_tokens_to_ids("</s>")
    assert rule.text([a, 1, a, end]) == "aa"
    after = np.asarray(rule.table)[START, [a, 1, end, 399]]
    assert after.tolist() == [START, ENDED_BY_EOS, ENDED_BY_STOP, START]


def test_the_reasons_have_names():
    assert [finish_reason(s) for s in (ENDED_BY_EOS, ENDED_BY_STOP, START, START + 3)] == [
        "eos",
        "stop",
        "length",
        "length",
    ]


def test_the_same_rule_is_made_once(tokenizer):
    assert stop_rule(tokenizer, ("###",), (2,), 400) is stop_rule(tokenizer, ("###",), (2,), 400)


@pytest.mark.parametrize(
    ("texts", "eos", "message"),
    [(("a", ""), (2,), "stop text is empty"), ((), (400,), "outside its vocabulary of 400")],
)
def test_a_rule_that_cannot_be_is_refused(tokenizer, texts, eos, message):
    with pytest.raises(UserError, match=message):
        stop_rule(tokenizer, texts, eos, 400)


def test_llama_s_own_tokens_stop_at_three_signs_however_written(golden):
    tokenizer = load_tokenizer(golden / "pre_ln" / "llm")
    rule = stop_rule(tokenizer, ("###",), (2,), 32001)

    def run(tokens: list[int]) -> int:
        state = START
        for token in tokens:
            state = int(rule.table[state, token])
        return state

    # '.##' '#', ' ###', '####', '#' three times, '##' '##'.
    for ending in ([29889, 2277, 29937], [835], [4136], [29937] * 3, [2277, 2277]):
        assert run([450, 11413, *ending[:-1]]) >= START
        assert run([450, 11413, *ending]) == ENDED_BY_STOP
        assert rule.text([450, 11413, *ending]).rstrip(".") == "The tempo"
    assert run([2277, 450, 29937]) >= START
    assert run([2]) == ENDED_BY_EOS

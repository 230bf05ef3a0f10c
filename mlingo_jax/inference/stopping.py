"""When an answer ends: at an end-of-sequence token, or where its text comes to hold a stop text.

A stop text is found however it is tokenised: '###' is one token after a space, two after a word, and part of a third
in '####'. What counts is the bytes each token adds to the text, so the search is an automaton over bytes (Aho and
Corasick, 1975), folded into a table that takes a whole token per step and is read inside a jitted loop.

Axes: S automaton states, V vocabulary.
"""

import codecs
import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32
from transformers import PreTrainedTokenizerBase

from mlingo_jax.errors import UserError

# States of the automaton. The ends are never left again; from START on, the state says how much of a stop text the
# answer's last bytes are. The first is no state of the table: where the logits were no numbers.
NOT_FINITE, ENDED_BY_EOS, ENDED_BY_STOP, START = -1, 0, 1, 2

# The name by which Python knows sentencepiece's way with bytes that are no UTF-8.
EACH_BYTE = "mlingo_jax.replace_each_byte"

FinishReason = Literal["stop", "eos", "length"]


def finish_reason(state: int) -> FinishReason:
    """What an answer whose automaton stands in `state` was ended by."""
    ends: dict[int, FinishReason] = {ENDED_BY_EOS: "eos", ENDED_BY_STOP: "stop"}
    return ends.get(state, "length")


@dataclasses.dataclass(frozen=True, eq=False)
class StopRule:
    """When an answer ends, and how its tokens read as text.

    `texts` are the stop texts, `token_bytes[t]` what token t adds to the answer, `table[s, t]` the state after token t
    in state s, and `errors` how bytes that are no UTF-8 read: a sign of replacement for each run of them ("replace"),
    or for each byte, as sentencepiece does.
    """

    texts: tuple[str, ...]
    token_bytes: tuple[bytes, ...]
    table: Int32[Array, "S V"]
    errors: str = "replace"

    def text(self, tokens: Sequence[int]) -> str:
        """The answer that `tokens` spell: cut before the first stop text, without white space around it."""
        reader = TextReader(self)
        return reader.read(tokens) + reader.finish()


class TextReader:
    """Reads an answer's tokens as they come and gives out its text as soon as it is sure.

    Kept back until decided: half a UTF-8 character, the beginning of what may become a stop text, white space that may
    prove to be the last. The pieces of `read` and `finish`, put together, are `StopRule.text` of all the tokens.
    """

    def __init__(self, rule: StopRule):
        self._rule = rule
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors=rule.errors)
        self._held = ""
        self._begun = False
        self._stopped = False

    def read(self, tokens: Sequence[int]) -> str:
        """The text that has become sure with these tokens; may be empty."""
        return self._take(self._decoder.decode(self._bytes(tokens)), last=False)

    def finish(self) -> str:
        """The rest, once no token will come any more."""
        return self._take(self._decoder.decode(b"", final=True), last=True)

    def _bytes(self, tokens: Sequence[int]) -> bytes:
        known = self._rule.token_bytes
        return b"".join(known[t] for t in tokens if t < len(known))

    def _take(self, text: str, *, last: bool) -> str:
        if self._stopped:
            return ""
        text = self._held + text
        ends = [at for stop in self._rule.texts if (at := text.find(stop)) >= 0]
        if ends:
            text, last, self._stopped = text[: min(ends)], True, True
        sure = len(text) if last else len(text) - self._beginning_of_stop(text)
        sure = len(text[:sure].rstrip())
        given, self._held = text[:sure], text[sure:]
        if not self._begun:
            given = given.lstrip()
            self._begun = bool(given)
        return given

    def _beginning_of_stop(self, text: str) -> int:
        """Length of the longest end of `text` that is the beginning of a stop text."""
        longest = max((len(stop) for stop in self._rule.texts), default=1) - 1
        ends = range(min(longest, len(text)), 0, -1)
        return next((n for n in ends if any(stop.startswith(text[-n:]) for stop in self._rule.texts)), 0)


@functools.lru_cache(maxsize=16)
def stop_rule(
    tokenizer: PreTrainedTokenizerBase, texts: tuple[str, ...], eos: tuple[int, ...], vocab_size: int
) -> StopRule:
    """The rule for a tokenizer, stop texts and end-of-sequence ids; `vocabulary` is the language model's (V).

    A special token adds nothing to the text, but one that is itself a stop text (such as '<|eot_id|>') stops.

    Raises:
        UserError: a stop text is empty, or an end-of-sequence id lies outside the vocabulary.
    """
    if "" in texts:
        raise UserError("a stop text is empty: leave it out, or give the text at which an answer shall end")
    if any(not 0 <= token < vocab_size for token in eos):
        raise UserError(
            f"end-of-sequence ids {list(eos)} of the language model lie outside its vocabulary of {vocab_size}"
        )
    known = token_bytes(tokenizer)
    table = transition_table(known[:vocab_size], [text.encode() for text in texts], vocab_size)
    for token, content in tokenizer.added_tokens_decoder.items():
        if content.content in texts and token < vocab_size:
            table[START:, token] = ENDED_BY_STOP
    table[START:, list(eos)] = ENDED_BY_EOS
    return StopRule(texts, known, jnp.asarray(table), EACH_BYTE if has_byte_pieces(tokenizer) else "replace")


def next_states(
    table: Int32[Array, "S V"], states: Int32[Array, " B"], tokens: Int32[Array, " B"], logits: Float[Array, "B V"]
) -> Int32[Array, " B"]:
    """The state of each row after the token that was chosen by its logits; a row that has ended stays as it is."""
    after = jnp.where(jnp.isfinite(logits).all(axis=-1), table[states, tokens], NOT_FINITE)
    return jnp.where(states >= START, after, states)


def transition_table(token_bytes: Sequence[bytes], stops: Sequence[bytes], vocab_size: int) -> Int32[np.ndarray, "S V"]:
    """The automaton that takes tokens: state after each token from each state.

    Tokens of the vocabulary beyond `token_bytes` (rows that pad an embedding) add nothing.
    """
    by_byte = _byte_transitions(stops)
    table = np.repeat(np.arange(len(by_byte), dtype=np.int32)[:, None], vocab_size, axis=1)
    lengths = np.array([len(b) for b in token_bytes], np.int64)
    joined = np.frombuffer(b"".join(token_bytes), np.uint8)
    starts = np.cumsum(lengths) - lengths
    for position in range(lengths.max(initial=0)):
        longer = np.flatnonzero(lengths > position)
        table[:, longer] = by_byte[table[:, longer], joined[starts[longer] + position]]
    return table


def _byte_transitions(stops: Sequence[bytes]) -> Int32[np.ndarray, "S 256"]:
    """Aho-Corasick: a state is a beginning of a stop text, the longest that the bytes so far end in."""
    prefixes = sorted({stop[:n] for stop in stops for n in range(len(stop))} | {b""}, key=len)
    state = {prefix: START + i for i, prefix in enumerate(prefixes)}
    table = np.full((START + len(prefixes), 256), START, np.int32)
    table[:START] = np.arange(START)[:, None]
    for prefix in prefixes:
        for byte in set(b"".join(stops)):
            read = prefix + bytes([byte])
            stopped = any(read.endswith(stop) for stop in stops)
            suffixes = (read[n:] for n in range(len(read) + 1))
            table[state[prefix], byte] = ENDED_BY_STOP if stopped else next(state[s] for s in suffixes if s in state)
    return table


@functools.lru_cache(maxsize=4)
def token_bytes(tokenizer: PreTrainedTokenizerBase) -> tuple[bytes, ...]:
    """What each token adds to the text after another token, as bytes.

    Special tokens add nothing, but that sentencepiece's unknown piece reads as ' ⁇ '.

    A token that is part of a character has no text of its own: its bytes are read from its name, '<0xE2>' in
    SentencePiece's notation, 'âĢ' in GPT-2's alphabet of bytes.
    """
    # SentencePiece drops the space before the first word: a token's text shows only behind another.
    anchor = tokenizer.encode("a", add_special_tokens=False)[-1]
    pairs = [[anchor], *([anchor, token] for token in range(len(tokenizer)))]
    alone, *texts = tokenizer.batch_decode(pairs, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    added = (text[len(alone) :] for text in texts)
    known = [
        _partial_character(name) if "\ufffd" in text else text.encode() for text, name in zip(added, names, strict=True)
    ]
    unknown = tokenizer.unk_token_id
    if has_byte_pieces(tokenizer) and isinstance(unknown, int):
        known[unknown] = " ⁇ ".encode()
    return tuple(known)


def has_byte_pieces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it is of SentencePiece's kind, in which bytes that are no piece are the pieces <0x00> to <0xFF>."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return bool(getattr(getattr(backend, "model", None), "byte_fallback", False))


def _replace_each(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(EACH_BYTE, _replace_each)


def _partial_character(name: str) -> bytes:
    if hexadecimal := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", name):
        return bytes.fromhex(hexadecimal[1])
    alphabet = _gpt2_bytes()
    return bytes(alphabet[c] for c in name) if all(c in alphabet for c in name) else name.encode()


@functools.cache
def _gpt2_bytes() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, each other byte for a character from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}

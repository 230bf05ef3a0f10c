"""Questions and answers become rows of token ids with positions for the music.

A training row, with the default template and two music tokens (m); weights mark what the loss is taken over:

    BOS ###Human: <Audio> m m </Audio> What plays? ###Assistant: A bell.###
    0   0 ..            0 0 0 0 ..                             0 1 ..     1     loss_weights

Each piece is tokenised by itself, as the reference implementation does, so its ids do not depend on its neighbours. A
row is compact: no padding before its end. Questions and answers are text, whatever they spell: only the template and
the end symbol can hold special tokens.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32
from transformers import PreTrainedTokenizerFast

from mlingo_jax.data.placeholders import without_placeholders
from mlingo_jax.data.tokenizer import load_tokenizer, read_eos
from mlingo_jax.errors import UserError
from mlingo_jax.files import read_json

_MUSIC_OPENS, _MUSIC_CLOSES = "<Audio>", "</Audio>"


@dataclass(frozen=True)
class PromptSettings:
    """How a question is put to the language model, and how an answer ends.

    The defaults are the reference implementation's stage 2.

    template: has one `{}`, which takes the music and the question; empty for no prompt (stage 1, no question).
    end_symbol: ends every answer while training.
    max_answer_tokens: the most tokens an answer may have, its end symbol included; a longer one is cut from the right.
    stop: texts that end an answer when generating, none for the tokenizer's end token alone; one of them must occur in
        the end symbol.
    """

    template: str = "###Human: {} ###Assistant: "
    end_symbol: str = "###"
    max_answer_tokens: int = 160
    stop: tuple[str, ...] = ("###",)

    def __post_init__(self):
        if self.template and self.template.count("{}") != 1:
            raise UserError(f"prompt template {self.template!r}: expected exactly one {{}}, or an empty template")
        if self.max_answer_tokens < 1:
            raise UserError(f"prompt max_answer_tokens: expected at least 1, found {self.max_answer_tokens}")
        if "" in self.stop or (self.stop and not any(text in self.end_symbol for text in self.stop)):
            raise UserError(
                f"prompt stop {self.stop!r}: one of its texts must occur in the end symbol {self.end_symbol!r}, or "
                "answers never end; none may be empty"
            )

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {**asdict(self), "stop": list(self.stop)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "PromptSettings":
        """The settings from `to_json`'s values. Raises UserError for a field that is missing or unknown."""
        fields = set(cls.__dataclass_fields__)
        if set(values) != fields:
            raise UserError(f"prompt settings: expected the fields {sorted(fields)}, found {sorted(values)}")
        return cls(**{**values, "stop": tuple(values["stop"])})


STAGE_1 = PromptSettings(template="", end_symbol="\n", max_answer_tokens=32, stop=("\n",))
"""The reference implementation's pre-training: BOS, music, caption and a newline, with no prompt."""


@dataclass(frozen=True)
class Row:
    """One example, T tokens; the fields are those of the batch contract. `cut` says that the answer lost its end."""

    tokens: Int32[np.ndarray, "T"]
    music_index: Int32[np.ndarray, "T"]
    positions: Int32[np.ndarray, "T"]
    segments: Int32[np.ndarray, "T"]
    loss_weights: Float32[np.ndarray, "T"]
    truncated: bool = False


@dataclass(frozen=True)
class Question:
    """A question about a clip, and the questions about it and their answers that came before, the oldest first."""

    text: str
    earlier: tuple[tuple[str, str], ...] = ()


_NONE = np.zeros(0, np.int32)
EMPTY = Row(_NONE, _NONE, _NONE, _NONE, np.zeros(0, np.float32))
"""A row without an example: all padding."""


class Prompt:
    """Builds rows for one tokenizer (`mlingo_jax.data.tokenizer.load_tokenizer`'s) and one kind of prompt."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, settings: PromptSettings):
        self.tokenizer = tokenizer
        self.settings = settings
        before, _, after = settings.template.partition("{}")
        bos = tokenizer.bos_token_id
        self.opening: list[int] = [bos] if isinstance(bos, int) else []
        if settings.template:
            self.opening += self._parsed(before + _MUSIC_OPENS)
        # Up to its first special token the text after a question or an answer is tokenised together with it.
        self._after_question, self._question_ends = self._split(after)
        self._after_answer, self._answer_ends = self._split(settings.end_symbol)
        # A further question's text is tokenised together with what stands before it, from the last special token on.
        *_, self._before_question = _by_special_tokens(before, tokenizer)
        self._turn_begins = self._parsed(before.removesuffix(self._before_question))
        # "###" both ends an answer and begins the next turn, and stands there once.
        self._turn_ends = not before.startswith(settings.end_symbol)

    @cached_property
    def closing(self) -> list[int]:
        """The ids that stand between the music and a question, whatever it is."""
        alike = takewhile(lambda ids: len(set(ids)) == 1, zip(*self._after_ids(["a", "(", "9"]), strict=False))
        return [ids[0] for ids in alike]

    def text_ids(self, text: str) -> tuple[list[int], list[int]]:
        """The ids of a prompt of words alone: up to the text, and from it on."""
        bos, (before, *_) = self.tokenizer.bos_token_id, self.settings.template.partition("{}")
        opening = [*([bos] if isinstance(bos, int) else []), *self._parsed(before)]
        return opening, [*self._encode([text + self._after_question])[0], *self._question_ends]

    def row(self, question: str | Question, answer: str | None, music_tokens: int) -> Row:
        """The row of one example; without an answer, the prompt to be answered.

        Raises UserError for a question with earlier ones where there is no template.
        """
        after = self._after_ids([question])[0] if isinstance(question, str) else self._turn_ids(question)
        ids, truncated = ([], False) if answer is None else self.answer_ids(answer)
        return _row(self.opening, music_tokens, after, ids, truncated)

    def rows(self, asked: Sequence[tuple[str | Question, str, int]]) -> list[Row]:
        """The rows of several examples, (question, answer, music tokens) each; texts are tokenised at once."""
        questions, answers, music = zip(*asked, strict=True) if asked else ((), (), ())
        texts = iter(self._after_ids([question for question in questions if isinstance(question, str)]))
        afters = [next(texts) if isinstance(question, str) else self._turn_ids(question) for question in questions]
        ends = self._answer_ids(answers)
        limit = self.settings.max_answer_tokens
        return [
            _row(self.opening, tokens, after, ids[:limit], len(ids) > limit)
            for after, ids, tokens in zip(afters, ends, music, strict=True)
        ]

    def answer_ids(self, answer: str) -> tuple[list[int], bool]:
        """An answer's token ids with the end symbol's, and whether they were cut to `max_answer_tokens`."""
        ids, limit = self._answer_ids([answer])[0], self.settings.max_answer_tokens
        return ids[:limit], len(ids) > limit

    def lengths(
        self, questions: Sequence[str], answers: Sequence[str]
    ) -> tuple[Int32[np.ndarray, "E"], Bool[np.ndarray, "E"]]:
        """For E examples at once: their rows' lengths without the music tokens, and which answers are cut."""
        ends = _counts(self._answer_ids(answers))
        lengths = len(self.opening) + _counts(self._after_ids(questions))
        return lengths + np.minimum(ends, self.settings.max_answer_tokens), ends > self.settings.max_answer_tokens

    def stop_in(self, answer: str) -> str | None:
        """The first of the stop texts that stands in an answer, which generation would end at; None if none does."""
        return next((stop for stop in self.settings.stop if stop in answer.strip()), None)

    def check_vocabulary(self, vocabulary: int, source: str | Path) -> None:
        """Raises UserError if a row could hold an id that the language model, of so many, has no embedding for."""
        fixed = {*self.opening, *self._question_ends, *self._answer_ends}
        added = self.tokenizer.added_tokens_decoder
        # Special tokens that the template has not are in no row.
        beyond = [
            number
            for number in sorted({*range(vocabulary, len(self.tokenizer)), *added})
            if number >= vocabulary and (number in fixed or number not in added or not added[number].special)
        ]
        if beyond:
            named = ", ".join(f"{self.tokenizer.convert_ids_to_tokens(n)!r} ({n})" for n in beyond[:5])
            more = f" and {len(beyond) - 5} more" if len(beyond) > 5 else ""
            raise UserError(
                f"{source}: the tokenizer has tokens that the language model of {vocabulary:,} has no embedding for: "
                f"{named}{more}; give the tokenizer that belongs to the model, or resize its embedding"
            )

    def shown_opening(self) -> str:
        """How a row begins, up to its music: each token with its id."""
        tokens = self.tokenizer.convert_ids_to_tokens(self.opening)
        return " ".join(f"{token} ({number})" for token, number in zip(tokens, self.opening, strict=True))

    def _after_ids(self, questions: Sequence[str]) -> list[list[int]]:
        """The ids of what follows the music: of nothing, without a template."""
        if not self.settings.template:
            return [[]] * len(questions)
        texts = [f"{_MUSIC_CLOSES} {without_placeholders(q)}{self._after_question}" for q in questions]
        return [[*ids, *self._question_ends] for ids in self._encode(texts)]

    def _turn_ids(self, question: Question) -> list[int]:
        """The ids of what follows the music: in the first turn, as in the reference implementation's demo.

        Of two turns, with the default template:

            </Audio> What plays? ###Assistant: A bell.###Human: How fast? ###Assistant:
        """
        if question.earlier and not self.settings.template:
            raise UserError("the prompt has no template, so it cannot hold earlier questions; ask this one alone")
        asked = [*(text for text, _ in question.earlier), question.text]
        ids = self._after_ids(asked[:1])[0]
        for (_, answer), further in zip(question.earlier, asked[1:], strict=True):
            ids += self._answer_ids([answer])[0] if self._turn_ends else self._encode([answer])[0]
            text = self._before_question + without_placeholders(further) + self._after_question
            ids += [*self._turn_begins, *self._encode([text])[0], *self._question_ends]
        return ids

    def _answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        encoded = self._encode([answer + self._after_answer for answer in answers])
        return [[*ids, *self._answer_ends] for ids in encoded]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text. Many at once are encoded by several threads of the tokenizer's own."""
        # Past transformers' layer: it would also ask for masks and offsets, at twice the time.
        encoded = self.tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def _split(self, text: str) -> tuple[str, list[int]]:
        """The text before the first special token of a template's piece, and the ids of the rest."""
        head = next(_by_special_tokens(text, self.tokenizer), "")
        return head, self._parsed(text[len(head) :])

    def _parsed(self, text: str) -> list[int]:
        """The ids of a template's piece, its special tokens included."""
        ids, known = [], self.tokenizer.get_vocab()
        for n, part in enumerate(_by_special_tokens(text, self.tokenizer)):
            ids += [known[part]] if n % 2 else self._encode([part])[0]
        return ids


def open_prompt(folder: Path, settings: PromptSettings, vocabulary: int) -> Prompt:
    """The prompt for a language model of so many embeddings, with its folder's tokenizer.

    Raises:
        UserError: the tokenizer cannot be loaded, or it or an end-of-sequence id does not fit the embedding.
    """
    prompt = Prompt(load_tokenizer(folder), settings)
    prompt.check_vocabulary(vocabulary, folder)
    read_eos(folder, prompt.tokenizer, vocabulary)
    return prompt


def _by_special_tokens(text: str, tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    """Text, special token, text, special token, …, text; texts may be empty."""
    special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special and t.content}
    longest_first = sorted(map(re.escape, special), key=len, reverse=True)
    return iter(re.split(f"({'|'.join(longest_first)})", text) if special else [text])


def _counts(encoded: Sequence[Sequence[int]]) -> Int32[np.ndarray, "E"]:
    return np.array([len(ids) for ids in encoded], np.int32)


def collate(rows: Sequence[Row], length: int, batch: int) -> dict[str, np.ndarray]:
    """The text fields of the batch contract, [batch, length] each; missing rows and positions are padding (segment 0).

    Raises ValueError if a row or the number of rows does not fit.
    """
    if len(rows) > batch or any(len(row.tokens) > length for row in rows):
        sizes = [len(row.tokens) for row in rows]
        raise ValueError(f"rows of lengths {sizes} do not fit a batch of {batch} rows of {length} tokens")
    fields = {
        "tokens": np.zeros((batch, length), np.int32),
        "music_index": np.full((batch, length), -1, np.int32),
        "positions": np.zeros((batch, length), np.int32),
        "segments": np.zeros((batch, length), np.int32),
        "loss_weights": np.zeros((batch, length), np.float32),
    }
    for b, row in enumerate(rows):
        for name, values in fields.items():
            values[b, : len(row.tokens)] = getattr(row, name)
    return fields


def read_context(folder: Path) -> int | None:
    """How many tokens the language model in a folder was made for; None if its config.json, a valid one, does not say.

    The computation takes no notice of it and goes past it; what comes out there is another matter.
    """
    values = read_json(folder / "config.json")
    # The second is the name in the earliest LLaMA folders, Vicuna v0's among them.
    length = values.get("max_position_embeddings") or values.get("max_sequence_length")
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    # The number is that of before a linear scaling, and of after LLaMA 3.1's.
    linear = "linear" in (rope.get("rope_type"), rope.get("type"))
    return int(length * rope["factor"]) if length and linear else length


def _row(opening: list[int], music_tokens: int, after: list[int], answer: list[int], truncated: bool) -> Row:
    """[opening][music][after][answer], loss over the answer's tokens."""
    size = len(opening) + music_tokens + len(after) + len(answer)
    music = slice(len(opening), len(opening) + music_tokens)
    tokens = np.array([*opening, *[0] * music_tokens, *after, *answer], np.int32)
    music_index = np.full(size, -1, np.int32)
    music_index[music] = np.arange(music_tokens)
    loss_weights = np.zeros(size, np.float32)
    # The first place of a row has no token before it to be predicted from.
    loss_weights[max(size - len(answer), 1) :] = 1
    return Row(tokens, music_index, np.arange(size, dtype=np.int32), np.ones(size, np.int32), loss_weights, truncated)

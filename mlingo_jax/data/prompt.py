"""Questions and answers become rows of token ids with positions for the music.

A training row, with the default template and two music tokens (m); weights mark what the loss is taken over:

    BOS ###Human: <Audio> m m </Audio> What plays? ###Assistant: A bell.###
    0   0 ..            0 0 0 0 ..                             0 1 ..     1     loss_weights

Each piece is tokenised by itself, as the reference implementation does, so its ids do not depend on its neighbours. A
row is compact: no padding before its end.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mlingo_jax.errors import UserError

_MUSIC_OPENS, _MUSIC_CLOSES = "<Audio>", "</Audio>"


@dataclass(frozen=True)
class PromptSettings:
    """How a question is put to the language model, and how an answer ends. The defaults are the reference
    implementation's stage 2.

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


_NONE = np.zeros(0, np.int32)
EMPTY = Row(_NONE, _NONE, _NONE, _NONE, np.zeros(0, np.float32))
"""A row without an example: all padding."""


class Prompt:
    """Builds rows for one tokenizer and one kind of prompt."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: PromptSettings):
        self.tokenizer = tokenizer
        self.settings = settings
        before, _, self._after = settings.template.partition("{}")
        bos = tokenizer.bos_token_id
        self._opening = [bos] if isinstance(bos, int) else []
        if settings.template:
            self._opening += self._ids(before + _MUSIC_OPENS)

    def row(self, question: str, answer: str | None, music_tokens: int) -> Row:
        """The row of one example; without an answer, the prompt to be answered."""
        after = self._ids(self._question_text(question)) if self.settings.template else []
        ids, truncated = ([], False) if answer is None else self.answer_ids(answer)
        return _row(self._opening, music_tokens, after, ids, truncated)

    def rows(self, asked: Sequence[tuple[str, str, int]]) -> list[Row]:
        """The rows of several examples, (question, answer, music tokens) each; all are tokenised at once."""
        texts = [answer + self.settings.end_symbol for _, answer, _ in asked]
        if self.settings.template:
            texts += [self._question_text(question) for question, *_ in asked]
        encoded = self._encode(texts)
        answers, afters = encoded[: len(asked)], encoded[len(asked) :] or [[]] * len(asked)
        limit = self.settings.max_answer_tokens
        return [
            _row(self._opening, tokens, after, ids[:limit], len(ids) > limit)
            for (*_, tokens), after, ids in zip(asked, afters, answers, strict=True)
        ]

    def answer_ids(self, answer: str) -> tuple[list[int], bool]:
        """An answer's token ids with the end symbol's, and whether they were cut to `max_answer_tokens`."""
        ids, limit = self._ids(answer + self.settings.end_symbol), self.settings.max_answer_tokens
        return ids[:limit], len(ids) > limit

    def lengths(
        self, questions: Sequence[str], answers: Sequence[str]
    ) -> tuple[Int32[np.ndarray, "E"], Bool[np.ndarray, "E"]]:
        """For E examples at once: their rows' lengths without the music tokens, and which answers are cut."""
        ends = self._counts([answer + self.settings.end_symbol for answer in answers])
        lengths = len(self._opening) + np.minimum(ends, self.settings.max_answer_tokens)
        if self.settings.template:
            lengths += self._counts([self._question_text(question) for question in questions])
        return lengths, ends > self.settings.max_answer_tokens

    def _question_text(self, question: str) -> str:
        return f"{_MUSIC_CLOSES} {question}{self._after}"

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _counts(self, texts: Sequence[str]) -> Int32[np.ndarray, "E"]:
        return np.array([len(ids) for ids in self._encode(texts)], np.int32)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text. Many at once are encoded by several threads of the tokenizer's own."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        # Past transformers' layer: it would also ask for masks and offsets, at twice the time.
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


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


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder, from its own files alone. Raises UserError if there is none."""
    folder = Path(folder)
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(
            f"{folder}: no tokenizer (tokenizer.json, tokenizer.model or vocab.json); copy the language model's there"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{folder}: the tokenizer cannot be loaded ({reason})") from error


def read_context(folder: Path) -> int | None:
    """How many tokens the language model in a folder was made for; None if its config.json, a valid one, does not say.

    The computation takes no notice of it and goes past it; what comes out there is another matter.
    """
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
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

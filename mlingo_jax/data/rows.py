"""Batches of rows: their examples are read, tokenised together, and get their music.

Axes: B rows, L positions in a row, E examples in a row at most, M music tokens at most, D encoder width, S hidden
states.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from mlingo_jax.data.examples import Example, Examples
from mlingo_jax.data.packing import Packing, join
from mlingo_jax.data.prompt import EMPTY, Prompt, collate

Batch = dict[str, np.ndarray]
"""The fields of the batch contract, and for the host: `example`, int32 [B] or [B, E], the positions of a row's examples
in the list of examples, -1 for none; where audio is encoded in the step, `unreadable`, [B], why a row's clip cannot be
("" if it can)."""

Drawn = tuple[int, int | None]
"""A row's number, -1 for an empty one, and the seed of what is drawn for it; None if nothing is."""


@runtime_checkable
class Music(Protocol):
    """Where rows get their music from. random: whether what they get is drawn anew for each row."""

    @property
    def random(self) -> bool: ...

    def most_tokens(self, clip: str) -> int:
        """The most music tokens that a row about this clip can have."""
        ...

    def load(self, example: Example | None, rng: np.random.Generator | None) -> tuple[int, Batch]:
        """The number of music tokens and the music's fields of one row.

        Without an example, or with one whose clip cannot be read, 0: the row stays empty.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Rows:
    """One example in each row; a row's number is its example's position."""

    examples: Examples
    prompt: Prompt
    music: Music
    length: int

    def load(self, drawn: Sequence[Drawn]) -> Batch:
        """The batch of these rows."""
        examples = [self.examples[position] if position >= 0 else None for position, _ in drawn]
        loaded = [self.music.load(e, _generator(seed)) for e, (_, seed) in zip(examples, drawn, strict=True)]
        encoded = [(e, tokens) for e, (tokens, _) in zip(examples, loaded, strict=True) if e and tokens]
        texts = iter(self.prompt.rows([(e.question, e.answer, tokens) for e, tokens in encoded]))
        rows = [next(texts) if tokens else EMPTY for tokens, _ in loaded]
        fields = {name: np.stack([fields[name] for _, fields in loaded]) for name in loaded[0][1]}
        positions = np.array([position for position, _ in drawn], np.int32)
        return {**collate(rows, self.length, len(rows)), **fields, "example": positions}


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """Several examples in each row, whose music is cached."""

    examples: Examples
    prompt: Prompt
    music: Music
    length: int
    packing: Packing

    def load(self, drawn: Sequence[Drawn]) -> Batch:
        """The batch of these rows."""
        positions = np.full((len(drawn), self.packing.examples), -1, np.int32)
        music: np.ndarray | None = None
        asked: list[tuple[str, str, int]] = []
        for b, (row, seed) in enumerate(drawn):
            of_row, rng, at = self.packing[row], _generator(seed), 0
            positions[b, : len(of_row)] = of_row
            for example in map(self.examples.__getitem__, of_row):
                tokens, fields = self.music.load(example, rng)
                features = fields["music"][..., :tokens, :]
                if music is None:
                    states, width = features.shape[:-2], features.shape[-1]
                    music = np.zeros((len(drawn), *states, self.packing.music, width), np.float32)
                music[b, ..., at : at + tokens, :] = features
                at += tokens
                asked.append((example.question, example.answer, tokens))
        texts = iter(self.prompt.rows(asked))
        rows = [join([next(texts) for _ in range(count)]) for count in (positions >= 0).sum(axis=1)]
        assert music is not None
        return {**collate(rows, self.length, len(rows)), "music": music, "example": positions}


def _generator(seed: int | None) -> np.random.Generator | None:
    return None if seed is None else np.random.default_rng(seed)

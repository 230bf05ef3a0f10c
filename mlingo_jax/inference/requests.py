"""What the engine is asked: a prompt in pieces, and how its answer is written.

Axes: T tokens of a piece, K music tokens, S hidden states, D encoder width, A pieces read at once.
"""

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float, Int32

from mlingo_jax.inference.generate import Options, sampling_of
from mlingo_jax.inference.programs import Asked, Pieces


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """A part of a prompt. `music_index` is -1 for text, else which of the piece's music features stands there.

    `opened` says of a prefix whether it stands behind the opening: a prompt without music has none.
    """

    tokens: Int32[np.ndarray, " T"]
    music_index: Int32[np.ndarray, " T"]
    music: Float[np.ndarray, "*S K D"]
    opened: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """A question about a clip.

    Attributes:
        clip: what tells prefixes apart: requests of an engine with an equal `clip` have the same `prefix`.
        prefix: what follows the opening up to the question: the music, and what closes it.
        question: the rest of the prompt, at least one token.
        options: how the answer is written.
        seed, salt: what the row's random key is made of.
    """

    clip: Hashable
    prefix: Piece
    question: Piece
    options: Options
    seed: int = 0
    salt: int = 0

    def __post_init__(self):
        if not len(self.question.tokens):
            raise ValueError("a question has at least one token: the answer is written behind it")


def cut(
    tokens: Int32[np.ndarray, " T"],
    music_index: Int32[np.ndarray, " T"],
    music: Float[np.ndarray, "*S K D"],
    start: int,
    end: int,
) -> Piece:
    """The piece of a prompt from one token to another, with the music that stands in it."""
    index = music_index[start:end]
    encoded = index[index >= 0]
    own = np.where(index >= 0, index - encoded.min(initial=len(tokens)), -1).astype(np.int32)
    return Piece(tokens[start:end], own, music[..., encoded, :])


def whole(request: Request, opening: Sequence[int]) -> Piece:
    """A request's prompt in one piece, behind what all prompts begin with."""
    prefix, question = request.prefix, request.question
    before = np.array(opening if prefix.opened else (), np.int32)
    encoded = prefix.music.shape[-2]
    index = np.where(question.music_index >= 0, question.music_index + encoded, -1)
    return Piece(
        np.concatenate((before, prefix.tokens, question.tokens)),
        np.concatenate((np.full_like(before, -1), prefix.music_index, index)).astype(np.int32),
        np.concatenate((prefix.music, question.music), axis=-2),
    )


def pad(pieces: Sequence[Piece], count: int, size: int, music: int) -> Pieces:
    """Pieces as a program reads them: `count` of them, of `size` tokens and `music` music features each."""
    tokens, index = np.zeros((count, size), np.int32), np.full((count, size), -1, np.int32)
    lengths = np.zeros(count, np.int32)
    *states, _, width = pieces[0].music.shape
    features = np.zeros((count, *states, music, width), np.float32)
    for i, piece in enumerate(pieces):
        length = lengths[i] = len(piece.tokens)
        tokens[i, :length], index[i, :length] = piece.tokens, piece.music_index
        features[i, ..., : piece.music.shape[-2], :] = piece.music
    opened = np.array([*(piece.opened for piece in pieces), *[True] * (count - len(pieces))])
    return Pieces(tokens, index, lengths, features, opened)


def ask(requests: Sequence[Request], count: int, rows: Sequence[int], prefixes: Sequence[int], none: int) -> Asked:
    """Where and how the answers are written: `count` of them, those without a request in row `none`."""
    spare = count - len(requests)
    seeds, salts = ([getattr(r, name) & 0xFFFFFFFF for r in requests] for name in ("seed", "salt"))
    return Asked(
        rows=np.array([*rows, *[none] * spare], np.int32),
        prefixes=np.array([*prefixes, *[0] * spare], np.int32),
        limits=np.array([*(r.options.max_new_tokens for r in requests), *[0] * spare], np.int32),
        seeds=np.array([*seeds, *[0] * spare], np.uint32),
        salts=np.array([*salts, *[0] * spare], np.uint32),
        sampling=sampling_of([*(r.options for r in requests), *[Options()] * spare]),
    )

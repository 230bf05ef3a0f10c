"""From questions to requests: where a prompt is cut, and what its draws are made of.

Axes: K music features, S hidden states, D encoder width.
"""

import zlib
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float

from mlingo_jax.data.prompt import Prompt, Question
from mlingo_jax.inference.generate import Options
from mlingo_jax.inference.requests import Piece, Request, cut


def about_clip(
    prompt: Prompt,
    question: str | Question,
    features: Float[np.ndarray, "*S K D"],
    options: Options,
    *,
    clip: Hashable,
    salt: int,
    seed: int = 0,
) -> Request:
    """A question about a clip's music. `clip` tells clips apart, and `salt` is made of the clip and the question."""
    row = prompt.row(question, None, features.shape[-2])
    opening, encoded = len(prompt.opening), len(prompt.opening) + features.shape[-2]
    closed = encoded + len(prompt.closing)
    shared = closed if row.tokens[encoded:closed].tolist() == prompt.closing else encoded
    # Where nothing follows the music, the answer is written behind its last token.
    shared = min(shared, len(row.tokens) - 1)
    prefix = cut(row.tokens, row.music_index, features, opening, shared)
    rest = cut(row.tokens, row.music_index, features, shared, len(row.tokens))
    return Request((clip, shared), prefix, rest, options, seed, salt)


def in_words(prompt: Prompt, text: str, like: Float[np.ndarray, "*S K D"], options: Options, *, seed: int) -> Request:
    """A question without music; `like` are any features, whose shape those of no music have."""
    opening, rest = (np.array(ids, np.int32) for ids in prompt.text_ids(text))
    none = like[..., :0, :]
    if not len(opening):
        opening, rest = rest[:1], rest[1:]
    prefix = Piece(opening, np.full_like(opening, -1), none, opened=False)
    salt = salt_of(text, b"no music")
    return Request("no music", prefix, Piece(rest, np.full_like(rest, -1), none), options, seed, salt)


def salt_of(question: str | Question, clip: bytes) -> int:
    """What draws about a clip depend on besides the seed; `clip` is what tells it from others."""
    if isinstance(question, str):
        return zlib.crc32(question.encode(), zlib.crc32(clip))
    turns = [text for turn in question.earlier for text in turn]
    return salt_of("\0".join([*turns, question.text]), clip)


def by_clip(requests: Sequence[Request]) -> list[int]:
    """The order in which each clip's prefix is read once: its questions one after the other."""
    first: dict[Hashable, int] = {}
    return sorted(range(len(requests)), key=lambda i: (first.setdefault(requests[i].clip, i), i))

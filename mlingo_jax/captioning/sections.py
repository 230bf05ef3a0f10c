"""Successive windows of a long track, cut where its music tokens begin."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mlingo_jax.data.audio import chunks
from mlingo_jax.features.encode import AudioEncoder


@dataclass(frozen=True)
class Section:
    """Music tokens `first` to `last` (without it) of a track, and the seconds of audio that they stand for."""

    first: int
    last: int
    start: float
    end: float


def sections(samples: int, encoder: AudioEncoder, seconds: float) -> list[Section]:
    """The windows of about so many seconds of a track; a last one of less than half joins the one before it.

    Together they are the whole track. Each begins with the first music token that begins in it, so `seconds` shorter
    than a token hears makes a section of each token.
    """
    starts = token_starts(samples, encoder)
    length = samples / encoder.audio.sample_rate
    count = max(1, int(length / seconds + 0.5))
    edges = np.searchsorted(starts, np.arange(count) * seconds - 1e-6).tolist()
    firsts = sorted({0, *(edge for edge in edges if edge < len(starts))})
    lasts = [*firsts[1:], len(starts)]
    times = [round(float(t), 3) for t in (*starts, length)]
    return [Section(a, b, times[a], times[b]) for a, b in zip(firsts, lasts, strict=True)]


def token_starts(samples: int, encoder: AudioEncoder) -> list[float]:
    """The seconds at which each music token of a track begins."""
    rate, starts, at = encoder.audio.sample_rate, [], 0
    for piece in chunks(np.broadcast_to(np.float32(0), samples), round(encoder.seconds * rate), rate):
        frames = encoder.config.frames(len(piece))
        tokens = -(-frames // encoder.frames_per_token)
        starts += [(at + len(piece) * token * encoder.frames_per_token / frames) / rate for token in range(tokens)]
        at += len(piece)
    return starts


def fitting(texts: Sequence[str], tokens: Callable[[Sequence[str]], int], most: int) -> list[list[str]]:
    """Texts in groups of as many as a prompt holds, in their order; at least two in each but a last one."""
    groups: list[list[str]] = [[]]
    for text in texts:
        if len(groups[-1]) >= 2 and tokens([*groups[-1], text]) > most:
            groups.append([])
        groups[-1].append(text)
    return groups


def clock(seconds: float) -> str:
    """75.3 -> 1:15."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"

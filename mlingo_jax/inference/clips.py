"""Clips, in whatever form they are given, become music features: read ahead, and encoded some at a time.

Axes: K music features of a clip, S hidden states, D encoder width, N samples.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Float

from mlingo_jax.data.audio import prepare_waveform, read_audio
from mlingo_jax.data.prompt import Question
from mlingo_jax.data.stored import ahead
from mlingo_jax.errors import UserError
from mlingo_jax.features.encode import AudioEncoder
from mlingo_jax.wording import counted

T = TypeVar("T", str, str | Question)

Clip = str | Path | tuple[np.ndarray, int] | np.ndarray
"""An audio file, (waveform, sample rate), or music features as `MusiLingo.encode` gives them."""

# Clips that are encoded together: so many, or so many seconds of audio. Enough for full batches on a few devices.
CLIPS, SECONDS = 64, 256.0


@dataclass(frozen=True, eq=False)
class Music:
    """A clip's music features. `digest` tells the clip from others, `samples` its waveform's length, 0 if unknown."""

    features: Float[np.ndarray, "*S K D"]
    digest: bytes
    samples: int = 0

    def part(self, first: int, last: int) -> "Music":
        """The music from one feature to another, as a clip of its own."""
        return Music(self.features[..., first:last, :], sha256(self.digest + b"%d-%d" % (first, last)).digest())


def encoded(clips: Iterable[Clip], encoder: AudioEncoder) -> Iterator[Music | UserError]:
    """Each clip's music, or why it cannot be had, in the clips' order. What is held at a time is bounded."""
    tasks = ((clip, partial(_read, clip, encoder)) for clip in clips)
    for group in _groups(ahead(tasks), round(SECONDS * encoder.audio.sample_rate)):
        yield from _encode(group, encoder)


def distinct(clips: Iterable[Clip]) -> tuple[list[Clip], list[int]]:
    """The clips without those that are given again, and where each one stands among these."""
    places: dict[object, int] = {}
    kept: list[Clip] = []
    of_clip = []
    for clip in clips:
        key = _key(clip)
        if places.setdefault(key, len(kept)) == len(kept):
            kept.append(clip)
        of_clip.append(places[key])
    return kept, of_clip


def music_of(features: Float[np.ndarray, "..."], encoder: AudioEncoder) -> Music:
    """Features as a clip's music.

    Raises:
        UserError: they are not of the shape that this encoder gives.
    """
    width, states = encoder.config.embed_dim, (encoder.config.states,) if encoder.per_layer else ()
    *outer, count, last = (0, 0, *features.shape) if features.ndim < 2 else features.shape
    if (*outer, last) != (*states, width) or not count:
        expected = ", ".join(map(str, (*states, "K", width)))
        raise UserError(
            f"music features: expected the shape [{expected}], as `encode` gives them, found {list(features.shape)}; "
            "give samples with their rate: (waveform, sample rate)"
        )
    features = np.ascontiguousarray(features, np.float32)
    return Music(features, sha256(features.data).digest())


def require_list(clips: Sequence[Clip]) -> None:
    """Refuses what is easily given instead of a list of clips, and would be taken for one."""
    waveform = isinstance(clips, tuple) and len(clips) == 2 and isinstance(clips[1], int | float | np.number)
    if waveform or isinstance(clips, str | Path | np.ndarray):
        raise UserError(
            "clips: expected a list of files, (waveform, sample rate) or features, found a single one; give [clip]"
        )
    if not clips:
        raise UserError("clips: the list is empty")


def one_each(clips: Sequence[Clip], texts: T | Sequence[T], name: str) -> list[T]:
    """A text, or a question, for each clip; one that is given alone is for all of them.

    Raises:
        UserError: they are not as many as the clips, or the clips are no list.
    """
    require_list(clips)
    found: list[Any] = [texts] * len(clips) if isinstance(texts, str | Question) else list(texts)
    if len(found) != len(clips):
        raise UserError(f"{name}: expected one for each of {counted(len(clips), 'clip')}, found {len(found)}")
    return found


def _key(clip: Clip) -> object:
    if isinstance(clip, np.ndarray):
        return id(clip)
    return (id(clip[0]), clip[1]) if isinstance(clip, tuple) else str(clip)


def _read(clip: Clip, encoder: AudioEncoder) -> Music | Float[np.ndarray, "N"]:
    minimum = encoder.config.receptive_field
    if isinstance(clip, np.ndarray):
        return music_of(clip, encoder)
    if isinstance(clip, tuple):
        return prepare_waveform(*clip, encoder.audio, minimum=minimum)
    return read_audio(clip, encoder.audio, minimum=minimum)


def _groups(
    clips: Iterable[tuple[Clip, Music | np.ndarray | UserError]], most_samples: int
) -> Iterator[list[Music | np.ndarray | UserError]]:
    """What has been read, in groups that are encoded together."""
    group, samples = [], 0
    for _, clip in clips:
        group.append(clip)
        samples += len(clip) if isinstance(clip, np.ndarray) else 0
        if len(group) == CLIPS or samples >= most_samples:
            yield group
            group, samples = [], 0
    if group:
        yield group


def _encode(group: Sequence[Music | np.ndarray | UserError], encoder: AudioEncoder) -> Iterator[Music | UserError]:
    """The music of a group; equal waveforms are encoded once."""
    waveforms = {sha256(clip.data).digest(): clip for clip in group if isinstance(clip, np.ndarray)}
    with nullcontext() if encoder.mesh is None else jax.set_mesh(encoder.mesh):
        features = dict(zip(waveforms, encoder(list(waveforms.values())), strict=True)) if waveforms else {}
    for clip in group:
        if isinstance(clip, np.ndarray):
            digest = sha256(clip.data).digest()
            clip = Music(features[digest], digest, len(clip))
        yield clip

"""A clip's audio wherever it is: a file, or a record that `prepare` made."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from mlingo_jax.data.audio import AudioSettings, decode_audio, measure_audio, read_audio
from mlingo_jax.errors import UserError

K = TypeVar("K")
R = TypeVar("R")

Waveform = Float32[np.ndarray, "_"]

# Of waveforms that are read ahead: an hour and a half at 24 kHz.
MOST_BYTES = 512 << 20
# How many of the last clips tell how large the next ones may be.
_REMEMBERED = 16


@dataclass(frozen=True, slots=True)
class StoredAudio:
    """A clip among the records of `collection` (a name for messages); `read` gives the encoded bytes of an id.

    digest: gives what these bytes are (`mlingo_jax.data.contents`), if that is known without reading them. made: when
    the records were written, in ns.
    """

    collection: str
    clip: str
    read: Callable[[str], bytes]
    digest: Callable[[str], str] | None = None
    made: int = 0

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.collection}: clip {self.clip}"

    def encoded(self) -> bytes:
        """The clip's bytes. Raises UserError if its record cannot be read, for whatever reason."""
        try:
            return self.read(self.clip)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self.name}: its record cannot be read ({type(error).__name__}: {error})") from error


Audio = Path | StoredAudio


def read_clip(audio: Audio, settings: AudioSettings, *, minimum: int, clip: str = "") -> Waveform:
    """The waveform of a clip of this name, and UserErrors, as `read_audio`'s."""
    if isinstance(audio, Path):
        return read_audio(audio, settings, minimum=minimum, clip=clip)
    return decode_audio(audio.encoded(), audio.name, settings, minimum=minimum, clip=clip)


def read_ahead(
    clips: Iterable[tuple[str, Audio]], audio: AudioSettings, minimum: int, *, most_bytes: int = MOST_BYTES
) -> Iterator[tuple[str, Waveform | UserError]]:
    """Reads clips in threads, a few ahead of what is asked for, and gives them in order: see `ahead`."""
    read = partial(read_clip, settings=audio, minimum=minimum)
    return ahead(((name, partial(read, clip, clip=name)) for name, clip in clips), most_bytes)


def ahead(
    tasks: Iterable[tuple[K, Callable[[], R]]], most_bytes: int = MOST_BYTES
) -> Iterator[tuple[K, R | UserError]]:
    """Runs what reads in threads, a few ahead of what is asked for; gives results, or the UserErrors raised, in order.

    What waits is at most `most_bytes`, as far as the results before tell how large the next ones are.
    """
    workers = _workers()
    sizes = deque([most_bytes // 4], maxlen=_REMEMBERED)
    todo = iter(tasks)
    waiting: deque[tuple[K, Future[R | UserError]]] = deque()

    def has_room() -> bool:
        held = [_bytes(future.result()) if future.done() else max(sizes) for _, future in waiting]
        return not held or (len(held) <= 2 * workers and sum(held) + max(sizes) <= most_bytes)

    with ThreadPoolExecutor(workers) as pool:
        while True:
            while has_room() and (task := next(todo, None)):
                waiting.append((task[0], pool.submit(_error_or, task[1])))
            if not waiting:
                return
            key, future = waiting.popleft()
            result = future.result()
            sizes.append(_bytes(result))
            yield key, result
            # Not held while the next ones are read.
            del result, future


def duration(audio: Audio, most_seconds: float = float("inf")) -> float | None:
    """The clip's seconds, as far as it is decoded (up to `most_seconds` or little more); None if it cannot be."""
    try:
        if isinstance(audio, Path):
            return measure_audio(audio, most_seconds=most_seconds).seconds
        return measure_audio(audio.encoded(), audio.name, most_seconds=most_seconds).seconds
    except UserError:
        return None


def durations(clips: Mapping[str, Audio], most_seconds: float = float("inf")) -> dict[str, float | None]:
    """Each clip's `duration`; they are decoded in threads."""
    with ThreadPoolExecutor(_workers()) as pool:
        measured = pool.map(lambda audio: duration(audio, most_seconds), clips.values())
        bar = tqdm(measured, desc="measuring clips", total=len(clips), unit="clip", disable=None)
        return dict(zip(clips, bar, strict=True))


def _workers() -> int:
    return min(os.cpu_count() or 1, 8)


def _error_or(read: Callable[[], R]) -> R | UserError:
    try:
        return read()
    except UserError as error:
        return error


def _bytes(result: object) -> int:
    return result.nbytes if isinstance(result, np.ndarray) else 0

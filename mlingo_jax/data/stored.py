"""A clip's audio wherever it is: a file, or a record that `prepare` made."""

import contextlib
import io
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float32

from mlingo_jax.data.audio import AudioSettings, decode_audio, read_audio
from mlingo_jax.errors import UserError

Waveform = Float32[np.ndarray, "_"]


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


Audio = Path | StoredAudio


def read_clip(audio: Audio, settings: AudioSettings, *, minimum: int) -> Waveform:
    """The clip's waveform, and UserErrors, as `read_audio`'s."""
    if isinstance(audio, Path):
        return read_audio(audio, settings, minimum=minimum)
    name = f"{audio.collection}: clip {audio.clip}"
    return decode_audio(audio.read(audio.clip), name, settings, minimum=minimum)


def read_ahead(
    clips: Mapping[str, Audio], audio: AudioSettings, minimum: int
) -> Iterator[tuple[str, Waveform | UserError]]:
    """Reads clips in threads, a few ahead of what is asked for, and gives them in order."""

    def read(clip: Audio) -> Waveform | UserError:
        try:
            return read_clip(clip, audio, minimum=minimum)
        except UserError as error:
            return error

    workers = min(os.cpu_count() or 1, 8)
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[str, Future[Waveform | UserError]]] = deque()
        for name, clip in clips.items():
            waiting.append((name, pool.submit(read, clip)))
            if len(waiting) > 2 * workers:
                name, future = waiting.popleft()
                yield name, future.result()
        for name, future in waiting:
            yield name, future.result()


def duration(audio: Audio) -> float | None:
    """The clip's seconds as its header states them; None if there is no such file any more."""
    with contextlib.suppress(soundfile.SoundFileError, OSError):
        source = audio if isinstance(audio, Path) else io.BytesIO(audio.read(audio.clip))
        return float(soundfile.info(source).duration)
    return None

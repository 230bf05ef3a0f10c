"""What a run must know of all its examples before it begins, from reading each of them once.

Axes: E examples. Beside them only numbers are kept, and the clips' names until they are encoded.
"""

import dataclasses
import hashlib
import json
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, UInt64

from mlingo_jax.data.examples import Examples
from mlingo_jax.data.prompt import Prompt
from mlingo_jax.data.rows import Music
from mlingo_jax.data.stored import Audio
from mlingo_jax.errors import UserError
from mlingo_jax.wording import counted

_AT_ONCE = 4096
# Rows of a length that is chosen are a multiple of so many positions.
MULTIPLE = 16


@dataclasses.dataclass(frozen=True)
class ExampleStatistics:
    """What is counted of examples before a run.

    Of each example: its clip, as a place in `clips`; its row's length without the music; whether its answer is cut;
    whether a stop text stands in it; and a hash of its clip's name and its texts.

    clips: every clip once, with its audio, as they are met. first_stop: where the first stop text stands, in words.
    """

    clips: dict[str, Audio]
    clip: Int32[np.ndarray, "E"]
    text: Int32[np.ndarray, "E"]
    truncated: Bool[np.ndarray, "E"]
    stops: Bool[np.ndarray, "E"]
    hashes: UInt64[np.ndarray, "E"]
    first_stop: str

    def where(self, kept: Bool[np.ndarray, "E"]) -> "ExampleStatistics":
        """The survey of some of the examples."""
        of_each = ("clip", "text", "cut", "stops", "hashes")
        return dataclasses.replace(self, **{name: getattr(self, name)[kept] for name in of_each})

    def notes(self) -> list[str]:
        """What the user should know of the answers, a line each."""
        stops = int(self.stops.sum())
        if not stops:
            return []
        return [
            f"{counted(stops, 'answer')} with a text in it at which generation stops, so that what follows is never "
            f"written; the first: {self.first_stop}"
        ]

    def fingerprint(self, train: int) -> str:
        """Of clips, texts and their order, and of how many of them are to train on."""
        digest = hashlib.sha256(self.hashes[:train].tobytes())
        digest.update(b"\n" + self.hashes[train:].tobytes())
        return digest.hexdigest()


def example_statistics(examples: Examples, prompt: Prompt) -> ExampleStatistics:
    """Reads and tokenises all examples, some at a time."""
    count = len(examples)
    clip, text = np.zeros(count, np.int32), np.zeros(count, np.int32)
    truncated, stops, hashes = np.zeros(count, bool), np.zeros(count, bool), np.zeros(count, np.uint64)
    first_stop = ""
    clips: dict[str, Audio] = {}
    numbers: dict[str, int] = {}
    for start in range(0, count, _AT_ONCE):
        some = [examples[i] for i in range(start, min(start + _AT_ONCE, count))]
        these = slice(start, start + len(some))
        for e in some:
            clips.setdefault(e.clip, e.audio)
        clip[these] = [numbers.setdefault(e.clip, len(numbers)) for e in some]
        text[these], truncated[these] = prompt.lengths([e.question for e in some], [e.answer for e in some])
        hashes[these] = [_hash([e.clip, e.question, e.answer]) for e in some]
        inside = [prompt.stop_in(e.answer) for e in some]
        stops[these] = [stop is not None for stop in inside]
        first_stop = first_stop or next((f"{s!r} at {e.where}" for s, e in zip(inside, some, strict=True) if s), "")
    return ExampleStatistics(clips, clip, text, truncated, stops, hashes, first_stop)


@dataclasses.dataclass(frozen=True)
class RowSizes:
    """How long each example's row is, its music included, and how much of that is music."""

    lengths: Int32[np.ndarray, "E"]
    music: Int32[np.ndarray, "E"]

    @property
    def longest(self) -> int:
        return int(self.lengths.max())

    @property
    def mean(self) -> float:
        return float(self.lengths.mean())


def row_sizes(statistics: ExampleStatistics, music: Music) -> RowSizes:
    """The rows' sizes with this music."""
    of_clip = np.zeros(len(statistics.clips), np.int32)
    present = np.bincount(statistics.clip, minlength=len(of_clip)) > 0
    of_clip[present] = [music.most_tokens(name) for name, there in zip(statistics.clips, present, strict=True) if there]
    tokens = of_clip[statistics.clip]
    return RowSizes(statistics.text + tokens, tokens)


def round_up(positions: int, multiple: int = MULTIPLE) -> int:
    """The length that is chosen for rows of up to so many positions."""
    return -(-positions // multiple) * multiple


def row_length(sizes: RowSizes, examples: Examples, length: int | None) -> int:
    """L: the given length, or, for None, the longest row's rounded up to a multiple of `MULTIPLE`.

    Raises UserError if the given length would not hold every row: nothing is cut but answers at their own limit.
    """
    if length is None:
        return round_up(sizes.longest)
    if length < sizes.longest:
        raise UserError(
            f"{examples[int(sizes.lengths.argmax())].where}: this example's row has {sizes.longest} tokens, the rows' "
            f"length is set to {length}; set it higher, or leave it out to have it chosen"
        )
    return length


def _hash(values: list[Any]) -> int:
    return int.from_bytes(hashlib.blake2b(json.dumps(values).encode(), digest_size=8).digest(), "big")

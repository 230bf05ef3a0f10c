"""Examples from several sources, one after the other, each source drawn from as often as its weight says.

Nothing that grows with a prepared dataset is in memory: an example is read when it is asked for.
"""

import bisect
import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from mlingo_jax.data.examples import Example, Examples
from mlingo_jax.data.prepared import Prepared
from mlingo_jax.errors import UserError

# "dataset/config:split", and perhaps "=weight" or "*times".
_WANTED = re.compile(r"([^:=*]+):([^:=*]+?)\s*(?:([=*])(.+))?")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A split of a prepared dataset, and its weight in a mixture: the split's own, or, with `each`, each example's."""

    dataset: str
    split: str
    weight: float = 1.0
    each: bool = False


def parse_wanted(text: str, setting: str) -> list[Wanted]:
    """Reads "music_qa:finetune, music_instruct/all:train=2", or with weights of each example, "a:train*1, b:train*2".

    A weight that is not given is 1. Raises UserError, naming the setting, for whatever is not of this form, and where
    some weights are the splits' and some each example's.
    """
    wanted = []
    for part in text.split(","):
        found = _WANTED.fullmatch(part.strip())
        weight = _positive(found[4]) if found and found[4] else 1.0
        if not found or weight is None:
            raise UserError(
                f"{setting}: expected DATASET:SPLIT, DATASET:SPLIT=WEIGHT or DATASET:SPLIT*TIMES, separated by commas, "
                f'as "music_qa:finetune=2"; found {part.strip()!r}'
            )
        wanted.append(Wanted(found[1], found[2], weight, each=found[3] == "*"))
    if len({part.each for part in wanted}) > 1:
        raise UserError(f"{setting}: = weighs a split and * each of its examples; write one of them for all, not both")
    return wanted


class PreparedSplit:
    """The examples of one split of a prepared dataset; clips are named COLLECTION/ID."""

    def __init__(self, data_dir: str | Path, dataset: str, split: str):
        """Raises UserError if it was not prepared."""
        prepared = Prepared(data_dir, dataset)
        self._examples = prepared.examples(split)
        self._collection, self._clips = prepared.collection, prepared.clips
        self._where = f"{dataset}:{split}"

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        found = self._examples[index]
        clip = clip_name(self._collection, found.clip)
        return Example(
            clip, self._clips.stored(found.clip), found.question, found.answer, None, f"{self._where}[{index}]"
        )


class Chosen:
    """Some of the examples."""

    def __init__(self, examples: Examples, positions: Int[np.ndarray, "_"]):
        self._examples, self._positions = examples, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Example:
        return self._examples[int(self._positions[index])]


class Mixture:
    """The examples of all parts, one part after the other; parts without weights weigh the same."""

    def __init__(self, parts: Sequence[Examples], weights: Sequence[float] = ()):
        self._parts = parts
        self.weights = list(weights) or [1.0] * len(parts)
        ends = list(itertools.accumulate(map(len, parts), initial=0))
        self.ranges = [range(start, end) for start, end in itertools.pairwise(ends)]

    def __len__(self) -> int:
        return self.ranges[-1].stop if self.ranges else 0

    def __getitem__(self, index: int) -> Example:
        position = range(len(self))[index]
        part = bisect.bisect_right(self.ranges, position, key=lambda r: r.start) - 1
        return self._parts[part][position - self.ranges[part].start]

    def where(self, kept: Bool[np.ndarray, "_"]) -> "Mixture":
        """The mixture of some of the examples; the parts keep their weights."""
        chosen = [np.flatnonzero(kept[positions.start : positions.stop]) for positions in self.ranges]
        parts = [Chosen(part, positions) for part, positions in zip(self._parts, chosen, strict=True)]
        return Mixture(parts, self.weights)


def read_mixture(data_dir: str | Path, wanted: Sequence[Wanted]) -> Mixture:
    """The mixture of prepared splits. Raises UserError if one was not prepared."""
    parts = [PreparedSplit(data_dir, part.dataset, part.split) for part in wanted]
    weights = [w.weight * (len(part) if w.each else 1) for w, part in zip(wanted, parts, strict=True)]
    return Mixture(parts, weights)


def clip_name(collection: str, clip: str) -> str:
    """What a clip of a collection is called among all clips: in the feature cache, and in messages."""
    return f"{collection}/{clip}"


def evenly(examples: Examples, most: int) -> Examples:
    """At most so many of the examples, at even distances; 0: all."""
    if not 0 < most < len(examples):
        return examples
    return Chosen(examples, np.arange(most) * len(examples) // most)


def _positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < math.inf else None

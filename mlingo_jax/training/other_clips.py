"""Held-out examples whose music is another clip's: a model that listens is surprised by its answers."""

import dataclasses
from collections.abc import Sequence

from mlingo_jax.data.examples import Example, Examples


class OtherClips:
    """Each example with the music of another one, about another clip."""

    def __init__(self, examples: Examples, others: Sequence[int]):
        """others: for each example the number of the one whose music it gets."""
        self._examples, self._others = examples, others

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        other = self._examples[self._others[index]]
        return dataclasses.replace(self._examples[index], clip=other.clip, audio=other.audio)


def others(clips: Sequence[int]) -> list[int] | None:
    """For each example another one about another clip, about half of all examples further on.

    None if all are about one clip.

    clips: the number of each example's clip.
    """
    count = len(clips)
    if len(set(clips)) < 2:
        return None
    found = []
    for i, clip in enumerate(clips):
        steps = (i + count // 2 + k for k in range(count))
        found.append(next(j % count for j in steps if clips[j % count] != clip))
    return found

"""Examples: a question about a clip, its answer, and where they are from."""

import dataclasses
import hashlib
from typing import Literal, Protocol, runtime_checkable

from mlingo_jax.data.stored import Audio

Split = Literal["train", "eval"]


@dataclasses.dataclass(frozen=True)
class Example:
    """One question about one clip.

    clip: its name, the manifest's or COLLECTION/ID. where: "file:line" or "dataset:split[number]", for messages.
    """

    clip: str
    audio: Audio
    question: str
    answer: str
    split: Split | None
    where: str


@runtime_checkable
class Examples(Protocol):
    """Examples by their index: a list, or records that are read when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


def clip_hash(clip: str) -> int:
    """64 bits that depend on a clip's name, or its id in a collection, alone."""
    return int.from_bytes(hashlib.sha256(clip.encode()).digest()[:8], "big")

"""TFDS's records: written with bytes that depend on their contents alone, and texts read without its detours.

The clips of a collection are one TFDS dataset of the split `CLIPS`; beside its records lie their ids' hashes
and names, and what was found of each file.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from tensorflow_datasets.core.writer import ExampleWriter
from tensorflow_datasets.proto import tf_example_pb2

CLIPS, HASHES, NAMES, CHECKS = "clips", "hashes.npy", "clips.jsonl", "checks.jsonl"

# protobuf makes its classes as the module is imported, out of a type checker's sight.
_MESSAGES: Any = tf_example_pb2


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip: its audio as an encoded file's bytes, its length in s and its sample rate in Hz."""

    clip: str
    audio: bytes = field(repr=False)
    seconds: float
    rate: int


class SteadyWriter(ExampleWriter):
    """Writes examples with their features in order: a protobuf map is serialised in another order by each process."""

    def write(self, path: str | PathLike[str], examples: Iterable[tuple[Any, bytes]]) -> Any:
        return super().write(path, ((key, _in_order(record)) for key, record in examples))


def read_texts(record: bytes, names: Sequence[str]) -> list[str]:
    """Some features of a serialised record, a text each."""
    features = _MESSAGES.Example.FromString(record).features.feature
    return [features[name].bytes_list.value[0].decode() for name in names]


def _in_order(record: bytes) -> bytes:
    return _MESSAGES.Example.FromString(record).SerializeToString(deterministic=True)

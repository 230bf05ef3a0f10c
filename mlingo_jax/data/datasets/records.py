"""TFDS's records with bytes that depend on their contents alone."""

from collections.abc import Iterable
from os import PathLike
from typing import Any

from tensorflow_datasets.core.writer import ExampleWriter
from tensorflow_datasets.proto import tf_example_pb2


class SteadyWriter(ExampleWriter):
    """Writes examples with their features in order: a protobuf map is serialised in another order by each process."""

    def write(self, path: str | PathLike[str], examples: Iterable[tuple[Any, bytes]]) -> Any:
        return super().write(path, ((key, _in_order(record)) for key, record in examples))


def _in_order(record: bytes) -> bytes:
    # protobuf makes its classes as the module is imported, out of a type checker's sight.
    message: Any = tf_example_pb2
    return message.Example.FromString(record).SerializeToString(deterministic=True)

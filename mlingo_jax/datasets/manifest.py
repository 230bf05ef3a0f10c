"""Anyone's own music as a dataset; `mlingo_jax.data.manifest` has the format."""

from collections.abc import Iterator
from pathlib import Path

from mlingo_jax.data.annotations import Annotation, number, rate
from mlingo_jax.data.manifest import Entry, read_entries
from mlingo_jax.datasets.examples import Examples


class Manifest(Examples):
    """Your own examples: jsonl, json or csv; --config names the collection.

    Splits are train (also unnamed) and eval.
    """

    name = "manifest"
    homepage = ""
    licence = "its owner's"
    citation = ""
    configs = None
    default_config = "own"
    files = ("*.jsonl", "*.csv", "*.json")

    def annotations(self) -> Iterator[Annotation]:
        split_of: dict[str, Entry] = {}
        for path in self.annotation_files():
            yield from self._read(path, split_of)

    def read(self, path: Path) -> Iterator[Annotation]:
        return self._read(path, {})

    def _read(self, path: Path, split_of: dict[str, Entry]) -> Iterator[Annotation]:
        for entry in read_entries(path, unmarked="train", split_of=split_of):
            yield Annotation(
                clip=entry.audio,
                names=(str((path.parent / entry.audio).resolve()), entry.audio),
                question=entry.question,
                answer=entry.answer,
                source=self.config_name,
                split=entry.split or "train",
                seconds=number(entry.values, "seconds", entry.where),
                rate=rate(entry.values, entry.where),
            )

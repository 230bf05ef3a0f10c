"""FMA: 106,574 tracks of the Free Music Archive with genres, as clips of thirty seconds (Defferrard et al., 2017)."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from mlingo_jax.data.annotations import Annotation
from mlingo_jax.data.tables import TAGS_QUESTION, read_fma, read_made
from mlingo_jax.datasets.examples import Examples

# Each has all clips of those before it.
_SUBSETS = ("small", "medium", "large")


class FMA(Examples):
    """Clips of 30 s with genres and tags (small, medium or large), or with the captions made of these.

    Splits train, valid, test. Config captions: what `mlingo_jax.instruct` made of genres and tags (manifest.jsonl).
    Audio: 000/000002.mp3.
    """

    name = "fma"
    homepage = "https://github.com/mdeff/fma"
    licence = "CC-BY 4.0 (metadata); the audio has its artists' licences"
    citation = "Defferrard et al., FMA: A Dataset For Music Analysis, ISMIR 2017"
    configs = ("captions", *_SUBSETS)
    default_config = "captions"
    published: ClassVar = {"small": {"": 8000}, "medium": {"": 25000}, "large": {"": 106574}}

    def file_names(self) -> tuple[str, ...]:
        return ("manifest.jsonl",) if self.config_name == "captions" else ("tracks.csv",)

    def read(self, path: Path) -> Iterator[Annotation]:
        if self.config_name == "captions":
            for made in read_made(path):
                source = f"fma/{made.kind}"
                yield Annotation(made.clip, (made.audio,), made.question, made.answer, source, made.split)
            return
        wanted = _SUBSETS[: _SUBSETS.index(self.config_name) + 1]
        for _, row in read_fma(path):
            tags = ", ".join(tag for category in row["tags"].values() for tag in category)
            # Some tracks of the large set have no genre.
            if row["subset"] in wanted and tags:
                yield Annotation(row["clip"], (row["audio"],), TAGS_QUESTION, tags, "fma/tags", row["split"])

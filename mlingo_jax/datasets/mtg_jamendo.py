"""MTG-Jamendo: 55,701 full tracks under Creative Commons licences, with tags (Bogdanov et al., 2019)."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from mlingo_jax.data.annotations import Annotation
from mlingo_jax.data.tables import TAGS_QUESTION, read_jamendo, read_made
from mlingo_jax.datasets.examples import Examples

_SPLITS = {"train": "train", "validation": "valid", "test": "test"}


class MTGJamendo(Examples):
    """Whole tracks with tags, or with the captions made of these.

    Config tags: a track's tags; the split is the file's (...-train.tsv), train for all others. Config captions: what
    `mlingo_jax.instruct` made of the tags (manifest.jsonl). Audio: 48/948.mp3 or, smaller, 48/948.low.mp3.
    """

    name = "mtg_jamendo"
    homepage = "https://github.com/MTG/mtg-jamendo-dataset"
    licence = "CC-BY-NC-SA 4.0 (metadata); the audio has its artists' Creative Commons licences"
    citation = "Bogdanov et al., The MTG-Jamendo Dataset for Automatic Music Tagging, ML4MD at ICML 2019"
    configs = ("captions", "tags")
    default_config = "captions"
    published: ClassVar = {}

    def file_names(self) -> tuple[str, ...]:
        return ("manifest.jsonl",) if self.config_name == "captions" else ("autotagging-*.tsv",)

    def read(self, path: Path) -> Iterator[Annotation]:
        if self.config_name == "captions":
            for made in read_made(path):
                yield Annotation(
                    clip=made.clip,
                    names=audio_names(made.audio),
                    question=made.question,
                    answer=made.answer,
                    source=f"mtg_jamendo/{made.kind}",
                    split=made.split,
                )
            return
        split = _SPLITS.get(path.stem.rpartition("-")[2], "train")
        for _, row in read_jamendo(path):
            tags = ", ".join(tag for category in row["tags"].values() for tag in category)
            names = audio_names(row["audio"])
            yield Annotation(row["clip"], names, TAGS_QUESTION, tags, "mtg_jamendo/tags", split)


def audio_names(path: str) -> tuple[str, ...]:
    """What a track's audio is called: its path in the full set, and in the smaller one of mono."""
    return (path, f"{path.removesuffix('.mp3')}.low.mp3")

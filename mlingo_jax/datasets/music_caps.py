"""MusicCaps: 5,521 ten-second clips of AudioSet, each with a caption by a musician (Agostinelli et al., 2023)."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from mlingo_jax.data.annotations import (
    CAPTION_QUESTION,
    Annotation,
    boolean,
    items,
    number,
    rate,
    read_csv,
    read_json,
    require,
    text,
)
from mlingo_jax.datasets.examples import Examples
from mlingo_jax.errors import UserError

SECONDS = 10.0
_REQUIRED = ("ytid", "caption", "is_audioset_eval")


class MusicCaps(Examples):
    """Captions by musicians of 5,521 clips of 10 s: train 2,663, eval 2,858.

    Splits by `is_audioset_eval`. Annotations: the published csv, or the reference implementation's json.
    """

    name = "music_caps"
    homepage = "https://www.kaggle.com/datasets/googleai/musiccaps"
    licence = "CC-BY-SA 4.0 (annotations); the audio is YouTube's"
    citation = "Agostinelli et al., MusicLM: Generating Music From Text, 2023"
    files = ("musiccaps-public.csv", "all.json")
    published: ClassVar = {"": {"train": 2663, "eval": 2858}}

    def read(self, path: Path) -> Iterator[Annotation]:
        rows = _read_original(path) if path.suffix == ".json" else read_csv(path, (*_REQUIRED, "start_s", "end_s"))
        for where, row in rows:
            clip = text(row, "ytid", where)
            start, end = number(row, "start_s", where), number(row, "end_s", where)
            if start is not None and end is not None and not 0 <= start < end:
                raise UserError(f"{where}: expected 0 <= start_s < end_s, found {start:g} and {end:g}")
            yield Annotation(
                clip=clip,
                names=clip_names(clip, start, end),
                question=CAPTION_QUESTION,
                answer=text(row, "caption", where),
                source="music_caps",
                split="eval" if boolean(row, "is_audioset_eval", where) else "train",
                seconds=SECONDS if start is None or end is None else end - start,
                start=start or 0.0,
                rate=rate(row, where),
            )


def clip_names(clip: str, start: float | None, end: float | None) -> tuple[str, ...]:
    """What a clip's audio is called by those who collected it: its id, or LP-MusicCaps' [id]-[start-end]."""
    return (clip,) if start is None or end is None else (clip, f"[{clip}]-[{start:g}-{end:g}]")


def _read_original(path: Path) -> Iterator[tuple[str, dict]]:
    """The reference implementation's own file: {"ann": [rows of the csv, with the sampling_rate of the .npy]}."""
    values = read_json(path)
    require(values if isinstance(values, dict) else (), ("ann",), str(path))
    return items(values["ann"], str(path))

"""LP-MusicCaps: captions that a language model wrote from tags, for three collections (Doh et al., 2023)."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow
import pyarrow.parquet

from mlingo_jax.data.annotations import (
    CAPTION_QUESTION,
    Annotation,
    number,
    read_csv,
    read_jsonl,
    require,
    text,
)
from mlingo_jax.datasets.examples import Examples
from mlingo_jax.datasets.music_caps import clip_names
from mlingo_jax.errors import UserError

CAPTIONS = ("caption_writing", "caption_summary", "caption_paraphrase", "caption_attribute_prediction")
_SPLITS = ("train", "valid", "test")
_ROWS_AT_ONCE = 4096


class LPMusicCaps(Examples):
    """Captions that a language model wrote from tags, of the clips of msd, mtt or mc.

    The split is the file's name. The splits train, valid and test have the column caption_writing, which the reference
    implementation trains on; train_summary and so on have the others.
    """

    name = "lp_music_caps"
    homepage = "https://huggingface.co/datasets/seungheondoh/LP-MusicCaps-MSD"
    licence = "MIT (mc; msd and mtt: see their pages); the audio is not distributed"
    citation = "Doh et al., LP-MusicCaps: LLM-Based Pseudo Music Captioning, ISMIR 2023"
    configs = ("msd", "mtt", "mc")
    files = tuple(f"{split}*.{kind}" for split in _SPLITS for kind in ("parquet", "csv", "jsonl"))
    published: ClassVar = {"msd": {"train": 444865, "valid": 34481, "test": 34631}}

    def read(self, path: Path) -> Iterator[Annotation]:
        split = next((split for split in _SPLITS if path.name.startswith(split)), None)
        if split is None:
            raise UserError(f"{path}: the file's name tells the split: it must begin with {', '.join(_SPLITS)}")
        by_ytid = self.config_name == "mc"
        key = "ytid" if by_ytid else "track_id"
        for where, row in _read_rows(path, (key, *CAPTIONS)):
            clip = text({key: str(row[key])}, key, where)
            start, end = number(row, "start_s", where), number(row, "end_s", where)
            for column in CAPTIONS:
                kind = column.removeprefix("caption_")
                # The language model left some of them empty.
                if row[column] is not None and str(row[column]).strip():
                    yield Annotation(
                        clip=clip,
                        names=clip_names(clip, start, end) if by_ytid else _names(clip, row),
                        question=CAPTION_QUESTION,
                        answer=text(row, column, where),
                        source=f"lp_music_caps/{self.config_name}/{kind}",
                        split=split if kind == "writing" else f"{split}_{kind}",
                        seconds=end - start if by_ytid and start is not None and end is not None else None,
                    )


def _names(clip: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    """A track's audio is called by its id, or by its `path` in the collection it is from."""
    path = row.get("path")
    return (clip, path) if isinstance(path, str) and path.strip() else (clip,)


def _read_rows(path: Path, required: tuple[str, ...]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if path.suffix == ".csv":
        yield from read_csv(path, required)
    elif path.suffix == ".jsonl":
        for where, row in read_jsonl(path):
            require(row, required, where)
            yield where, row
    else:
        yield from _read_parquet(path, required)


def _read_parquet(path: Path, required: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            found = file.schema_arrow.names
            require(found, required, str(path), "column")
            columns = [name for name in (*required, "path", "start_s", "end_s") if name in found]
            number_of_row = 0
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
                for row in batch.to_pylist():
                    yield f"{path}: row {number_of_row}", row
                    number_of_row += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not valid parquet, or cut off ({str(error).splitlines()[0]})") from error

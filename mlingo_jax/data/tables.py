"""Tables that are not read by their header alone: MTG-Jamendo's, FMA's, parquet, and those that `instruct` writes."""

import csv
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from mlingo_jax.data.annotations import read_csv, read_jsonl, require, text
from mlingo_jax.errors import UserError

TAGS_QUESTION = "Which tags describe the music?"
"""The question to which a clip's tags are the answer."""

_JAMENDO = ("TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS")
_CATEGORY = "---"
_ROWS_AT_ONCE = 4096
_FMA_HEADERS = 3


def is_jamendo(path: Path) -> bool:
    """Whether a tsv has MTG-Jamendo's columns."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return tuple(file.readline().rstrip("\n").split("\t")) == _JAMENDO


def read_jamendo(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """MTG-Jamendo's tracks: the tags fill the rest of a line, each as `genre---rock`.

    A track is called by its number (`track_1004048` is 1004048), its audio by its path (`48/1004048.mp3`).
    """
    with path.open(encoding="utf-8") as file:
        next(file)
        for number, line in enumerate(file, 2):
            values = line.rstrip("\n").split("\t")
            where = f"{path}:{number}"
            if len(values) < len(_JAMENDO) or any(_CATEGORY not in tag for tag in values[5:]):
                raise UserError(f"{where}: expected {', '.join(_JAMENDO[:5])} and tags as genre---rock, found {line!r}")
            tags: dict[str, list[str]] = {}
            for category, _, tag in (tag.partition(_CATEGORY) for tag in values[5:]):
                tags.setdefault(category.replace("mood/theme", "mood"), []).append(tag)
            clip = values[0].removeprefix("track_").lstrip("0")
            yield where, {"clip": clip, "audio": values[3], "tags": tags, "collection": "jamendo"}


def is_fma(path: Path) -> bool:
    """Whether a csv is FMA's tracks.csv, which has three lines of header."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline().startswith(",album,")


def read_fma(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """FMA's tracks, with the genres' names of the genres.csv beside it. Raises UserError if that is missing."""
    genres = _fma_genres(path.with_name("genres.csv"))
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        headers = [next(reader) for _ in range(_FMA_HEADERS)]
        columns = [f"{part}.{name}" for part, name in zip(headers[0], headers[1], strict=True)]
        require(columns, ("track.title", "track.genres", "set.split", "artist.name"), str(path), "column")
        for values in reader:
            where = f"{path}:{reader.line_num}"
            if len(values) != len(columns):
                raise UserError(
                    f"{where}: expected {len(columns)} columns, found {len(values)}; the file is cut off here"
                )
            row = dict(zip(columns, values, strict=True))
            yield where, _fma_track(values[0], row, genres, where)


def _fma_track(number: str, row: Mapping[str, str], genres: Mapping[str, str], where: str) -> dict[str, Any]:
    named = [genres.get(code.strip(), "") for code in row["track.genres"].strip("[]").split(",") if code.strip()]
    if "" in named:
        raise UserError(f"{where}: a genre in {row['track.genres']} that genres.csv has not")
    top = row.get("track.genre_top", "")
    tags = {"genre": list(dict.fromkeys(([top] if top else []) + named))}
    if row.get("track.tags", "[]") not in ("", "[]"):
        tags["tags"] = [tag.strip(" '\"") for tag in row["track.tags"].strip("[]").split(",")]
    name = f"{int(number):06d}"
    return {
        "clip": number,
        "audio": f"{name[:3]}/{name}.mp3",
        "tags": {category: found for category, found in tags.items() if found},
        "artist": row["artist.name"],
        "title": row["track.title"],
        "album": row.get("album.title", ""),
        "split": {"training": "train", "validation": "valid"}.get(row["set.split"], row["set.split"]),
        "subset": row.get("set.subset", ""),
        "collection": "fma",
    }


def _fma_genres(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise UserError(f"{path}: is missing; FMA's genres.csv must lie beside its tracks.csv, which has only numbers")
    return {row["genre_id"]: row["title"] for _, row in read_csv(path, ("genre_id", "title"))}


@dataclasses.dataclass(frozen=True)
class MadePair:
    """A line of the manifest that `mlingo_jax.instruct` writes."""

    clip: str
    audio: str
    question: str
    answer: str
    split: str
    kind: str


def read_made(path: Path) -> Iterator[MadePair]:
    """The pairs of a manifest that `mlingo_jax.instruct` wrote. Raises UserError if it is none."""
    names = [field.name for field in dataclasses.fields(MadePair)]
    for where, row in read_jsonl(path):
        yield MadePair(*(text(row, name, where) for name in names))


def read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a parquet file. Raises UserError if it is none, or cut off."""
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    yield f"{path}: row {number}", row
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not valid parquet, or cut off ({str(error).splitlines()[0]})") from error

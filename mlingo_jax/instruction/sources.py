"""What clips are known by: captions and tags, of csv, tsv, json, jsonl and parquet files and of prepared datasets.

A row may come from MusicCaps, LP-MusicCaps, MusicBench, MTG-Jamendo, FMA or anybody's own table: what its columns mean
goes by their names, of which each set has its own.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlingo_jax.data.annotations import (
    CAPTION_QUESTION,
    boolean,
    items,
    rate,
    read_csv,
    read_json,
    read_jsonl,
    require,
)
from mlingo_jax.data.tables import is_fma, is_jamendo, read_fma, read_jamendo, read_parquet
from mlingo_jax.errors import UserError
from mlingo_jax.instruction.pairs import UNSORTED, Source, Split

# The first of these columns that a row has; names are compared in lower case.
_CLIP = ("clip", "ytid", "track_id", "id", "audio", "file", "path", "location", "audio_name")
_AUDIO = ("audio", "file", "location", "audio_name")
_CAPTION = ("caption", "caption_ground_truth", "main_caption", "caption_writing", "description", "text")
_TAGS = ("tags", "tag", "aspect_list", "tag_top188", "tag_top50")
_FACTS = (
    "genre", "subgenre", "bpm", "tempo", "key", "chords", "time_signature", "mood", "instruments", "instrument",
    "instrumentation", "vocals", "language", "structure"
)  # fmt: skip
_PRIVATE = ("artist", "artist_name", "title", "album", "release")
_EVALUATION = ("eval", "test", "valid", "validation", "val", "validated")
_TRAINING = ("train", "training", "pretrain", "finetune")
_YOUTUBE = re.compile(r"^[\w-]{11}$")
_SEPARATORS = re.compile(r"[;|]|,")


def read_sources(source: str, *, data_dir: Path | None = None, fields: Sequence[str] = ()) -> Iterator[Source]:
    """The clips of a file, or of a dataset that was prepared in `data_dir`, in their order.

    fields: further columns to take as facts.

    Raises UserError, naming file and line, for what cannot be read.
    """
    path = Path(source)
    if path.is_file():
        facts = (*_FACTS, *(name.lower() for name in fields))
        for where, row in _rows(path):
            yield _make(row, where, facts)
    elif data_dir is not None:
        yield from _prepared(source, data_dir)
    else:
        raise UserError(
            f"{source}: there is no such file; for a prepared dataset give its name and --data_dir, as "
            "`music_caps --data_dir DATA`"
        )


def read_ids(path: Path) -> Iterator[str]:
    """The ids in a list to exclude.

    It is a text file of an id a line, or a table of clips, of which those that are not for training count. Raises
    UserError as `read_sources`.
    """
    if path.suffix == ".txt":
        try:
            yield from filter(None, (line.strip() for line in path.read_text(encoding="utf-8").splitlines()))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({error})") from error
        return
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of clips to exclude")
    for where, row in _rows(path):
        told = any(row.get(name) for name in ("split", "is_audioset_eval", "is_audioset_eval_mcaps"))
        if not told or _split(row, where) == "eval":
            yield _first(row, _CLIP)


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    split = next((name for name in (*_TRAINING, *_EVALUATION) if path.name.lower().startswith(name)), None)
    named = {} if split is None else {"split": split}
    for where, row in _read(path):
        yield where, named | {name.lower(): value for name, value in row.items()}


def _read(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if path.suffix == ".parquet":
        return read_parquet(path)
    if path.suffix == ".tsv" and is_jamendo(path):
        return read_jamendo(path)
    if path.suffix == ".csv" and is_fma(path):
        return read_fma(path)
    if path.suffix == ".csv":
        return read_csv(path, ())
    if path.suffix == ".jsonl":
        return read_jsonl(path)
    if path.suffix == ".json":
        return _read_json(path)
    raise UserError(f"{path}: expected a csv, tsv, json, jsonl or parquet file")


def _read_json(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The objects of a JSON file.

    A list of them, {"ann": [...]} as the reference implementation's MusicCaps, or JSON lines under this name, as
    MusicBench.
    """
    with path.open("rb") as file:
        first = file.readline().strip()
    if first.startswith(b"{") and first.endswith(b"}"):
        return read_jsonl(path)
    values = read_json(path)
    return items(values.get("ann") if isinstance(values, dict) else values, str(path))


def _make(row: Mapping[str, Any], where: str, facts: Iterable[str]) -> Source:
    clip = _first(row, _CLIP)
    if not clip:
        require(row, ("clip",), where)
        raise UserError(f"{where}: the clip has no name")
    caption, tags = _first(row, _CAPTION), _tags(row)
    found = {name: text for name in facts if (text := _text(row.get(name)))}
    collection = str(row.get("collection") or _guess_collection(row, clip))
    return Source(
        clip=clip,
        audio=_first(row, _AUDIO) or clip,
        caption=caption,
        tags=tags,
        facts=found,
        private=tuple(text for name in _PRIVATE if (text := _text(row.get(name)))),
        split=_split(row, where),
        collection=collection,
        rate=rate(row, where),
    )


def _guess_collection(row: Mapping[str, Any], clip: str) -> str:
    """MusicCaps and what was made of it goes by YouTube's ids."""
    return "youtube" if "ytid" in row or "main_caption" in row or _YOUTUBE.match(clip) else ""


def _tags(row: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """By category: a table of them as it is; a list, or a text that is a list or is separated by , ; or |."""
    name = next((name for name in _TAGS if row.get(name)), None)
    value = None if name is None else row[name]
    if isinstance(value, Mapping):
        return {str(category): _list(tags) for category, tags in value.items() if _list(tags)}
    found = _list(value)
    return {UNSORTED: found} if found else {}


def _list(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            value = value.strip().strip("[]")
    if isinstance(value, str):
        value = _SEPARATORS.split(value)
    return tuple(text for item in value or () if (text := str(item).strip()))


def _split(row: Mapping[str, Any], where: str) -> Split:
    for name in ("is_audioset_eval", "is_audioset_eval_mcaps"):
        if row.get(name) not in (None, ""):
            return "eval" if boolean(row, name, where) else "train"
    split = str(row.get("split") or "train").strip().lower()
    kind = next((k for k in (*_TRAINING, *_EVALUATION) if split == k or split.startswith(f"{k}_")), None)
    if kind is None:
        raise UserError(f'{where}: expected train, eval, valid or test in "split", found {split!r}')
    return "train" if kind in _TRAINING else "eval"


def _first(row: Mapping[str, Any], names: Iterable[str]) -> str:
    return next((text for name in names if (text := _text(row.get(name)))), "")


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else " ".join(str(value).split())


def _prepared(name: str, data_dir: Path) -> Iterator[Source]:
    # Late: it loads TFDS.
    from mlingo_jax.data.prepared import Prepared

    prepared = Prepared(data_dir, name)
    collection = "youtube" if prepared.collection == "music_caps" else ""
    # LP-MusicCaps keeps its other captions of the same clips in splits of their own.
    for split in (
        s for s in prepared.splits if s.partition("_")[2] not in ("summary", "paraphrase", "attribute_prediction")
    ):
        kind: Split = "train" if split in _TRAINING else "eval"
        examples = prepared.examples(split)
        told: dict[str, list[str]] = {}
        for place in range(len(examples)):
            example = examples[place]
            said = example.answer if example.question == CAPTION_QUESTION else f"{example.question} {example.answer}"
            told.setdefault(example.clip, []).append(said)
        for clip, texts in told.items():
            yield Source(clip, clip, caption=" ".join(texts), split=kind, collection=collection)

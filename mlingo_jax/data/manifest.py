"""Anyone's own music: a jsonl, json or csv of audio, question and answer, or of LLaVA-style conversations.

What `prepare manifest` builds a dataset of, and what a run on `data.manifest` reads as it is. A clip is a file:
whatever a manifest calls it (`a.wav`, `./a.wav`, a link), it has one name, the one that it is called first.
"""

import dataclasses
import hashlib
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlingo_jax.data.annotations import items, read_csv, read_json, read_jsonl, text
from mlingo_jax.data.conversations import turns
from mlingo_jax.data.examples import Example, Split
from mlingo_jax.errors import UserError
from mlingo_jax.wording import counted


@dataclasses.dataclass(frozen=True)
class Entry:
    """One question about one clip, as a manifest has it.

    audio: the clip's one name, a path from the manifest. values: the whole line or item; where: of it, for messages.
    """

    audio: str
    question: str
    answer: str
    split: Split | None
    values: Mapping[str, Any]
    where: str


class _Names:
    """The one name of each audio file of a manifest."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._names: dict[str, str] = {}
        self._first: dict[tuple[int, int], str] = {}

    def __getitem__(self, audio: str) -> str:
        if audio not in self._names:
            self._names[audio] = self._find(audio)
        return self._names[audio]

    def _find(self, audio: str) -> str:
        # `..` is left alone: above a linked folder it is not what it looks like.
        root = "/" if audio.startswith("/") else ""
        name = root + "/".join(part for part in audio.split("/") if part not in ("", ".")) or audio
        try:
            status = os.stat(self._folder / name)
        except (OSError, ValueError):
            # Missing, or no path at all: for others to complain of.
            return name
        return self._first.setdefault((status.st_dev, status.st_ino), name)


def read_entries(
    path: Path, *, unmarked: Split | None = None, split_of: dict[str, Entry] | None = None
) -> Iterator[Entry]:
    """Reads a jsonl, a json list or a csv.

    An entry is {"audio", "question", "answer"} or {"audio", "conversations"}, and perhaps "split" ("train" or "eval";
    `unmarked` where nothing is said). Fields that nobody asked for are no harm.

    split_of: the first entry of each clip, where several manifests are read one after the other.

    Raises UserError, naming file and line, for what is not UTF-8, not an object, lacks a field or has one of the wrong
    type, or puts one clip into both splits; for a file that is missing or empty.
    """
    split_of = {} if split_of is None else split_of
    names = _Names(path.parent)
    for where, values in _read_rows(path):
        audio, split = names[text(values, "audio", where)], values.get("split") or unmarked
        if split not in ("train", "eval", None):
            raise UserError(f'{where}: expected "train" or "eval" in "split", found {split!r}')
        if "conversations" in values:
            pairs = turns(values, "conversations", where)
        else:
            question = text(values, "question", where, may_be_blank=True)
            pairs = iter([(question, text(values, "answer", where))])
        for question, answer in pairs:
            entry = Entry(audio, question, answer, split, values, where)
            if split is not None:
                _require_same_split(split_of.setdefault(audio, entry), entry)
            yield entry


def read_manifest(path: str | Path, *, encoded: Container[str] = ()) -> list[Example]:
    """The manifest's examples.

    Audio paths are relative to it; all audio must exist, but that of clips in `encoded`: those whose features are
    cached.

    Raises UserError as `read_entries`, and for audio files that are missing.
    """
    path = Path(path)
    examples = [
        Example(e.audio, path.parent / e.audio, e.question, e.answer, e.split, e.where) for e in read_entries(path)
    ]
    if not examples:
        raise UserError(f"{path}: no examples in it")
    _require_audio(examples, encoded)
    return examples


def split_examples(examples: Sequence[Example], eval_fraction: float) -> tuple[list[Example], list[Example]]:
    """(training, evaluation) examples; all questions about a clip go to one side.

    A clip whose split is not given goes by a hash of its name, so it stays on its side whatever else is in the
    manifest; about `eval_fraction` of such clips are held out (in a small manifest perhaps none).
    """
    given = {example.clip: example.split for example in examples if example.split}
    held_out = [
        given.get(e.clip) == "eval" or (e.clip not in given and _hash(e.clip) < eval_fraction) for e in examples
    ]
    train = [example for example, out in zip(examples, held_out, strict=True) if not out]
    return train, [example for example, out in zip(examples, held_out, strict=True) if out]


def _read_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if path.suffix == ".csv":
        return read_csv(path, ("audio", "question", "answer"))
    if path.suffix == ".json":
        return items(read_json(path), str(path))
    return read_jsonl(path)


def _require_same_split(first: Entry, entry: Entry) -> None:
    if first.split != entry.split:
        raise UserError(
            f"{entry.where}: {entry.audio!r} is in the split {entry.split!r} here and in {first.split!r} at "
            f"{first.where}; a clip belongs to one"
        )


def _require_audio(examples: Sequence[Example], encoded: Container[str]) -> None:
    clips = {example.clip: example for example in reversed(examples) if example.clip not in encoded}
    missing = [e for e in reversed(clips.values()) if isinstance(e.audio, Path) and not os.path.isfile(e.audio)]
    if missing:
        raise UserError(
            f"{missing[0].where}: there is no audio file {missing[0].audio}; "
            f"missing in all: {len(missing)} of {counted(len({e.clip for e in examples}), 'clip')}"
        )


def _hash(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / (1 << 48)

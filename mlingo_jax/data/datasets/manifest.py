"""Anyone's own music: a jsonl, json or csv of audio, question and answer, or of LLaVA-style conversations."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlingo_jax.data.datasets.annotations import Annotation, items, number, rate, read_csv, read_json, read_jsonl, text
from mlingo_jax.data.datasets.conversations import turns
from mlingo_jax.data.datasets.examples import Examples
from mlingo_jax.errors import UserError

_SPLITS = ("train", "eval")


class Manifest(Examples):
    """Config: a name for the collection. A row's `split` is train (also where nothing is said) or eval."""

    name = "manifest"
    homepage = ""
    licence = "its owner's"
    citation = ""
    configs = None
    default_config = "own"
    files = ("*.jsonl", "*.csv", "*.json")

    def read(self, path: Path) -> Iterator[Annotation]:
        split_of: dict[str, str] = {}
        for where, row in _read_rows(path):
            clip, split = text(row, "audio", where), row.get("split") or "train"
            if split not in _SPLITS:
                raise UserError(f'{where}: expected "train" or "eval" in "split", found {split!r}')
            if split_of.setdefault(clip, split) != split:
                raise UserError(f"{where}: {clip!r} is in the split {split} here and in {split_of[clip]} further up")
            near = str((path.parent / clip).resolve())
            if "conversations" in row:
                pairs = turns(row, "conversations", where)
            else:
                pairs = iter([(text(row, "question", where), text(row, "answer", where))])
            for question, answer in pairs:
                yield Annotation(
                    clip=clip,
                    names=(near, clip),
                    question=question,
                    answer=answer,
                    source=self.config_name,
                    split=split,
                    seconds=number(row, "seconds", where),
                    rate=rate(row, where),
                )


def _read_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if path.suffix == ".csv":
        return read_csv(path, ("audio", "question", "answer"))
    if path.suffix == ".json":
        return items(read_json(path), str(path))
    return read_jsonl(path)

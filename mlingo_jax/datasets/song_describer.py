"""Song Describer: 1,106 captions of 706 tracks of MTG-Jamendo, by listeners; to evaluate on (Manco et al., 2023)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from mlingo_jax.data.annotations import (
    CAPTION_QUESTION,
    Annotation,
    boolean,
    number,
    read_csv,
    read_jsonl,
    require,
    text,
)
from mlingo_jax.data.lookup import stem
from mlingo_jax.datasets.examples import Examples
from mlingo_jax.errors import UserError


class SongDescriber(Examples):
    """Captions by listeners of 706 tracks of MTG-Jamendo, to test on.

    The split test, and validated: those of its captions that passed a second listener (csv only).
    """

    name = "song_describer"
    homepage = "https://zenodo.org/records/10072001"
    licence = "CC-BY-SA 4.0 (annotations); the audio has its artists' Creative Commons licences"
    citation = "Manco et al., The Song Describer Dataset, ML for Audio Workshop at NeurIPS 2023"
    files = ("song_describer.csv", "*.jsonl")
    published: ClassVar = {"": {"test": 1106, "validated": 746}}
    published_clips: ClassVar = {"test": 706}

    def read(self, path: Path) -> Iterator[Annotation]:
        yield from _read_cmi_bench(path) if path.suffix == ".jsonl" else _read_published(path)


def _read_published(path: Path) -> Iterator[Annotation]:
    for where, row in read_csv(path, ("track_id", "caption", "is_valid_subset", "path")):
        clip, audio = text(row, "track_id", where), text(row, "path", where)
        # The published audio is the tracks' first two minutes, under this name; `duration` is the whole track's.
        names = (clip, audio, f"{stem(audio)}.2min")
        answer = text(row, "caption", where)
        splits = ("test", "validated") if boolean(row, "is_valid_subset", where) else ("test",)
        for split in splits:
            yield Annotation(clip, names, CAPTION_QUESTION, answer, "song_describer", split)


def _read_cmi_bench(path: Path) -> Iterator[Annotation]:
    for where, row in read_jsonl(path):
        require(row, ("instruction", "output", "audio_path"), where)
        audio = _only(row["audio_path"], "audio_path", where)
        start, end = number(row, "audio_start", where), number(row, "audio_end", where)
        yield Annotation(
            clip=stem(audio).removesuffix(".2min"),
            names=(audio, stem(audio), f"{stem(audio)}.2min"),
            question=text(row, "instruction", where),
            answer=text(row, "output", where),
            source="cmi_bench",
            split=_only(row.get("split", "test"), "split", where),
            seconds=end - start if start is not None and end is not None and end > start else None,
        )


def _only(value: Any, name: str, where: str) -> str:
    """A text, or the one text of a list."""
    values = value if isinstance(value, list) else [value]
    if len(values) != 1:
        raise UserError(f'{where}: expected one text in "{name}", found {len(values)}')
    return text({name: values[0]}, name, where)

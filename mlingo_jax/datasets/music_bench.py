"""MusicBench: MusicCaps' clips, altered, with captions of beats, chords and key too (Melechovsky et al., 2024)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from mlingo_jax.data.annotations import CAPTION_QUESTION, Annotation, boolean, read_jsonl, text
from mlingo_jax.data.overlap import is_listed
from mlingo_jax.datasets.examples import Examples
from mlingo_jax.errors import UserError

_FLAG = "is_audioset_eval_mcaps"
_SPLITS = {"train": "train", "test_a": "test_a", "test_b": "test_b"}


class MusicBench(Examples):
    """MusicCaps' clips and altered ones, captioned with chords, beats, key and tempo.

    Splits train, test_a, test_b by the file's name. Rows of train that alter one of MusicCaps' evaluation clips are in
    a split of their own, music_caps_eval, so that training does not see them.
    """

    name = "music_bench"
    homepage = "https://huggingface.co/datasets/amaai-lab/MusicBench"
    licence = "CC-BY-SA 3.0"
    citation = "Melechovsky et al., Mustango: Toward Controllable Text-to-Music Generation, NAACL 2024"
    files = ("MusicBench_train.json", "MusicBench_test_A.json", "MusicBench_test_B.json")
    published: ClassVar = {}

    def read(self, path: Path) -> Iterator[Annotation]:
        split = _SPLITS.get(path.stem.lower().removeprefix("musicbench_"))
        if split is None:
            raise UserError(f"{path}: the file's name tells the split: expected one of {', '.join(self.files)}")
        for where, row in read_jsonl(path):
            location = text(row, "location", where)
            held_out = split == "train" and _is_evaluation(row, location, where)
            yield Annotation(
                clip=location,
                names=(location,),
                question=CAPTION_QUESTION,
                answer=text(row, "main_caption", where),
                source="music_bench",
                split="music_caps_eval" if held_out else split,
            )


def _is_evaluation(row: dict[str, Any], location: str, where: str) -> bool:
    """By the row's own flag, if it has one, or by the id in the file's name."""
    flagged = row.get(_FLAG) is not None and boolean(row, _FLAG, where)
    return flagged or is_listed("music_caps_eval", "youtube", location)

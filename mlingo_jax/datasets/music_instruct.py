"""MusicInstruct: 60,493 questions and answers about the clips of MusicCaps (Deng et al., 2024)."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from mlingo_jax.data.annotations import Annotation, boolean, items, rate, read_json, require, text
from mlingo_jax.datasets.examples import Examples
from mlingo_jax.datasets.music_caps import SECONDS


class MusicInstruct(Examples):
    """Questions and answers about MusicCaps' clips: short, long, or all of both.

    Splits train and test by `is_audioset_eval`, a boolean or its text.
    """

    name = "music_instruct"
    homepage = "https://huggingface.co/datasets/m-a-p/Music-Instruct"
    licence = "CC-BY-NC 4.0 (annotations); the audio is that of MusicCaps"
    citation = "Deng et al., MusiLingo: Bridging Music and Text with Pre-trained Language Models, NAACL 2024"
    configs = ("all", "short", "long")
    default_config = "all"
    published: ClassVar = {"all": {"": 60493}, "short": {"": 27540}, "long": {"": 32953}}

    def file_names(self) -> tuple[str, ...]:
        return ("music_instruct.json",) if self.config_name == "all" else (f"music_instruct_{self.config_name}.json",)

    def read(self, path: Path) -> Iterator[Annotation]:
        values = read_json(path)
        require(values if isinstance(values, dict) else (), ("QA",), str(path))
        for where, item in items(values["QA"], f"{path}: QA"):
            clip = text(item, "ytid", where)
            yield Annotation(
                clip=clip,
                names=(clip,),
                question=text(item, "question", where),
                answer=text(item, "answer", where),
                source=f"music_instruct/{self.config_name}",
                split="test" if boolean(item, "is_audioset_eval", where) else "train",
                seconds=SECONDS,
                rate=rate(item, where),
            )

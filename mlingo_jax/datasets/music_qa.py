"""MusicQA: questions and answers made of captions and tags (Liu et al., MU-LLaMA, 2024)."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from mlingo_jax.data.annotations import Annotation, items, read_json, text
from mlingo_jax.data.conversations import turns
from mlingo_jax.data.lookup import stem
from mlingo_jax.datasets.examples import Examples
from mlingo_jax.errors import UserError

_SPLITS = {"PretrainMusicQA": "pretrain", "FinetuneMusicQA": "finetune", "EvalMusicQA": "eval"}


class MusicQA(Examples):
    """Questions and answers about clips of three collections, a split of each.

    Splits pretrain (audio of MusicCaps), finetune (MagnaTagATune), eval (MTG-Jamendo), one file each.
    """

    name = "music_qa"
    homepage = "https://huggingface.co/datasets/mu-llama/MusicQA"
    licence = "MIT (annotations)"
    citation = "Liu et al., Music Understanding LLaMA, ICASSP 2024"
    files = tuple(f"{name}.json" for name in _SPLITS)
    published: ClassVar = {"": {"eval": 5040}}
    published_clips: ClassVar = {"eval": 560}

    def read(self, path: Path) -> Iterator[Annotation]:
        if path.stem not in _SPLITS:
            raise UserError(f"{path}: the file's name tells the split: expected one of {', '.join(self.files)}")
        for where, item in items(read_json(path), str(path)):
            audio = text(item, "audio_name", where)
            # The published names have no folders; where there are some, two files of one name are two clips.
            clip = "".join((*audio.rpartition("/")[:2], stem(audio)))
            for question, answer in turns(item, "conversation", where):
                yield Annotation(clip, (audio,), question, answer, "music_qa", _SPLITS[path.stem])

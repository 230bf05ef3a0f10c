"""The demo's corpus: audio files, what is true of each, and questions and answers about them.

Every combination of instrument, register, tempo and mode is played equally often in both splits: the attributes are
balanced, and knowing one tells nothing about another.
"""

import dataclasses
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
from tqdm import tqdm

from mlingo_jax.demo.music import ATTRIBUTES, Piece, compose
from mlingo_jax.demo.synthesis import Sound, play
from mlingo_jax.demo.texts import CAPTION, ask, tell
from mlingo_jax.models.mert_config import SAMPLE_RATE
from mlingo_jax.settings import DemoConfig

Split = Literal["train", "eval"]
FOLDERS: Mapping[Split, str] = {"train": "train", "eval": "held_out"}


@dataclasses.dataclass(frozen=True)
class Clip:
    """An audio file of the corpus and what is true of it; `audio` is relative to the corpus's folder."""

    audio: str
    split: Split
    piece: Piece
    caption: str

    @property
    def truth(self) -> dict[str, str]:
        """The value of every attribute."""
        return dataclasses.asdict(self.piece)


def write_corpus(folder: Path, settings: DemoConfig) -> list[Clip]:
    """Writes the clips as flac, `clips.jsonl` with what is true of each, and `manifest.jsonl` for training."""
    pieces = list(_pieces(settings))
    for name in FOLDERS.values():
        (folder / name).mkdir(parents=True)

    def write(item: tuple[int, tuple[Split, int, Piece]]) -> Clip:
        number, (split, position, piece) = item
        rng = np.random.default_rng([settings.seed, number])
        audio = f"{FOLDERS[split]}/{position:04}.flac"
        # By way of memory: of a full disk libsndfile says that its decoder does not work.
        flac = io.BytesIO()
        soundfile.write(flac, perform(piece, settings.seconds, rng), SAMPLE_RATE, format="FLAC")
        (folder / audio).write_bytes(flac.getvalue())
        return Clip(audio, split, piece, tell(CAPTION, dataclasses.asdict(piece), rng))

    with ThreadPoolExecutor() as pool:
        clips = list(tqdm(pool.map(write, enumerate(pieces)), "clips", len(pieces), disable=None))
    rng = np.random.default_rng([settings.seed, len(clips)])
    _write_lines(folder / "clips.jsonl", ({**dataclasses.asdict(clip), "piece": clip.truth} for clip in clips))
    _write_lines(folder / "manifest.jsonl", (line for clip in clips for line in _examples(clip, rng)))
    return clips


def read_clips(folder: Path) -> list[Clip]:
    """The clips of a corpus that `write_corpus` wrote."""
    lines = (folder / "clips.jsonl").read_text(encoding="utf-8").splitlines()
    return [Clip(**{**values, "piece": Piece(**values["piece"])}) for values in map(json.loads, lines)]


def perform(piece: Piece, seconds: float, rng: np.random.Generator) -> Sound:
    """A piece composed and played: float32 at `SAMPLE_RATE`."""
    return play(piece.instrument, compose(piece, seconds, rng), seconds, rng)


def _pieces(settings: DemoConfig) -> Iterator[tuple[Split, int, Piece]]:
    values = {**ATTRIBUTES, "instrument": ATTRIBUTES["instrument"][: settings.instruments]}
    kinds = [Piece(*combination) for combination in itertools.product(*values.values())]
    takes: dict[Split, int] = {"train": settings.train_takes, "eval": settings.held_out_takes}
    for split, count in takes.items():
        rng = np.random.default_rng([settings.seed, count])
        order = rng.permutation(np.repeat(np.arange(len(kinds)), count))
        for position, kind in enumerate(order):
            yield split, position, kinds[kind]


def _examples(clip: Clip, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """A question about each attribute and a request for a caption, as lines of a manifest."""
    for subject in (*ATTRIBUTES, CAPTION):
        answer = clip.caption if subject == CAPTION else tell(subject, clip.truth, rng)
        yield {"audio": clip.audio, "question": ask(subject, rng), "answer": answer, "split": clip.split}


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

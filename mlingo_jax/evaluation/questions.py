"""What a model is asked: the questions of datasets, manifests and benchmarks, their true answers, and the audio."""

import dataclasses
import io
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import soundfile

from mlingo_jax.data.audio import AudioSettings, measure_audio, read_audio
from mlingo_jax.data.lookup import find_all, stem
from mlingo_jax.data.manifest import read_manifest
from mlingo_jax.data.mixture import parse_wanted
from mlingo_jax.data.prepared import Prepared
from mlingo_jax.data.search import search
from mlingo_jax.data.stored import Audio, StoredAudio
from mlingo_jax.errors import UserError
from mlingo_jax.evaluation.answers import Answer, listed
from mlingo_jax.evaluation.choice_files import is_choices, read_questions
from mlingo_jax.evaluation.choices import Choice
from mlingo_jax.evaluation.cmi_bench import Instruction, is_instructions, read_instructions, task_of
from mlingo_jax.evaluation.joining import of_dataset
from mlingo_jax.wording import counted

T = TypeVar("T")

# MuChoMusic's files of MusicCaps are [ID]-[START-END].wav, those of Song Describer ID.2min.mp3.
_WITH_TIMES = re.compile(r"\[(.+)\]-\[[\d.]+-[\d.]+\]")


@dataclasses.dataclass(frozen=True)
class Questions:
    """What to ask.

    examples: the questions and their true answers. audio: of each clip. choices: of a benchmark of multiple choice, and
    then no examples. caches: folders in which features of the clips may be. task: CMI-Bench's, if it is one of these.
    """

    examples: list[Answer]
    audio: dict[str, Audio]
    choices: list[Choice] = dataclasses.field(default_factory=list)
    caches: list[Path] = dataclasses.field(default_factory=list)
    task: str | None = None


def find_questions(
    wanted: Sequence[str],
    data_dir: Path,
    audio: Path | None = None,
    *,
    most: int = 0,
    orders: int = 3,
    encoded: Container[str] = (),
) -> Questions:
    """The questions of all that is wanted.

    Each is a manifest (its part that is held out, where it says so), a file of CMI-Bench's instructions or of multiple
    choice, or DATASET:SPLIT of prepared datasets.

    Args:
        wanted: as above. data_dir: of the prepared datasets. audio: the folder of the benchmarks' audio.
        most: an even sample of so many questions of each; 0: all. orders: of MuChoMusic's options. encoded: clips of
            manifests whose audio need not be there.

    Raises:
        UserError: something is not there or damaged; audio is missing; or a benchmark is asked together with others.
    """
    parts = [_find(one, data_dir, audio, most, orders, encoded) for one in wanted]
    if len(parts) == 1:
        return parts[0]
    if alone := next((one for one, part in zip(wanted, parts, strict=True) if part.choices or part.task), None):
        raise UserError(f"{alone}: is a benchmark with metrics of its own; evaluate it by itself, in its own --output")
    clips: dict[str, Audio] = {}
    for one, part in zip(wanted, parts, strict=True):
        for clip, found in part.audio.items():
            if isinstance(found, Path) and clips.setdefault(clip, found) != found:
                raise UserError(f"{one}: {clip!r} is {found} here, and {clips[clip]} in what comes before it")
            clips[clip] = found
    caches = dict.fromkeys(cache for part in parts for cache in part.caches)
    return Questions([example for part in parts for example in part.examples], clips, caches=list(caches))


def _find(
    wanted: str, data_dir: Path, audio: Path | None, most: int, orders: int, encoded: Container[str]
) -> Questions:
    path = Path(wanted)
    if not path.is_file():
        if path.suffix in (".jsonl", ".json", ".csv"):
            raise UserError(f"{wanted}: there is no such file")
        return _of_datasets(wanted, data_dir, most)
    if is_instructions(path):
        return _of_instructions(path, audio, most)
    if is_choices(path):
        choices = _sample(read_questions(path, orders), most)
        names = {choice.clip: (choice.audio or choice.clip,) for choice in choices}
        return Questions([], dict(_find_files(path, audio, names)), choices)
    entries = read_manifest(path, encoded=encoded)
    chosen = _sample([entry for entry in entries if entry.split == "eval"] or entries, most)
    examples = [Answer(e.clip, e.question, e.answer, "", path.stem, e.where) for e in chosen]
    return Questions(examples, {entry.clip: entry.audio for entry in chosen})


def _of_datasets(wanted: str, data_dir: Path, most: int) -> Questions:
    examples: list[Answer] = []
    clips: dict[str, Audio] = {}
    for part in parse_wanted(wanted, "--data"):
        prepared = Prepared(data_dir, part.dataset)
        some = _sample(list(of_dataset(data_dir, part.dataset, part.split)), most)
        examples += some
        prefix = f"{prepared.collection}/"
        clips |= {e.clip: prepared.clips.stored(e.clip.removeprefix(prefix)) for e in some}
    return Questions(examples, clips, caches=[data_dir / "features"])


def _of_instructions(path: Path, audio: Path | None, most: int) -> Questions:
    chosen = _sample(list(read_instructions(path)), most)
    if not chosen:
        raise UserError(f"{path}: no question of the test split in it")
    files = _find_files(path, audio, {one.audio: (one.audio.lstrip("/"),) for one in chosen})
    clips: dict[str, Audio] = {}
    examples = []
    for one in chosen:
        whole = one.start <= 0 and one.end is None
        name = one.audio if whole else f"{one.audio} {one.start:g}-{'' if one.end is None else f'{one.end:g}'} s"
        clips[name] = files[one.audio] if whole else _excerpt(name, files[one.audio], one)
        examples.append(dataclasses.replace(one.example, clip=name))
    return Questions(examples, clips, task=task_of(path.name))


def _excerpt(name: str, path: Path, part: Instruction) -> StoredAudio:
    """A part of an audio file as a wav of its own, made when it is read."""

    def read(_: str) -> bytes:
        rate = measure_audio(path).rate
        waveform = read_audio(path, AudioSettings(rate, normalize=False))
        cut = waveform[round(part.start * rate) : None if part.end is None else round(part.end * rate)]
        file = io.BytesIO()
        soundfile.write(file, cut, rate, format="WAV", subtype="FLOAT")
        return file.getvalue()

    return StoredAudio(str(path.parent), name, read)


def _find_files(asked: Path, folder: Path | None, names: Mapping[str, tuple[str, ...]]) -> dict[str, Path]:
    """The audio files of a benchmark's clips. Raises UserError, naming some, if any is missing."""
    if folder is None:
        raise UserError(f"{asked}: is about {counted(len(names), 'clip')}; name the folder of their audio: --audio DIR")
    timed = {found[1]: path for path in search(str(folder)).files if (found := _WITH_TIMES.fullmatch(stem(path)))}
    wanted = {clip: (*given, f"{given[0]}.2min") for clip, given in names.items() if given[0] not in timed}
    found = {clip: Path(timed[given[0]]) for clip, given in names.items() if given[0] in timed}
    found |= {clip: path for clip, path in find_all([folder], wanted).items() if path is not None}
    if missing := [given[0] for clip, given in names.items() if clip not in found]:
        raise UserError(
            f"{folder}: no audio there of {len(missing):,} of {counted(len(names), 'clip')} in {asked}: "
            f"{listed(missing)}"
        )
    return found


def _sample(some: Sequence[T], most: int) -> list[T]:
    """An even sample of so many; 0: all."""
    return [some[i * len(some) // most] for i in range(most)] if 0 < most < len(some) else list(some)

"""CMI-Bench's files (Ma et al. 2025).

Its instructions become questions here, and the results that its evaluator reads are written here.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mlingo_jax.data.annotations import read_jsonl, require
from mlingo_jax.errors import UserError
from mlingo_jax.evaluation.answers import Answer
from mlingo_jax.files import write_atomic

CAPTIONING = ("MusicCaps", "SDD")
TASKS = (
    *CAPTIONING,
    *("GTZAN", "VocalSet_tech", "Nsynth_instrument", "Nsynth_pitch"),
    *("EMO_valence", "EMO_arousal", "GS_key", "DSing", "Guzheng_Tech", "MedleyDB"),
    *("ballroom_beat", "ballroom_downbeat", "gtzan_beat", "gtzan_downbeat"),
    *("MTT", "MTG_genre", "MTG_instrument", "MTG_emotion", "MTG_top50tags"),
)
# What the prepared datasets are called there.
_OURS = {"music_caps": "MusicCaps", "song_describer": "SDD"}


class Instruction(NamedTuple):
    """A question of an instruction file.

    audio: the file's path in the benchmark; start, end: the part that is meant, in s, to the audio's end if that is
    None.
    """

    audio: str
    start: float
    end: float | None
    example: Answer


def task_of(name: str) -> str | None:
    """The task that a file's name ends in, as "musilingo_GS_key.jsonl" or "CMI_SDD.jsonl"; None if in none."""
    stem = Path(name).stem
    return next((task for task in TASKS if stem == task or stem.endswith(f"_{task}")), None)


def is_instructions(path: Path) -> bool:
    """Whether a jsonl file has the fields of CMI-Bench's instructions."""
    if path.suffix != ".jsonl":
        return False
    _, first = next(iter(read_jsonl(path)))
    return {"instruction", "output", "audio_path"} <= first.keys()


def read_instructions(path: Path, split: str = "test") -> Iterator[Instruction]:
    """The questions of an instruction file (data/*/CMI_TASK.jsonl) that are of the split.

    Raises:
        UserError: a line is none of such a file.
    """
    for where, row in read_jsonl(path):
        require(row, ("instruction", "output", "audio_path"), where)
        if split not in _listed(row.get("split") or [split]):
            continue
        audio, output = str(_listed(row["audio_path"])[0]), _listed(row["output"])
        if not output:
            raise UserError(f"{where}: the true answer (output) is empty")
        end = float(row.get("audio_end") or -1)
        example = Answer(audio, row["instruction"], str(output[0]), "", str(row.get("source") or ""), where)
        yield Instruction(audio, float(row.get("audio_start") or 0), end if end >= 0 else None, example)


def export_task(examples: Sequence[Answer], named: str | None) -> str:
    """Which of the benchmark's tasks answers are for: the one named, or that of the dataset they are from.

    Raises:
        UserError: it is none of its tasks.
    """
    sources = {example.source for example in examples}
    task = named or (_OURS.get(sources.pop()) if len(sources) == 1 else None)
    if task not in TASKS:
        raise UserError(
            f"--export cmi_bench: name the task with --task, one of {', '.join(TASKS)}"
            + (f"; found {named!r}" if named else "")
        )
    return task


def export(folder: Path, model: str, task: str, examples: Sequence[Answer]) -> Path:
    """Writes model/results/MODEL/MODEL_TASK.jsonl as CMI-Bench's evaluator expects it: one JSON list, for all its name.

    Returns the file. Raises UserError if it cannot be written.
    """
    path = folder / "model" / "results" / model / f"{model}_{task}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "question": example.question,
            "response": example.answer,
            "correct_answer": example.reference,
            "audioid": example.clip,
            "other": "",
        }
        for example in examples
    ]
    write_atomic(path, [json.dumps(rows, indent=4)])
    return path


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]

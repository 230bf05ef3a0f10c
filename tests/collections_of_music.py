"""Small made-up copies of the datasets, in their real formats, with audio for their clips."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from mlingo_jax.data.datasets.build import Options, build
from mlingo_jax.data.datasets.examples import Examples
from mlingo_jax.data.datasets.report import Report

RATE = 8000

MUSIC_CAPS = [
    {
        "ytid": ytid,
        "start_s": start,
        "end_s": start + 10,
        "audioset_positive_labels": "/m/04rlf,/m/0140xf",
        "aspect_list": "['slow tempo', 'bell']",
        "caption": f'A slow bell, "low"\nand soft: recording {ytid}.',
        "author_id": 4,
        "is_balanced_subset": False,
        "is_audioset_eval": evaluated,
    }
    for ytid, start, evaluated in [
        ("-0Gj8-vB1q4", 30, True),
        ("0_aBcDeFgHi", 0, False),
        ("zzZ-yyY_xx1", 130, False),
        ("Q1w2E3r4T5y", 7, True),
    ]
]


def tone(path: Path, seconds: float = 10.0, *, rate: int = RATE, frequency: float = 440.0) -> Path:
    """Writes a clip in the format that the path's extension names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, 0.4 * np.sin(2 * np.pi * frequency * time), rate)
    return path


def tones(folder: Path, names: Iterable[str], seconds: float = 10.0) -> Path:
    """A clip for each name (with its extension), each of another pitch."""
    for number, name in enumerate(names):
        tone(folder / name, seconds, frequency=200 + 10 * number)
    return folder


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
    return path


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def music_caps(folder: Path) -> tuple[Path, Path]:
    """(annotations, audio) of a MusicCaps with all its clips."""
    audio = tones(folder / "audio", [f"{row['ytid']}.wav" for row in MUSIC_CAPS])
    return write_csv(folder / "musiccaps-public.csv", MUSIC_CAPS), audio


def built(
    dataset: type[Examples],
    annotations: Path,
    audio: Path | str,
    data_dir: Path,
    *,
    config: str | None = None,
    **options: Any,
) -> Report:
    """Builds with the given options."""
    places = audio if isinstance(audio, str) else [audio]
    return build(dataset, [annotations], places, data_dir, config=config, options=Options(**{"workers": 2, **options}))

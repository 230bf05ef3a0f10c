"""Small made-up copies of the datasets, in their real formats, with audio for their clips."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from mlingo_jax.datasets.build import Options, build
from mlingo_jax.datasets.examples import Examples
from mlingo_jax.datasets.fma import FMA
from mlingo_jax.datasets.lp_music_caps import CAPTIONS, LPMusicCaps
from mlingo_jax.datasets.mtg_jamendo import MTGJamendo
from mlingo_jax.datasets.music_bench import MusicBench
from mlingo_jax.datasets.music_caps import MusicCaps
from mlingo_jax.datasets.music_instruct import MusicInstruct
from mlingo_jax.datasets.music_qa import MusicQA
from mlingo_jax.datasets.report import Report

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


def music_instruct_question(ytid: str, evaluated: Any, kind: str) -> dict[str, Any]:
    """An item of MusicInstruct's QA; evaluated is a boolean or its text."""
    answer = {"question": f"{kind} question on {ytid}?", "answer": f"{kind} answer."}
    return {**answer, "ytid": ytid, "is_audioset_eval": evaluated, "sampling_rate": 8000}


def music_qa_question(audio: str, question: str, answer: str) -> dict[str, Any]:
    """An item of a MusicQA file."""
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"audio_name": audio, "conversation": said}


def prepare_all(folder: Path) -> Path:
    """Everything that the configs train on, prepared; its data_dir."""
    data_dir = folder / "data"
    annotations, audio = music_caps(folder / "caps")
    built(MusicCaps, annotations, audio, data_dir)
    ids = [str(row["ytid"]) for row in MUSIC_CAPS]
    for config, kinds in (("short", ["short"]), ("long", ["long"]), ("all", ["short", "long"])):
        file = "music_instruct.json" if config == "all" else f"music_instruct_{config}.json"
        asked = [music_instruct_question(ytid, ytid == ids[0], kind) for ytid in ids[:3] for kind in kinds]
        built(MusicInstruct, write_json(folder / config / file, {"QA": asked}), "music_caps", data_dir, config=config)
    tones(folder / "qa", ["f_1-117-146.mp3", "012542.wav"], 1.0)
    for file, clip in (("FinetuneMusicQA.json", "f_1-117-146.mp3"), ("EvalMusicQA.json", "012542.wav")):
        write_json(folder / "qa" / file, [music_qa_question(clip, q, "A lute.") for q in ("What?", "Who plays?")])
    built(MusicQA, folder / "qa", folder / "qa", data_dir)
    for config, key, clips in (("msd", "track_id", ["TRAAA1", "TRAAA2"]), ("mc", "ytid", ids[:2])):
        for split, clip in zip(("train", "valid" if config == "msd" else "test"), clips, strict=True):
            row = {key: clip, **{name: f"A bell, {name}." for name in CAPTIONS}}
            write_csv(folder / config / f"{split}.csv", [row])
        audio = tones(folder / "msd", [f"{clip}.mp3" for clip in clips], 1.0) if config == "msd" else "music_caps"
        built(LPMusicCaps, folder / config, audio, data_dir, config=config)
    prepare_open(folder / "open", data_dir)
    return data_dir


def made_pair(clip: str, audio: str, split: str = "train") -> dict[str, Any]:
    """A line of the manifest that `mlingo_jax.instruct` writes."""
    pair = {"question": "Please give a caption to the music.", "answer": f"A bell, {clip}.", "split": split}
    return {"audio": audio, **pair, "clip": clip, "task": "writing", "kind": "writing"}


def prepare_open(folder: Path, data_dir: Path) -> None:
    """What config pretrain_open trains on, with a clip of each split."""
    for dataset, clips in (
        (MTGJamendo, {"948": "48/948.mp3", "7948": "48/7948.mp3"}),
        (FMA, {"2": "000/000002.mp3", "134": "000/000134.mp3"}),
    ):
        audio = tones(folder / dataset.name, clips.values(), 1.0)
        manifest = write_jsonl(folder / dataset.name / "manifest.jsonl", [made_pair(*clip) for clip in clips.items()])
        built(dataset, manifest, audio, data_dir, config="captions")
    audio = tones(folder / "bench", ["data_aug2/abcdefghijk_1.wav", "data/abcdefghijk.wav"], 1.0)
    rows = [
        {"location": clip, "main_caption": "A bell."}
        for clip in ("data_aug2/abcdefghijk_1.wav", "data/abcdefghijk.wav")
    ]
    built(MusicBench, write_jsonl(folder / "bench/MusicBench_train.json", rows), audio, data_dir)
    for split in ("train", "valid"):
        row = {"track_id": f"mtt-{split}", **{name: f"A bell, {name}." for name in CAPTIONS}}
        write_csv(folder / "mtt" / f"{split}.csv", [row])
    audio = tones(folder / "mtt", ["mtt-train.mp3", "mtt-valid.mp3"], 1.0)
    built(LPMusicCaps, folder / "mtt", audio, data_dir, config="mtt")


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
    positions = audio if isinstance(audio, str) else [audio]
    return build(
        dataset, [annotations], positions, data_dir, config=config, options=Options(**{"workers": 2, **options})
    )

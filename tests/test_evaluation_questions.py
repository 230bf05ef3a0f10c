"""What a model is asked: benchmarks' questions with their audio, and which clip's music stands in for another's."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, strategies

from mlingo_jax.data.audio import AudioSettings
from mlingo_jax.data.stored import read_clip
from mlingo_jax.errors import UserError
from mlingo_jax.evaluation.questions import find_questions
from mlingo_jax.training.other_clips import others

RATE = 8000


def write_audio(folder: Path, *names: str) -> Path:
    """Ten seconds that rise from -1 to 1, so that a part says where it is from."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, np.linspace(-1, 1, 10 * RATE), RATE, subtype="FLOAT")
    return folder


def instruction(audio: str, **fields: object) -> dict[str, object]:
    return {"instruction": "Which genre?", "output": ["rock"], "audio_path": [audio], "split": ["test"], **fields}


def test_instructions_are_asked_about_the_part_that_they_name(tmp_path):
    audio = write_audio(tmp_path / "audio", "data/a.wav", "data/b.wav")
    lines = [
        instruction("/data/a.wav", audio_start=2.0, audio_end=5.0),
        instruction("/data/b.wav", audio_start=0.0, audio_end=-1),
        instruction("/data/b.wav", split=["train"]),
    ]
    (tmp_path / "CMI_GTZAN.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = find_questions([str(tmp_path / "CMI_GTZAN.jsonl")], tmp_path, audio)
    assert found.task == "GTZAN"
    assert [example.clip for example in found.examples] == ["/data/a.wav 2-5 s", "/data/b.wav"]
    part, whole = (read_clip(clip, AudioSettings(RATE, False), minimum=1) for clip in found.audio.values())
    assert len(part) == 3 * RATE
    assert len(whole) == 10 * RATE
    np.testing.assert_allclose(part, whole[2 * RATE : 5 * RATE], atol=1e-6)


def test_multiple_choice_finds_its_audio_by_the_benchmark_s_names(tmp_path):
    audio = write_audio(tmp_path / "audio", "[-0Gj8-vB1q4]-[30-40].wav", "04/1004034.2min.wav")
    columns = ["dataset_identifier", "question", "correct_answer", *(f"distractor_{i}_answer" for i in (1, 2, 3))]
    rows = [["-0Gj8-vB1q4_0.json", "What?", "a", "b", "c", "d"], ["1004034.json", "What?", "a", "b", "c", "d"]]
    (tmp_path / "muchomusic.csv").write_text("\n".join(map(",".join, [columns, *rows])))
    found = find_questions([str(tmp_path / "muchomusic.csv")], tmp_path, audio, orders=2)
    assert [len(choice.passes) for choice in found.choices] == [2, 2]
    assert [Path(str(clip)).name for clip in found.audio.values()] == ["[-0Gj8-vB1q4]-[30-40].wav", "1004034.2min.wav"]


def test_audio_that_is_missing_is_named(tmp_path):
    (tmp_path / "CMI_SDD.jsonl").write_text(json.dumps(instruction("/data/a.wav")))
    with pytest.raises(UserError, match=r"is about 1 clip; name the folder of their audio: --audio DIR"):
        find_questions([str(tmp_path / "CMI_SDD.jsonl")], tmp_path)
    (tmp_path / "audio").mkdir()
    with pytest.raises(UserError, match=r"audio: no audio there of 1 of 1 clip in .*CMI_SDD.jsonl: 'data/a.wav'"):
        find_questions([str(tmp_path / "CMI_SDD.jsonl")], tmp_path, tmp_path / "audio")


def test_a_benchmark_is_asked_by_itself(tmp_path):
    audio = write_audio(tmp_path / "audio", "data/a.wav", "b.wav")
    (tmp_path / "CMI_SDD.jsonl").write_text(json.dumps(instruction("/data/a.wav")))
    (tmp_path / "own.jsonl").write_text(json.dumps({"audio": "audio/b.wav", "question": "What?", "answer": "A bell."}))
    wanted = [str(tmp_path / name) for name in ("own.jsonl", "CMI_SDD.jsonl")]
    with pytest.raises(UserError, match=r"CMI_SDD.jsonl: is a benchmark with metrics of its own"):
        find_questions(wanted, tmp_path, audio)


@given(strategies.lists(strategies.integers(0, 4), max_size=30))
def test_another_clip_s_music_is_another_clip_s(clips):
    found = others(clips)
    if len(set(clips)) < 2:
        assert found is None
    else:
        assert found is not None
        assert all(clips[other] != clip for clip, other in zip(clips, found, strict=True))

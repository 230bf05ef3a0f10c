"""CMI-Bench: its files read and written, and the metric that it names for each task."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlingo_jax.errors import UserError
from mlingo_jax.evaluate import main
from mlingo_jax.evaluation.answers import Answer
from mlingo_jax.evaluation.cmi_bench import export, export_task, read_instructions, task_of
from mlingo_jax.evaluation.cmi_sequences import read_melody, read_times, technique_frames
from mlingo_jax.evaluation.cmi_tasks import TASK_MEASURES
from mlingo_jax.evaluation.formats import read_file, read_table
from mlingo_jax.evaluation.joining import read_references
from mlingo_jax.evaluation.pairs import pair_up
from mlingo_jax.evaluation.resources import Resources
from mlingo_jax.evaluation.values import value_of


def measure(task: str, rows: list[tuple[str, str]]) -> dict[str, float]:
    """The task's metrics of (true answer, answer) pairs."""
    pairs, positions = pair_up([truth for truth, _ in rows], [[answer for _, answer in rows]])
    statistics = TASK_MEASURES[task][0](pairs, Resources())
    assert tuple(statistics) == TASK_MEASURES[task][1]
    return {name: float(value_of(name)(each[positions[0]].sum(axis=0))) for name, each in statistics.items()}


# The numbers are those of the benchmark's own evaluator for the same rows.
@pytest.mark.parametrize(
    ("task", "rows", "expected"),
    [
        pytest.param(
            "GTZAN",
            [("hip-hop", "Hip hop."), ("rock", "pop rock"), ("pop", "It is pop"), ("jazz", "")],
            {"cmi.accuracy": 0.5, "cmi.exact_label": 0.5},
            id="labels",
        ),
        pytest.param(
            "Nsynth_pitch",
            [("100", "100"), ("10", "10")],
            {"cmi.accuracy": 0.5, "cmi.exact_label": 1.0},
            id="within labels",
        ),
        pytest.param(
            "EMO_valence",
            [("0.1", "7 out of 9"), ("-0.3", "on the 1-9 scale: 2"), ("0.5", "4.5"), ("0.2", "very calm")],
            {"cmi.r2": -6.359401840875509},
            id="ratings",
        ),
        pytest.param(
            "GS_key",
            [
                ("C major", "c major"),
                ("Db minor", "C#m"),
                ("A minor", "C major"),
                ("G major", "D"),
                ("D major", "none, sorry"),
            ],
            {"cmi.key_score": (1 + 1 + 0.3 + 0.5 + 0) / 5},
            id="keys",
        ),
        pytest.param(
            "DSing",
            [("i have 2 dogs", "The lyrics of this song are: I have two dogs!"), ("la la", "la")],
            {"cmi.wer": 0.25, "cmi.cer": 0.3},
            id="lyrics",
        ),
        pytest.param(
            "gtzan_beat",
            [("1.0s,2.0s,3.0s", "1.02s, 2.0s,2.9s"), ("1.0s,2.0s", "none"), ("1.0s,62.0s", "1.0, 1:02")],
            {"cmi.f_measure": (2 / 3 + 0 + 1) / 3, "cmi.cml_t": 2 / 3, "cmi.aml_t": 2 / 3},
            id="beats",
        ),
        pytest.param(
            "Guzheng_Tech",
            [
                ("[('1.0', '2.0', 'Vibrato'), ('5.0', '6.0', 'Plucks')]", "[('1.5', '2.5', 'Vibrato')]"),
                ("[('0.0', '10.0', 'No Tech')]", "I encode none"),
            ],
            {"cmi.micro_f1": 0.5, "cmi.macro_f1": 0.5 / 7},
            id="techniques",
        ),
        pytest.param(
            "MedleyDB",
            [
                ("[(0.0, 60), (1.0, 62), (2.0, '')]", "[(0.0, 'C4'), (1.0, 'D4'), (2.0, '')]"),
                ("[(0.0, 60)]", "a melody"),
            ],
            {"cmi.melody": 0.5},
            id="melodies",
        ),
    ],
)
def test_each_task_has_its_metric(task, rows, expected):
    assert measure(task, rows) == pytest.approx(expected, rel=1e-6)


@given(st.text(alphabet="0123456789.:s,[]()'{} Cbt#"))
def test_lists_in_any_state_are_read_or_not(text):
    assert technique_frames(text).shape == (1000, 7)
    times, melody = read_times(text), read_melody(text)
    assert times is None or (np.diff(times) >= 0).all()
    assert melody is None or (len(melody[0]) == len(melody[1]) and (np.diff(melody[0]) > 0).all())


def test_melodies_in_every_form():
    expected = [60, 69]
    forms = (
        "[(0.5, 60), (1.5, 69)]",
        "[(0.5, 'C4'), (1.5, 'A4')]",
        "[{'time': 0.5, 'MIDI_number': 60}, {'time': 1.5, 'MIDI_number': 69}].",
        "[(0.5, 'C4'), (1.5, 'A4'), (2.5, 'D",
    )
    for text in forms:
        melody = read_melody(text)
        assert melody is not None, text
        times, frequencies = melody
        notes = 69 + 12 * np.log2(frequencies / 440)
        np.testing.assert_allclose(times[:2], [0.5, 1.5])
        np.testing.assert_allclose(notes[:2], expected, err_msg=text)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("musilingo_GS_key.jsonl", "GS_key"),
        ("CMI_SDD.jsonl", "SDD"),
        ("a/ours_gtzan_downbeat.jsonl", "gtzan_downbeat"),
        ("MusicCaps.json", "MusicCaps"),
        ("answers.jsonl", None),
    ],
)
def test_the_task_is_seen_from_the_files_name(name, task):
    assert task_of(name) == task


def instructions(path: Path) -> Path:
    rows = [
        {
            "instruction": "Please provide the description of given song.",
            "input": "<|SOA|><AUDIO><|EOA|>",
            "output": f"A song, number {i}.",
            "split": ["test"] if i < 4 else ["train"],
            "audio_path": [f"data/SDD/audio/{i}.mp3"],
            "audio_start": 0.0,
            "audio_end": 30.0 if i else -1,
            "source": "MTG-SDD",
        }
        for i in range(6)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_instructions_are_questions(tmp_path):
    read = list(read_instructions(instructions(tmp_path / "CMI_SDD.jsonl")))
    assert [(one.audio, one.start, one.end) for one in read[:2]] == [
        ("data/SDD/audio/0.mp3", 0, None),
        ("data/SDD/audio/1.mp3", 0, 30),
    ]
    assert [one.example.reference for one in read] == [f"A song, number {i}." for i in range(4)]
    assert read_references(str(tmp_path / "CMI_SDD.jsonl"), "data") == [one.example for one in read]
    (tmp_path / "broken.jsonl").write_text('{"instruction": "?", "audio_path": ["a"], "output": []}')
    with pytest.raises(UserError, match=r"broken\.jsonl:1: the true answer \(output\) is empty"):
        list(read_instructions(tmp_path / "broken.jsonl"))


def test_answers_go_out_as_the_evaluator_reads_them(tmp_path):
    captions = [
        {"file": f"/music/{i}.mp3", "question": "Please provide the description of given song.", "answer": f"Song {i}"}
        for i in range(4)
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, captions)))
    data = instructions(tmp_path / "CMI_SDD.jsonl")
    files = ["--answers", str(tmp_path / "captions.jsonl"), "--data", str(data), "--output", str(tmp_path / "out")]
    main([*files, "--export", "cmi_bench", "--task", "SDD", "--name", "ours"])
    path = tmp_path / "out" / "cmi_bench" / "model" / "results" / "ours" / "ours_SDD.jsonl"
    rows = json.loads(path.read_text())
    assert rows[2] == {
        "question": "Please provide the description of given song.",
        "response": "Song 2",
        "correct_answer": "A song, number 2.",
        "audioid": "data/SDD/audio/2.mp3",
        "other": "",
    }
    main(["--answers", str(path), "--output", str(tmp_path / "again")])
    reports = [json.loads((tmp_path / folder / "report.json").read_text()) for folder in ("out", "again")]
    assert reports[0]["metrics"] == reports[1]["metrics"]


def test_an_export_needs_its_task():
    ours = [Answer("a", "?", "b", "c", "song_describer")]
    assert export_task(ours, None) == "SDD"
    assert export_task(ours, "GTZAN") == "GTZAN"
    with pytest.raises(UserError, match="name the task with --task, one of MusicCaps, SDD"):
        export_task([Answer("a", "?", "b")], None)
    with pytest.raises(UserError, match="found 'genre'"):
        export_task(ours, "genre")


def test_a_task_is_scored_by_its_own_metric_alone(tmp_path):
    genres = ("rock", "jazz", "disco", "metal")
    examples = [Answer(f"{i}.wav", "Which genre?", genres[i % 4], f"It is {genres[i % 4]}.") for i in range(16)]
    path = export(tmp_path, "ours", "GTZAN", examples)
    assert [answer.answer for answer in read_table(read_file(path))] == [example.answer for example in examples]
    main(["--answers", str(path), "--output", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["metrics"]) == ["cmi.accuracy", "cmi.exact_label"]
    assert report["metrics"]["cmi.accuracy"]["value"] == 1
    assert report["metrics"]["cmi.accuracy"]["shuffled"]["mean"] < 0.4
    assert report["metrics"]["cmi.accuracy"]["constant"]["mean"] == 0.25
    assert report["settings"]["task"] == "GTZAN"

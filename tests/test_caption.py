"""The caption command: real files, real output, on tiny models."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

import mlingo_jax
from mlingo_jax import caption
from mlingo_jax.errors import UserError
from mlingo_jax.inference.answer_file import AnswerFile, key
from tests.tiny import tiny_musilingo

QUESTION = "What plays? – »leise«"
RATE = 24000


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> list[str]:
    """The arguments that choose the model."""
    return [f"--{name}={path}" for name, path in tiny_musilingo(tmp_path_factory.mktemp("model")).items()]


@pytest.fixture(scope="module")
def music(tmp_path_factory) -> Path:
    """Files of several kinds, rates, channels and lengths, in folders; two of them cannot be read."""
    folder = tmp_path_factory.mktemp("music")
    (folder / "deeper" / "down").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, rate, channels, seconds in [
        ("a.wav", 44100, 2, 1.0),
        ("b.FLAC", 16000, 1, 0.4),
        ("deeper/c.ogg", 48000, 2, 0.7),
        ("deeper/down/d.mp3", 22050, 1, 1.3),
        ("deeper/down/é.wav", 24000, 1, 0.2),
    ]:
        audio = rng.normal(0, 0.1, (int(rate * seconds), channels))
        soundfile.write(folder / name, audio, rate, format=name[-3:].upper().replace("LAC", "FLAC"))
    (folder / "broken.wav").write_text("not audio")
    (folder / "deeper" / "short.wav").write_bytes((folder / "a.wav").read_bytes()[:500])
    (folder / "notes.txt").write_text("not audio either")
    (folder / "._a.wav").write_text("a file manager's own")
    return folder


FILES = ["a.wav", "b.FLAC", "broken.wav", "deeper/c.ogg", "deeper/down/d.mp3", "deeper/down/é.wav", "deeper/short.wav"]
SECONDS = {"a.wav": 1.0, "b.FLAC": 0.4, "deeper/c.ogg": 0.7, "deeper/down/d.mp3": 1.3, "deeper/down/é.wav": 0.2}


def run(monkeypatch, *arguments: str | Path, question: str = QUESTION) -> int:
    words = ["caption", *map(str, arguments), "--question", question, "--max_new_tokens=6", "--rows=3"]
    monkeypatch.setattr(sys, "argv", words)
    return caption.main()


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(model, music, tmp_path_factory) -> bytes:
    """The output of a run that nothing disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        output = tmp_path_factory.mktemp("whole") / "out.jsonl"
        assert run(patch, music, *model, "--output", output) == 1
    return output.read_bytes()


def test_each_file_gets_a_line_with_its_answer_or_its_error(model, music, whole):
    found = [json.loads(line) for line in whole.splitlines()]
    assert [line["file"] for line in found] == [str(music / name) for name in FILES]
    chosen = {a.split("=")[0][2:]: a.split("=")[1] for a in model}
    interface = mlingo_jax.load(**chosen, dtype="float32")
    for name, line in zip(FILES, found, strict=True):
        assert line["question"] == QUESTION
        if name in SECONDS:
            assert list(line) == ["file", "question", "answer", "finish_reason", "seconds"]
            assert line["seconds"] == pytest.approx(SECONDS[name], abs=0.08)
            assert line["finish_reason"] in ("stop", "eos", "length")
            assert line["answer"] == interface.answer([line["file"]], QUESTION, max_new_tokens=6)[0]
        else:
            assert list(line) == ["file", "question", "error"]
            assert line["error"].startswith(line["file"])
    assert len({line.get("answer") for line in found}) > 3


def test_a_command_that_is_killed_goes_on_where_it_was(model, music, whole, tmp_path, monkeypatch):
    output = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "mlingo_jax.caption", music, *model, "--output", output, "--question", QUESTION]
    root = Path(__file__).parents[1]
    process = subprocess.Popen([*command, "--max_new_tokens=6", "--rows=1"], cwd=root, stderr=subprocess.PIPE)
    while process.poll() is None and not (output.exists() and output.stat().st_size):
        time.sleep(0.005)
    process.kill()
    process.communicate()
    with output.open("ab") as file:
        file.write(b'{"file": "cut off in the mid')
    assert run(monkeypatch, music, *model, "--output", output) == 1
    assert sorted(output.read_bytes().splitlines()) == sorted(whole.splitlines())
    names = {"out.jsonl", "out.jsonl.settings.json", ".out.jsonl.lock"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_nothing_is_answered_twice_and_errors_are_tried_again(model, music, tmp_path, monkeypatch, capsys):
    output, late = tmp_path / "out.jsonl", tmp_path / "late.wav"
    assert run(monkeypatch, music / "a.wav", late, *model, "--output", output) == 1
    assert [list(line)[-1] for line in lines(output)] == ["seconds", "error"]
    soundfile.write(late, np.zeros(RATE), RATE)
    assert run(monkeypatch, music / "a.wav", late, late, *model, "--output", output) == 0
    assert "2 of 2 files answered, 1 of them before" in capsys.readouterr().err
    assert [line["file"] for line in lines(output)] == [str(music / "a.wav"), str(late)]
    assert all("answer" in line for line in lines(output))
    before = output.read_bytes()
    assert run(monkeypatch, late, *model, "--output", output) == 0
    assert output.read_bytes() == before
    assert run(monkeypatch, late, *model, "--output", output, question="And now?") == 0
    assert len(lines(output)) == 3


def test_other_settings_do_not_mix_with_the_answers_there(model, music, tmp_path, monkeypatch):
    output = tmp_path / "out.jsonl"
    run(monkeypatch, music / "a.wav", *model, "--output", output)
    before = output.read_bytes()
    with pytest.raises(UserError, match=r"other settings: temperature was 0.0 and is 0.5; seed was None and is 3"):
        run(monkeypatch, music / "b.FLAC", *model, "--output", output, "--temperature=0.5", "--seed=3")
    Path(f"{output}.settings.json").unlink()
    with pytest.raises(UserError, match="is missing or broken"):
        run(monkeypatch, music / "b.FLAC", *model, "--output", output)
    assert output.read_bytes() == before


def test_a_file_that_is_not_of_answers_is_left_alone(tmp_path):
    path = tmp_path / "out.jsonl"
    AnswerFile(path, {}, set()).__exit__()
    path.write_text('{"file": "a", "question": "b", "answer": "c"}\n{"name": "someone\'s own"}\n')
    with pytest.raises(UserError, match=r"out.jsonl:2: not an answer"):
        AnswerFile(path, {}, set())
    assert "someone" in path.read_text()


def test_a_full_disk_is_one_line_and_the_answers_stay(tmp_path):
    path = tmp_path / "out.jsonl"
    with AnswerFile(path, {}, set()) as output:
        output.write({"file": "a", "question": "b", "answer": "c"})
    path.unlink()
    path.symlink_to("/dev/full")
    with AnswerFile(path, {}, set()) as output, pytest.raises(UserError, match="No space left on device"):
        output.write({"file": "a", "question": "b", "answer": "c"})


def test_file_names_that_are_not_text_survive(tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    with AnswerFile(tmp_path / "out.jsonl", {}, set()) as output:
        output.write({"file": name, "question": "ü", "answer": "音"})
    assert "ü" in (tmp_path / "out.jsonl").read_text()
    with AnswerFile(tmp_path / "out.jsonl", {}, set()) as output:
        assert output.done == {key(name, "ü")}


def test_without_an_adapter_the_demo_s_is_taken_if_there_is_one(model, music, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no --adapter given, and there is no runs/demo here"):
        run(monkeypatch, music / "a.wav", "--output", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_beams=2", "--temperature=1"], "beam search does not draw"),
        (["--rows=0"], "rows is 0"),
        ([], "no audio file in this folder"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(model, tmp_path, monkeypatch, arguments, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(
        sys,
        "argv",
        ["caption", str(tmp_path / "empty"), "--question=?", f"--output={tmp_path / 'out.jsonl'}", *model, *arguments],
    )
    with pytest.raises(UserError, match=message):
        caption.main()
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize(
    ("given", "drawn"),
    [
        ([], (0.0, None, None)),
        (["--like", "qa"], (0.1, 50, 0.5)),
        (["--like=demo"], (1.0, 50, 0.9)),
        (["--temperature", "0.7", "--like", "qa", "--top_k", "3"], (0.7, 3, 0.5)),
    ],
)
def test_the_original_s_ways_to_draw_have_names(given, drawn, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["caption", "a.wav", "--question", "What?", "--output", "a.jsonl", *given])
    arguments = caption._parse()
    assert (arguments.temperature, arguments.top_k, arguments.top_p) == drawn

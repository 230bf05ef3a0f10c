"""Catalogues: several questions, fields, sections, Parquet, lists; killed and resumed, they are the same."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

import mlingo_jax
from mlingo_jax import caption
from mlingo_jax.captioning.catalogue import jobs
from mlingo_jax.captioning.parquet_file import ParquetAnswers
from mlingo_jax.captioning.plan import FIELDS, Plan
from mlingo_jax.captioning.progress import CatalogueProgress
from mlingo_jax.captioning.pump import Job, Pump
from mlingo_jax.captioning.sections import clock, fitting, sections
from mlingo_jax.captioning.sidecar import text_of, write_sidecar
from mlingo_jax.captioning.tracks import Files, Track
from mlingo_jax.errors import UserError
from mlingo_jax.inference.answer_file import key
from mlingo_jax.inference.answering import in_order
from mlingo_jax.inference.engine import Engine
from mlingo_jax.inference.generate import Options
from tests.tiny import tiny_musilingo

RATE, FILES = 24000, 12
QUESTIONS = ("What plays?", "How fast is it?", "Who?")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> list[str]:
    """The arguments that choose the model."""
    return [f"--{name}={path}" for name, path in tiny_musilingo(tmp_path_factory.mktemp("model")).items()]


@pytest.fixture(scope="module")
def interface(model) -> mlingo_jax.MusiLingo:
    return mlingo_jax.load(**dict(word[2:].split("=") for word in model), dtype="float32")


@pytest.fixture(scope="module")
def music(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("music")
    rng = np.random.default_rng(0)
    for i in range(FILES):
        soundfile.write(folder / f"{i:02d}.wav", rng.normal(0, 0.1, RATE // 5 + 800 * i), RATE)
    (folder / "broken.wav").write_text("not audio")
    return folder


@pytest.fixture(scope="module")
def long_track(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("long") / "long.wav"
    soundfile.write(path, np.random.default_rng(1).normal(0, 0.1, 70 * RATE), RATE)
    return path


def words(model: list[str], *arguments: str | Path) -> list[str]:
    return [*map(str, arguments), *model, "--max_new_tokens=6", "--rows=4"]


def run(model: list[str], *arguments: str | Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["caption", *words(model, *arguments)])
        return caption.main()


def asking(*questions: str) -> list[str]:
    return [f"--question={question}" for question in questions]


def rows(folder: Path) -> list[dict]:
    return ds.dataset(folder).to_table().to_pylist()


def in_file_order(found: list[dict]) -> list[dict]:
    return sorted(found, key=lambda row: (row["file"], row["question"]))


@pytest.fixture(scope="module")
def table(model, music, tmp_path_factory) -> list[dict]:
    """What a run writes that nothing disturbs."""
    output = tmp_path_factory.mktemp("whole") / "out.parquet"
    assert run(model, music, *asking(*QUESTIONS), "--output", output) == 1
    return rows(output)


def test_several_questions_make_a_row_each_and_a_file_is_encoded_once(interface, music, table):
    assert len(table) == len(QUESTIONS) * (FILES + 1)
    assert [row["question"] for row in table[:3]] == list(QUESTIONS)
    failed = [row for row in table if row["error"]]
    assert {row["file"] for row in failed} == {str(music / "broken.wav")}
    assert all(row["answer"] is None for row in failed)
    answered = [row for row in table if not row["error"]][:12]
    found = interface.answer([r["file"] for r in answered], [r["question"] for r in answered], max_new_tokens=6)
    assert [row["answer"] for row in answered] == found


def test_each_track_is_encoded_once_and_each_prefix_read_once(interface, music):
    plan = Plan(QUESTIONS, (("tempo", "Fast?"), ("key", "Which key?")), options=Options(4))
    writer = interface.writer(plan.options, rows=4)
    assert isinstance(writer, Engine)
    tracks = [Track(str(path)) for path in sorted(music.glob("[0-9]*.wav"))]
    pump = Pump(interface, writer, plan)
    found = list(pump.run(Job(i, track, plan.lines) for i, track in enumerate(tracks)))
    assert {result.number for result in found} == set(range(FILES))
    assert writer.counts.prefixes_read == FILES
    assert writer.counts.questions_read == FILES * 5
    assert pump.seconds == pytest.approx(sum(soundfile.info(track.path).duration for track in tracks), abs=0.01)


def test_a_catalogue_that_is_killed_is_the_same_table(model, music, table, tmp_path, kills):
    output, root = tmp_path / "out.parquet", Path(__file__).parents[1]
    command = [sys.executable, "-m", "mlingo_jax.caption"]
    command += words(model, music, *asking(*QUESTIONS), "--output", output)
    chance = random.Random(0)
    for _ in range(kills):
        process = subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE)
        pending = output / "_pending.jsonl"
        while process.poll() is None and not (pending.exists() and pending.stat().st_size):
            time.sleep(0.005)
        time.sleep(chance.random() * 0.05)
        process.kill()
        process.communicate()
    assert run(model, music, *asking(*QUESTIONS), "--output", output) == 1
    assert in_file_order(rows(output)) == in_file_order(table)


def test_a_further_question_asks_that_alone(model, music, table, tmp_path, capsys):
    output = tmp_path / "out.parquet"
    assert run(model, music / "00.wav", *asking(QUESTIONS[0]), "--output", output) == 0
    assert run(model, music / "00.wav", *asking(*QUESTIONS), "--output", output) == 0
    assert run(model, music / "00.wav", *asking(*QUESTIONS), "--output", output) == 0
    assert "1 of 1 file answered, 1 of them before" in capsys.readouterr().err
    assert in_file_order(rows(output)) == in_file_order(table[:3])
    with pytest.raises(UserError, match=r"other settings: temperature was 0.0 and is 0.5"):
        run(model, music / "00.wav", *asking(QUESTIONS[0]), "--output", output, "--temperature=0.5")


def test_errors_are_tried_again_in_parquet_too(tmp_path):
    path, asked = tmp_path / "out.parquet", [key("a", "?"), key("b", "?")]
    with ParquetAnswers(path, {}, asked, rows=2) as output:
        output.write({"file": "a", "question": "?", "answer": "x"}, {"file": "b", "question": "?", "error": "bad"})
        output.write({"file": "c", "question": "?", "error": "not asked again"})
    with ParquetAnswers(path, {}, asked) as output:
        assert output.done == {key("a", "?")}
        output.write({"file": "b", "question": "?", "answer": "y"})
    assert [(row["file"], row["answer"], row["error"]) for row in rows(path)] == [
        ("a", "x", None),
        ("c", None, "not asked again"),
        ("b", "y", None),
    ]


def test_what_is_pending_and_in_a_part_already_is_one_row(tmp_path):
    """Killed between the two: the part is there, and the lines it was made of are too."""
    path = tmp_path / "out.parquet"
    with ParquetAnswers(path, {}, (), rows=2) as output:
        output.write({"file": "a", "question": "?", "answer": "x"})
        pending = (path / "_pending.jsonl").read_bytes()
        output.write({"file": "b", "question": "?", "answer": "y"})
    (path / "_pending.jsonl").write_bytes(pending)
    with ParquetAnswers(path, {}, ()) as output:
        assert output.done == {key("a", "?"), key("b", "?")}
    assert [row["file"] for row in rows(path)] == ["a", "b"]


def test_names_that_are_not_text_are_done_in_parquet_too(tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    asked = []
    for _ in range(2):
        with ParquetAnswers(tmp_path / "out.parquet", {}, ()) as output:
            asked.append(list(jobs(Files([name]), Plan(("?",)), output)))
            for job in asked[-1]:
                output.write({**job.track.columns, "question": "?", "answer": "x"})
    assert list(map(len, asked)) == [1, 0]
    assert len(rows(tmp_path / "out.parquet")) == 1


@pytest.mark.parametrize("kind", ["txt", "parquet"])
def test_files_come_from_a_list_with_ids(model, music, tmp_path, kind):
    listed, output = tmp_path / f"tracks.{kind}", tmp_path / "out.jsonl"
    paths = [os.path.relpath(music / "01.wav", tmp_path), str(music / "00.wav")]
    if kind == "txt":
        listed.write_text("".join(f"id{i}\t{path}\n" for i, path in enumerate(paths)) + "\n")
        extra: list[str] = []
    else:
        pq.write_table(pa.table({"where": paths, "number": [0, 1]}), listed)
        extra = ["--path_column=where", "--id_column=number"]
    assert run(model, "--files", listed, *extra, *asking("Who?"), "--output", output) == 0
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["id"] for line in found] == (["id0", "id1"] if kind == "txt" else ["0", "1"])
    assert [Path(line["file"]).name for line in found] == ["01.wav", "00.wav"]


def test_sections_are_answered_one_by_one_and_summed_up(model, interface, long_track, tmp_path):
    output = tmp_path / "out.jsonl"
    assert run(model, long_track, *asking("Who?"), "--sections=20", "--summary", "--output", output) == 0
    (line,) = [json.loads(line) for line in output.read_text().splitlines()]
    parts = line["sections"]
    assert parts[0]["start"] == 0
    assert parts[-1]["end"] == line["seconds"] == 70
    assert [part["start"] for part in parts[1:]] == [part["end"] for part in parts[:-1]]
    assert len(parts) == 4
    assert line["answer"]
    features = interface.encode([long_track])[0]
    cut = sections(70 * RATE, interface.encoder, 20.0)
    assert [(part.start, part.end) for part in cut] == [(part["start"], part["end"]) for part in parts]
    writer = interface.writer(Options(6), rows=1)
    for part, told in zip(cut, parts, strict=True):
        request = interface.request(features[part.first : part.last], "Who?", Options(6))
        writer.submit(request)
        tokens: list[int] = []
        while writer.busy:
            tokens += [token for news in writer.step() for token in news.tokens]
        assert writer.rule.text(tokens) == told["answer"]


def test_fields_make_one_object_and_what_is_not_likely_is_null(model, music, tmp_path):
    def fields(name: str, *arguments: str) -> dict:
        output = tmp_path / name
        extra = ["--fields=tempo,key", "--field=who=Who plays?", *arguments]
        assert run(model, music / "00.wav", *extra, "--output", output) == 0
        found = [json.loads(line) for line in output.read_text().splitlines()]
        assert [line["question"] for line in found] == [FIELDS]
        return found[0]["fields"]

    told = fields("all.jsonl")
    assert list(told) == ["tempo", "key", "who"]
    likely = [value["likelihood"] for value in told.values()]
    assert all(0 < p <= 1 for p in likely)
    kept = fields("some.jsonl", f"--least_likely={max(likely)}")
    assert [value is None for value in kept.values()] == [p < max(likely) for p in likely]


def test_sidecars_stand_beside_the_files_and_replace_nothing_unasked(model, tmp_path, capsys):
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", np.random.default_rng(2).normal(0, 0.1, RATE), RATE)
    (tmp_path / "b.txt").write_text("somebody's own")
    output = tmp_path / "out.jsonl"
    assert run(model, tmp_path, *asking("Who?"), "--sidecar", "--output", output) == 0
    assert "1 other text file left alone" in capsys.readouterr().err
    line = json.loads(output.read_text().splitlines()[0])
    assert (tmp_path / "a.txt").read_text() == line["answer"] + "\n"
    assert (tmp_path / "b.txt").read_text() == "somebody's own"


def test_a_sidecar_holds_answers_and_fields(tmp_path):
    part = {"start": 0.0, "end": 61.0, "answer": "So."}
    lines = [
        {"file": str(tmp_path / "a.wav"), "question": "Who?", "answer": "A bell."},
        {"file": str(tmp_path / "a.wav"), "question": "Why?", "sections": [part]},
        {"file": str(tmp_path / "a.wav"), "question": FIELDS, "fields": {"key": None, "tempo": {"answer": "slow"}}},
    ]
    assert text_of(lines) == "Who?\nA bell.\n\nWhy?\n0:00-1:01: So.\n\ntempo: slow\n"
    assert text_of(lines[:1]) == "A bell.\n"
    assert write_sidecar(lines, overwrite=False)
    assert write_sidecar(lines, overwrite=False)
    assert not write_sidecar(lines[:1], overwrite=False)
    assert write_sidecar(lines[:1], overwrite=True)
    assert (tmp_path / "a.txt").read_text() == "A bell.\n"


def test_a_few_bad_files_are_no_failure_if_that_is_said(model, music, tmp_path):
    arguments = [music / "00.wav", music / "broken.wav", *asking("Who?"), "--output", tmp_path / "out.jsonl"]
    assert run(model, *arguments, "--max_bad_fraction=0.4") == 1
    assert run(model, *arguments, "--max_bad_fraction=0.5") == 0
    assert "error" in (tmp_path / "out.jsonl").read_text()


@given(st.permutations(range(30)), st.integers(1, 30))
def test_lines_are_in_order_unless_one_is_very_late(order, most):
    found = list(in_order(((number, number) for number in order), most))
    assert sorted(found) == list(range(30))
    assert list(in_order((number, number) for number in order)) == list(range(30))
    if most == 30:
        assert found == list(range(30))


@given(st.integers(RATE, 200 * RATE), st.floats(1, 90))
def test_sections_are_the_whole_track(interface, samples, seconds):
    found = sections(samples, interface.encoder, seconds)
    assert found[0].first == 0
    assert found[-1].last == interface.encoder.tokens(samples)
    assert [part.first for part in found[1:]] == [part.last for part in found[:-1]]
    assert all(part.first < part.last and part.start < part.end for part in found)
    assert found[-1].end == pytest.approx(samples / RATE, abs=1e-3)


@given(st.lists(st.text("ab", max_size=9), min_size=1), st.integers(1, 30))
def test_texts_are_put_together_as_far_as_they_fit(texts, most):
    groups = fitting(texts, lambda some: sum(map(len, some)), most)
    assert [text for group in groups for text in group] == texts
    assert all(sum(map(len, group)) <= most or len(group) <= 2 for group in groups)
    assert all(len(group) >= 2 for group in groups[:-1])


def test_without_a_terminal_there_is_a_line_now_and_then(capsys):
    with CatalogueProgress(10, 2, shown=True, line_every=0.0) as progress:
        progress.file(12.5, 0.83, failed=False)
        progress.file(20.0, 0.83, failed=True)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert told[1].startswith("4 of 10 files: ")
    assert "audio-s/s, 83 % of rows busy, 1 error, " in told[1]
    assert told[1].endswith(" left")
    assert clock(75.3) == "1:15"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.wav"], "is nothing; expected something to ask"),
        (["--question=?"], "give audio files or folders, or a list of them with --files: one of the two"),
        (["x.wav", "--fields=shoes"], "no question is known for 'shoes', only for genre, tempo"),
        (["x.wav", "--field=shoes"], "expected NAME=QUESTION"),
        (["x.wav", "--question=?", "--sections=0"], "sections is 0.0; expected seconds above 0"),
        (["x.wav", "--question=?", "--summary"], "summary is given; expected --sections with it"),
        (["x.wav", "--question=?", "--max_bad_fraction=2"], "max_bad_fraction is 2.0; expected from 0 to 1"),
        (["x.wav", "--fields=key", "--num_beams=2"], "beams tell no likelihood"),
        (["--files=nowhere.txt", "--question=?"], "nowhere.txt: cannot be read as a list of files"),
        (["--files=nowhere.parquet", "--question=?"], "nowhere.parquet: cannot be read as a list of files"),
        (["x.wav", "--questions=nowhere.txt"], "nowhere.txt: cannot be read as questions"),
    ],
)
def test_wrong_arguments_are_refused_before_a_model_is_loaded(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        run([], *arguments, "--output", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_list_without_the_column_or_without_files_is_refused(tmp_path):
    listed = tmp_path / "tracks.parquet"
    pq.write_table(pa.table({"where": ["a.wav"]}), listed)
    with pytest.raises(UserError, match=r"no column 'path'; it has where: give --path_column"):
        run([], "--files", listed, *asking("?"), "--output", tmp_path / "out.jsonl")
    (tmp_path / "none.txt").write_text("\n\n")
    with pytest.raises(UserError, match=r"none.txt: names no file"):
        run([], "--files", tmp_path / "none.txt", *asking("?"), "--output", tmp_path / "out.jsonl")

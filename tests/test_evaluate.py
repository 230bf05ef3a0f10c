"""The evaluate command: files of every format in, a whole report out, and one clear line for each mistake."""

import csv
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nltk
import pytest

from mlingo_jax.errors import UserError
from mlingo_jax.evaluate import main
from mlingo_jax.evaluation.answers import Answer, write_answers
from mlingo_jax.evaluation.formats import read_file, read_table
from mlingo_jax.evaluation.meteor import load_wordnet
from mlingo_jax.evaluation.resources import Resources
from mlingo_jax.evaluation.scoring import score
from tests.wordnet import write_wordnet

ROOT = Path(__file__).parents[1]
SYSTEM = [sys.executable, "-W", "error", "-m", "mlingo_jax.evaluate"]
INSTRUMENTS = ("guitar", "piano", "violin", "drum", "flute", "harp")


@pytest.fixture(autouse=True, scope="module")
def no_wordnet_of_this_machines() -> Iterator[None]:
    """What nltk finds depends on the tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.data, "path", [])
        load_wordnet.cache_clear()
        yield
    load_wordnet.cache_clear()


def evaluate(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


def rows(count: int = 24, listens: bool = True) -> list[dict[str, str]]:
    """Answers in CMI-Bench's form; of a system that listens, the right instrument."""
    dice = random.Random(0)
    made = []
    for i in range(count):
        true = INSTRUMENTS[i % 6]
        said = true if listens else dice.choice(INSTRUMENTS)
        answer = f"A {said} plays a quick tune."
        reference = f"The {true} plays a fast melody, number {i}."
        made.append(
            {
                "question": "What plays?",
                "response": answer,
                "correct_answer": reference,
                "audioid": f"../test/{i}.wav",
                "other": "",
            }
        )
    return made


@pytest.fixture(scope="module")
def nltk_data(tmp_path_factory) -> Path:
    return write_wordnet(tmp_path_factory.mktemp("nltk"))


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("answers") / "ours_MusicCaps.jsonl"
    path.write_text(json.dumps(rows(), indent=4))
    return path


@pytest.fixture(scope="module")
def output(tmp_path_factory, answers, nltk_data) -> Path:
    folder = tmp_path_factory.mktemp("output") / "ours"
    evaluate("--answers", answers, "--output", folder, "--nltk_data", nltk_data)
    return folder


def read_report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_the_report_keeps_its_contract(output):
    report = read_report(output)
    assert report["counts"] == {"examples": 24, "clips": 24, "questions": 1, "empty_answers": 0, "duplicates": 0}
    assert set(report["missing"]) == {"paper.bert_score", "standard.bert_score"}
    assert list(report["metrics"]) == [
        *("paper.bleu", "paper.bleu4", "paper.meteor", "paper.rouge_l"),
        *("standard.bleu1", "standard.bleu2", "standard.bleu3", "standard.bleu4"),
        *("standard.meteor", "standard.rouge_l", "standard.cider_d"),
    ]
    for name, entry in report["metrics"].items():
        low, high = entry["interval"]
        assert 0 <= low <= entry["value"] + 1e-9, name
        assert entry["value"] - 1e-9 <= high <= (10 if name == "standard.cider_d" else 1), name
        assert set(entry["shuffled"]) == {"mean", "deviation"}
        assert entry["gap"]["value"] == pytest.approx(entry["value"] - entry["shuffled"]["mean"])
        assert entry["gap"]["interval"][0] > 0, "it listens"
    assert report["settings"]["name"] == "ours_MusicCaps"


def test_the_page_has_no_score_without_its_floor(output):
    page = (output / "report.md").read_text(encoding="utf-8")
    tables = [line for line in page.splitlines() if line.startswith("| metric")]
    assert len(tables) == 2
    assert all("shuffled" in line and "gap" in line for line in tables)
    for needed in ("## Missing", "bert_score", "## The best answers", "## The worst answers", "## Settings"):
        assert needed in page
    for picture in ("scores.png", "gaps.png"):
        assert (output / picture).read_bytes().startswith(b"\x89PNG")
        assert f"({picture})" in page


def test_the_kept_answers_score_the_same(output, tmp_path, nltk_data):
    evaluate("--answers", output / "answers.jsonl", "--output", tmp_path, "--nltk_data", nltk_data)
    assert read_report(tmp_path)["metrics"] == read_report(output)["metrics"]


def test_again_only_what_is_missing_is_done(output, answers, nltk_data):
    before = read_report(output)
    kept = output / "statistics" / "paper.bleu.npz"
    written, damaged = kept.stat().st_mtime_ns, output / "statistics" / "standard.cider_d.npz"
    damaged.write_bytes(damaged.read_bytes()[:100])
    evaluate("--answers", answers, "--output", output, "--nltk_data", nltk_data)
    assert read_report(output) == before
    assert kept.stat().st_mtime_ns == written


def test_another_systems_statistics_are_not_taken(output, tmp_path):
    examples = read_table(read_file(output / "answers.jsonl"))
    score(examples, Resources(), tmp_path)
    changed = [*examples[:-1], Answer(**{**vars(examples[-1]), "answer": "else"})]
    first = (tmp_path / "paper.bleu.npz").read_bytes()
    score(changed, Resources(), tmp_path)
    assert (tmp_path / "paper.bleu.npz").read_bytes() != first


def test_killed_at_any_moment_the_report_is_the_same(output, answers, nltk_data, tmp_path, kills):
    command = [*SYSTEM, "--answers", str(answers), "--output", str(tmp_path), "--nltk_data", str(nltk_data)]
    dice = random.Random(kills)
    for _ in range(kills):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(dice.uniform(2, 8))
            process.kill()
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert read_report(tmp_path) == read_report(output)


def test_question_types_and_sources_have_their_rows(tmp_path):
    made = [Answer(f"{i}", "Describe the audio", f"a {i} song", f"a {i} song", "MusicQA") for i in range(12)]
    made += [Answer(f"{i}", f"Is it number {i}?", f"yes, {i}", "yes", "MusicQA") for i in range(12)]
    made += [Answer(f"c{i}", "What key?", f"key {i}", "key", "MusicInstruct") for i in range(6)]
    write_answers(tmp_path / "answers.jsonl", made)
    evaluate("--answers", tmp_path / "answers.jsonl", "--output", tmp_path / "out")
    report = read_report(tmp_path / "out")
    counts = {name: part["counts"]["examples"] for name, part in report["by_question"].items()}
    assert counts == {"Describe the audio": 12, "other questions": 12, "What key?": 6}
    assert {name: part["counts"]["clips"] for name, part in report["by_source"].items()} == {
        "MusicQA": 12,
        "MusicInstruct": 6,
    }
    described = report["by_question"]["Describe the audio"]["metrics"]["standard.rouge_l"]
    assert described["value"] == 1
    assert described["shuffled"]["mean"] == pytest.approx(2 / 3)


def test_answers_of_caption_are_joined_with_a_manifest(tmp_path):
    manifest = [
        {"audio": f"music/{i}.wav", "question": "What plays?", "answer": f"A {name}.", "split": "eval"}
        for i, name in enumerate(INSTRUMENTS)
    ]
    manifest.append({"audio": "music/train.wav", "question": "What plays?", "answer": "A horn.", "split": "train"})
    (tmp_path / "music.jsonl").write_text("\n".join(map(json.dumps, manifest)))
    captions = [
        {
            "file": f"/elsewhere/music/{i}.wav",
            "question": "What plays?",
            "answer": f"A {name}.",
            "finish_reason": "stop",
        }
        for i, name in enumerate(INSTRUMENTS)
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, captions[::-1])))
    data = ("--answers", tmp_path / "captions.jsonl", "--data", tmp_path / "music.jsonl")
    training = ("--training", tmp_path / "music.jsonl")
    evaluate(*data, *training, "--output", tmp_path / "out")
    report = read_report(tmp_path / "out")
    assert report["counts"]["examples"] == 6
    assert report["metrics"]["standard.rouge_l"]["value"] == 1
    assert set(report["metrics"]["standard.rouge_l"]["training"]) == {"mean", "deviation"}
    # One of them is missing.
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, captions[1:])))
    with pytest.raises(UserError, match=r"1 of 6 questions have no answer, about '.*music/0\.wav'"):
        evaluate(*data, "--output", tmp_path / "less")
    evaluate(*data, "--output", tmp_path / "less", "--partial")
    assert read_report(tmp_path / "less")["counts"]["examples"] == 5


@pytest.mark.parametrize("form", ["csv", "json", "jsonl"])
def test_a_table_is_read_whatever_its_form(tmp_path, form):
    table = [{"id": f"c{i}", "prediction": "a song", "reference": "the song"} for i in range(3)]
    path = tmp_path / f"answers.{form}"
    if form == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    else:
        path.write_text(json.dumps(table) if form == "json" else "\n".join(map(json.dumps, table)))
    assert read_table(read_file(path)) == [Answer(f"c{i}", "", "the song", "a song") for i in range(3)]


def test_an_even_sample_is_scored(answers, tmp_path):
    evaluate("--answers", answers, "--output", tmp_path, "--most", 8)
    kept = [json.loads(line)["clip"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert kept == [f"../test/{i}.wav" for i in range(0, 24, 3)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param("", "answers.jsonl: the file is empty", id="empty"),
        pytest.param('{"a": 1}', "answers.jsonl:1: not answers of a known format: found the fields a;", id="strange"),
        pytest.param('{"reference": "a"', "answers.jsonl:1: not JSON, or cut off", id="cut off"),
        pytest.param(
            '{"file": "a.wav", "question": "?", "answer": "b"}',
            "has no true answers; name where they are",
            id="captions",
        ),
        pytest.param('{"reference": "a", "answer": "b"}', "1 of 1 answers are about one clip", id="one clip"),
        pytest.param(
            '{"clip": "x", "reference": "a", "answer": "b"}\n{"clip": "x", "reference": "a", "answer": "c"}\n'
            '{"clip": "y", "reference": "a", "answer": "b"}\n{"clip": "z", "reference": "a", "answer": "b"}',
            "answers.jsonl:2: the question '' about 'x' is answered here and, differently, at",
            id="answered twice",
        ),
        pytest.param('{"reference": "a", "answer": {}}', "expected a text in 'answer', found dict", id="no text"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, content, said):
    path = tmp_path / "answers.jsonl"
    path.write_text(content)
    with pytest.raises(UserError) as raised:
        evaluate("--answers", path, "--output", tmp_path / "out")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out" / "report.json").exists()


def test_empty_answers_are_counted_and_scored_as_they_are(tmp_path):
    made = rows(6)
    made[2]["response"] = made[4]["response"] = " "
    (tmp_path / "answers.json").write_text(json.dumps(made))
    evaluate("--answers", tmp_path / "answers.json", "--output", tmp_path / "out")
    report = read_report(tmp_path / "out")
    assert report["counts"]["empty_answers"] == 2
    assert "6 answers about 6 clips, 2 of them empty" in (tmp_path / "out" / "report.md").read_text()


@pytest.fixture(scope="module")
def guessing(tmp_path_factory, nltk_data) -> Path:
    """An evaluation of a system that guesses."""
    folder = tmp_path_factory.mktemp("guessing")
    (folder / "guesses.json").write_text(json.dumps(rows(listens=False)[2:]))
    evaluate("--answers", folder / "guesses.json", "--output", folder / "out", "--nltk_data", nltk_data)
    return folder / "out"


def test_systems_are_compared_on_what_they_share(output, guessing, tmp_path, capsys):
    main(["compare", str(output), str(guessing), "--output", str(tmp_path)])
    comparison = json.loads((tmp_path / "comparison.json").read_text())
    assert comparison["counts"] == {"examples": 22, "clips": 22}
    assert comparison["of"] == {"ours_MusicCaps": 24, "guesses": 22}
    entry = comparison["metrics"]["standard.rouge_l"]
    (difference,) = entry["differences"]
    better, worse = (entry["systems"][name]["value"] for name in comparison["of"])
    assert difference["score"]["value"] == pytest.approx(better - worse)
    assert 0 < difference["score"]["interval"][0] < difference["score"]["value"] < difference["score"]["interval"][1]
    assert difference["score"]["chance"] < 0.05
    page = (tmp_path / "comparison.md").read_text()
    assert "ours_MusicCaps - guesses" in page
    assert page in capsys.readouterr().out


def test_a_system_does_not_differ_from_itself(output, tmp_path):
    main(["compare", str(output), str(output), "--output", str(tmp_path)])
    comparison = json.loads((tmp_path / "comparison.json").read_text())
    assert list(comparison["of"]) == ["ours_MusicCaps (1)", "ours_MusicCaps (2)"]
    for entry in comparison["metrics"].values():
        assert entry["differences"][0]["score"] == {"value": 0, "interval": [0, 0], "chance": 1}


def test_what_cannot_be_compared_is_said(output, tmp_path):
    with pytest.raises(UserError, match="no finished evaluation there"):
        main(["compare", str(output), str(tmp_path)])
    with pytest.raises(UserError, match="nothing to compare it with"):
        main(["compare", str(output)])
    (tmp_path / "others.json").write_text(
        json.dumps([{"clip": str(i), "answer": "a", "reference": "b"} for i in range(3)])
    )
    evaluate("--answers", tmp_path / "others.json", "--output", tmp_path / "others")
    with pytest.raises(UserError, match="have no question with the same clip and true answer in common"):
        main(["compare", str(output), str(tmp_path / "others")])

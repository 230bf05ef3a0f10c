"""The evaluate command with a model: what it is asked, what it costs, and that nothing is computed twice."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import mlingo_jax
from mlingo_jax.errors import UserError
from mlingo_jax.evaluate import main
from mlingo_jax.evaluation import answering, likelihoods
from mlingo_jax.evaluation.kept import Kept
from mlingo_jax.training import music
from tests.tiny import tiny_musilingo

QUESTIONS = ("What plays?", "How fast is it?")
CLIPS = 6


def write_model(folder: Path, seed: int = 0) -> list[str]:
    """The arguments that choose a small model."""
    paths = tiny_musilingo(folder, seed)
    return [str(paths["adapter"]), f"--mert={paths['mert']}", f"--llm={paths['llm']}"]


def write_manifest(folder: Path) -> Path:
    """Six clips, each asked two questions."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(CLIPS):
        soundfile.write(folder / f"{i}.wav", rng.normal(0, 0.1, 9000 + 500 * i), 24000)
        answers = (f"A bell, number {i}.", "Fast." if i % 2 else "It is slow.")
        lines += [
            {"audio": f"{i}.wav", "question": question, "answer": answer, "split": "eval"}
            for question, answer in zip(QUESTIONS, answers, strict=True)
        ]
    (folder / "music.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "music.jsonl"


def evaluate(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


def read_report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> list[str]:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    return write_manifest(tmp_path_factory.mktemp("music"))


LISTENING = ("--measures", "nll,retrieval", "--candidates", 4)


@pytest.fixture(scope="module")
def output(tmp_path_factory, model, manifest) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    evaluate(*model, "--data", manifest, "--output", folder, *LISTENING)
    return folder


def test_likelihoods_are_those_that_the_interface_gives(output, model, manifest):
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    adapter, mert, llm = model[0], *(argument.partition("=")[2] for argument in model[1:])
    loaded = mlingo_jax.load(mert=mert, llm=llm, adapter=adapter, dtype="float32")
    files = [manifest.parent / row["audio"] for row in rows]
    scores = loaded.score(files, [row["question"] for row in rows], [row["answer"] for row in rows])
    own = read_report(output)["metrics"]["nll.own"]
    assert own["value"] == pytest.approx(-np.concatenate(scores).mean(), rel=1e-5)
    assert own["gap"]["value"] == pytest.approx(own["value"] - own["shuffled"]["mean"])


def test_the_report_has_each_music_and_each_direction(output):
    metrics = read_report(output)["metrics"]
    assert list(metrics) == [
        *("nll.own", "nll.other", "nll.silence", "nll.none"),
        *("retrieval.answer", "retrieval.answer_pmi", "retrieval.clip"),
    ]
    for name in ("nll.other", "nll.silence", "nll.none"):
        above = metrics[name]["above_own"]
        assert above["value"] == pytest.approx(metrics[name]["value"] - metrics["nll.own"]["value"])
        assert above["interval"][0] <= above["value"] <= above["interval"][1]
    for name in ("retrieval.answer", "retrieval.clip"):
        assert metrics[name]["chance"] == {"mean": 0.25, "deviation": 0.0}
        assert 0 <= metrics[name]["value"] <= 1
    page = (output / "report.md").read_text()
    assert "| its own clip | **" in page
    assert "likeliest of 4" in page


def test_nothing_is_computed_twice(output, model, manifest, monkeypatch):
    before = (output / "report.json").read_bytes()
    monkeypatch.setattr(likelihoods, "answer_log_probs", lambda *_, **__: pytest.fail("computed again"))
    evaluate(*model, "--data", manifest, "--output", output, *LISTENING)
    assert (output / "report.json").read_bytes() == before


def test_another_models_likelihoods_are_not_taken(output, manifest, tmp_path):
    shutil.copy(output / "likelihoods.jsonl", tmp_path)
    other = write_model(tmp_path / "model", seed=1)
    evaluate(*other, "--data", manifest, "--output", tmp_path, *LISTENING)
    first, second = (read_report(folder)["metrics"]["nll.own"]["value"] for folder in (output, tmp_path))
    assert abs(first - second) > 1e-3


def test_with_cached_features_no_encoder_is_loaded(output, model, manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(music, "load_encoder", lambda *_: pytest.fail("loaded"))
    cache = output / "features"
    evaluate(*model, "--data", manifest, "--features", cache, "--output", tmp_path, *LISTENING)
    assert not (tmp_path / "features").exists()
    assert read_report(tmp_path)["metrics"] == read_report(output)["metrics"]


def test_a_part_that_is_cut_off_is_computed_again(output, model, manifest, tmp_path):
    whole = (output / "likelihoods.jsonl").read_bytes()
    (tmp_path / "likelihoods.jsonl").write_bytes(whole[: len(whole) // 2])
    evaluate(*model, "--data", manifest, "--features", output / "features", "--output", tmp_path, *LISTENING)
    found, expected = (read_report(folder)["metrics"] for folder in (tmp_path, output))
    for name, entry in expected.items():
        assert found[name]["value"] == pytest.approx(entry["value"], rel=1e-5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model, manifest, output) -> Path:
    """An evaluation with answers."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copy(output / "likelihoods.jsonl", folder)
    evaluate(*model, "--data", manifest, "--features", output / "features", "--output", folder, *WHOLE)
    return folder


WHOLE = ("--candidates", 4, "--max_new_tokens", 8)


def test_the_answers_are_those_that_the_interface_gives(whole, model, manifest):
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    adapter, mert, llm = model[0], *(argument.partition("=")[2] for argument in model[1:])
    loaded = mlingo_jax.load(mert=mert, llm=llm, adapter=adapter, dtype="float32")
    files = [manifest.parent / row["audio"] for row in rows]
    expected = loaded.answer(files, [row["question"] for row in rows], max_new_tokens=8)
    written = [json.loads(line) for line in (whole / "answers.jsonl").read_text().splitlines()]
    assert [line["answer"] for line in written] == expected
    assert [line["reference"] for line in written] == [row["answer"] for row in rows]
    report = read_report(whole)
    assert {"paper.bleu", "standard.bleu4", "nll.own", "retrieval.clip"} <= set(report["metrics"])
    assert report["settings"]["decoding"]["max_new_tokens"] == 8


def test_no_question_is_asked_twice(whole, output, model, manifest, monkeypatch):
    before = (whole / "report.json").read_bytes()
    monkeypatch.setattr(answering, "open_writer", lambda *_, **__: pytest.fail("asked again"))
    evaluate(*model, "--data", manifest, "--features", output / "features", "--output", whole, *WHOLE)
    assert (whole / "report.json").read_bytes() == before


def test_stopped_at_any_moment_the_report_is_the_same(whole, output, model, manifest, tmp_path, monkeypatch):
    command = (*model, "--data", manifest, "--features", output / "features", "--output", tmp_path, *WHOLE)
    add, left = Kept.add, [20]

    def interrupted(self: Kept, key: str, values: Mapping[str, Any]) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        add(self, key, values)

    monkeypatch.setattr(Kept, "add", interrupted)
    # The last of these stops while answers are written.
    for more in (20, 15, 30):
        left[0] = more
        with pytest.raises(KeyboardInterrupt):
            evaluate(*command)
    monkeypatch.undo()
    evaluate(*command)
    assert (tmp_path / "answers.jsonl").read_bytes() == (whole / "answers.jsonl").read_bytes()
    found, expected = (read_report(folder)["metrics"] for folder in (tmp_path, whole))
    assert {n: e["value"] for n, e in found.items()} == pytest.approx({n: e["value"] for n, e in expected.items()})


def test_multiple_choice_is_asked_with_and_without_music(model, manifest, output, tmp_path):
    rows = [
        {
            "id": i,
            "audio_id": f"{i}.wav",
            "question": "What plays?",
            "choices": ["a bell", "a drum"],
            "answer": "a bell",
        }
        for i in range(CLIPS)
    ]
    (tmp_path / "choices.json").write_text(json.dumps(rows))
    cache, audio = output / "features", manifest.parent
    folders = ("--features", cache, "--audio", audio, "--output", tmp_path / "out")
    evaluate(*model, "--data", tmp_path / "choices.json", *folders, "--max_new_tokens", 4)
    metrics = read_report(tmp_path / "out")["metrics"]
    assert set(metrics["choice.likelihood"]) >= {"value", "shuffled", "none", "longest", "chance"}
    assert set(metrics["choice.text"]) >= {"value", "shuffled", "none", "other", "chance"}
    assert {"choice.likelihood_per_token", "choice.likelihood_corrected"} <= set(metrics)


def test_too_few_clips_for_retrieval_are_told(model, manifest, output, tmp_path):
    options = ("--measures", "retrieval", "--candidates", CLIPS + 1)
    evaluate(*model, "--data", manifest, "--features", output / "features", "--output", tmp_path, *options)
    assert "is asked about 7 clips" in read_report(tmp_path)["missing"]["retrieval.answer"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a RUN to be asked, or answers that exist"),
        (["RUN"], "RUN: name what to ask it, with --data"),
        (["RUN", "--answers", "a.jsonl"], "one of the two"),
        (["RUN", "--data", "x.jsonl"], "x.jsonl: there is no such file"),
        (["RUN", "--data", "a:b", "--measures", "nll,bleu"], "--measures: expected some of .* found 'bleu'"),
        (["RUN", "--data", "a:b", "--features", "nowhere"], "nowhere: no feature cache there"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        evaluate(*arguments, "--output", tmp_path)
    assert "\n" not in str(error.value)

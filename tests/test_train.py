"""The train command on tiny towers and real audio files: a whole run, what it leaves, what is refused."""

import contextlib
import json
import os
import pty
import re
import subprocess
import termios
from pathlib import Path

import numpy as np
import pytest

import mlingo_jax
from mlingo_jax.errors import UserError
from mlingo_jax.files import exclusive_lock
from mlingo_jax.runs.checkpoints import load_run_adapter, restore
from mlingo_jax.training.loop import train
from mlingo_jax.training.record import read_metrics
from mlingo_jax.training.run import check_run
from mlingo_jax.training.setup import set_up
from mlingo_jax.training.sharding import make_mesh
from tests.tiny import tiny_llama, tiny_mert
from tests.tiny_run import ROOT, STEPS, WINDOW, as_config, command, make_corpus, quick_environment, settings


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    return quick_environment(tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="module")
def finished(corpus, environment, tmp_path_factory) -> tuple[Path, str]:
    """The folder of a run left alone, and what it showed on a terminal."""
    workdir = tmp_path_factory.mktemp("runs") / "alone"
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (30, 140))
    values = settings(corpus, workdir) | {"log.eval_answers": 4}
    process = subprocess.Popen(command(values), cwd=ROOT, env=environment, stderr=end)
    os.close(end)
    shown = b""
    # Reading a terminal whose other end was closed is an error, and means that the process has ended.
    with contextlib.suppress(OSError):
        while part := os.read(terminal, 1 << 16):
            shown += part
    os.close(terminal)
    assert process.wait() == 0, shown.decode()
    return workdir, shown.decode()


def test_a_run_leaves_its_folder(finished, corpus):
    workdir, _ = finished
    names = {path.name for path in workdir.iterdir()}
    files = {"config.json", "run.json", "metrics.jsonl", "loss.png", ".lock"}
    assert names == files | {"checkpoints", "features", "tensorboard"}
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["100", "120"]
    assert (workdir / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert any(path.stat().st_size > 10_000 for path in (workdir / "tensorboard").iterdir())
    assert json.loads((workdir / "config.json").read_text())["optim"]["lr"] == 0.02
    run = json.loads((workdir / "run.json").read_text())
    assert run["llm"]["folder"] == str(corpus / "llm")
    assert set(run["mert"]["identity"]) == {"name", "config", "weights", "dtype", "rounded"}
    assert run["data"]["train"] == 9
    assert run["data"]["eval"] == 3
    assert run["frames_per_token"] == WINDOW
    assert set(run["versions"]) >= {"mlingo_jax", "python", "jax", "jaxlib", "backend", "orbax-checkpoint", "soxr"}
    assert len(run["adapter"]) == len(run["data"]["fingerprint"]) == 64
    assert run["seed"] == 42
    assert set(run) >= {"commit", "devices", "flags", "prompt"}


def test_every_step_is_recorded_once_and_the_loss_falls(finished):
    records = read_metrics(finished[0])
    steps = [r for r in records if "loss" in r]
    assert [r["step"] for r in steps] == list(range(1, STEPS + 1))
    assert list(steps[0])[:3] == ["step", "loss", "tokens"]
    evaluations = [(r["step"], r["eval_loss"]) for r in records if "eval_loss" in r]
    assert [step for step, _ in evaluations] == [40, 80, 120]
    assert evaluations[-1][1] < steps[0]["loss"] - 0.5
    assert all((r["update_norm"] > 0) == (r["step"] % 3 == 0) for r in steps)
    assert steps[9]["learning_rate"] < steps[10]["learning_rate"] > steps[-1]["learning_rate"]


def test_the_terminal_shows_a_bar_and_what_is_trained(finished):
    shown = finished[1]
    for text in ("trained adapter             800 parameters, float32", "frozen  llm              36,000 parameters"):
        assert text in shown
    for text in ("120/120", "loss ", "lr ", "examples/s", "audio-s/s", "held-out loss", "towers are unchanged: llm"):
        assert text in shown
    assert "Warning" not in shown


def test_the_result_answers_and_scores_as_it_was_evaluated(finished, corpus):
    workdir, _ = finished
    model = mlingo_jax.load(adapter=workdir, dtype="float32")
    lines = [json.loads(line) for line in (corpus / "music.jsonl").read_text().splitlines()]
    held_out = [line for line in lines if line["split"] == "eval"]
    clips = [corpus / line["audio"] for line in held_out]
    scores = model.score(clips, "What plays?", [line["answer"] for line in held_out])
    evaluation = read_metrics(workdir)[-1]
    own = -np.concatenate(scores).mean()
    assert own == pytest.approx(evaluation["eval_loss"], rel=1e-5)

    scores = model.score([*clips[1:], clips[0]], "What plays?", [line["answer"] for line in held_out])
    assert evaluation["listening"] == pytest.approx(own + np.concatenate(scores).mean(), rel=1e-3, abs=1e-5)
    answers = model.answer(clips, "What plays?", max_new_tokens=160)
    assert [one["answer"] for one in evaluation["answers"]] == answers
    assert [one["reference"] for one in evaluation["answers"]] == [line["answer"] for line in held_out]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim.lr": 0.01}, r"holds another run: config\.optim\.lr was 0\.02, is 0\.01"),
        ({"seed": 1, "steps": 5}, r"config\.seed was 42, is 1; config\.steps was 120, is 5"),
        ({"data.manifest": ""}, r"config\.data\.manifest is empty"),
        ({"llm.path": "llm2"}, r"llm\.identity\.weights was '\w+', is '\w+'"),
        ({"mert.path": "mert2"}, r"holds another run: mert\.identity\.weights was '\w+', is '\w+'"),
        ({"llm.quantization": "int8"}, r"config\.llm\.quantization was 'none', is 'int8'"),
        ({"data.manifest": "other.jsonl"}, r"data\.fingerprint was '\w+', is '\w+'"),
    ],
)
def test_another_run_is_refused_and_the_folder_stays_as_it_is(finished, corpus, changes, message):
    workdir, _ = finished
    tiny_llama(corpus / "llm2", seed=5)
    tiny_mert(corpus / "mert2", seed=5)
    (corpus / "other.jsonl").write_text((corpus / "music.jsonl").read_text().replace("bell", "drum"))
    changes = {n: corpus / v if v and n.endswith(("path", "manifest")) else v for n, v in changes.items()}
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=message) as error:
        train(as_config(settings(corpus, workdir) | changes))
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def test_a_run_is_that_of_its_quantisation(finished, corpus, tmp_path):
    """By the tower's identity, whatever its config.json says."""
    workdir, _ = finished
    values = settings(corpus, tmp_path) | {"llm.quantization": "int4", "data.features": workdir / "features"}
    config = as_config(values)
    with pytest.raises(UserError, match=r"llm\.identity\.quantization was 'none', is 'int4'"):
        check_run(workdir, set_up(config, make_mesh(config.mesh)).run)


def test_a_folder_in_which_another_process_trains_is_left_alone(finished, corpus):
    workdir, _ = finished
    with exclusive_lock(workdir / ".lock", "busy"), pytest.raises(UserError, match="another process is training in it"):
        train(as_config(settings(corpus, workdir)))


def test_rows_longer_than_the_language_model_was_made_for_are_told(finished, corpus, tmp_path):
    llm = tiny_llama(tmp_path / "llm", max_position_embeddings=16)
    values = settings(corpus, tmp_path) | {"llm.path": llm, "data.features": finished[0] / "features"}
    config = as_config(values)
    notes = set_up(config, make_mesh(config.mesh)).notes
    assert any(re.match(r"rows of up to \d+ tokens are longer than the 16 that", note) for note in notes)


def test_a_batch_that_the_mesh_cannot_split(corpus, tmp_path):
    with pytest.raises(UserError, match=r"mesh: fsdp 3 times tensor 1 does not make up the number of devices, 1"):
        train(as_config(settings(corpus, tmp_path) | {"mesh.fsdp": 3}))


def test_audio_may_be_heard_in_the_step_and_the_adapter_go_on_from_another(finished, corpus, tmp_path):
    values = settings(corpus, tmp_path / "encoded") | {
        "steps": 2,
        "data.encode_in_step": True,
        "data.crop_seconds": 1.0,
    }
    config = as_config(values | {"adapter.start": finished[0], "accumulate": 1})
    train(config)
    first = read_metrics(config.workdir)[0]["loss"]
    assert first < read_metrics(finished[0])[0]["loss"] - 0.5
    assert set(json.loads((Path(config.workdir) / "run.json").read_text())["mert"]["identity"]) >= {"weights"}
    assert not (Path(config.workdir) / "features").exists()
    saved = restore(config.workdir)
    assert saved is not None
    assert saved.step == 2


def test_weights_of_the_hidden_states_may_be_learned(corpus, tmp_path):
    values = settings(corpus, tmp_path) | {"steps": 3, "adapter.layer_weights": True, "log.eval_every": 0}
    train(as_config(values))
    adapter, _ = load_run_adapter(tmp_path)
    assert adapter["layer_weights"].shape == (3,)
    assert np.all(adapter["layer_weights"] != 0)
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3, 3]

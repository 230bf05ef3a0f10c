"""The train door on tiny towers and real audio files: a whole run, kill -9 and resume, what is refused."""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

import mlingo_jax
from configs.base import Config
from mlingo_jax.data.lock import alone
from mlingo_jax.errors import UserError
from mlingo_jax.training.checkpoint import load_run_adapter, restore
from mlingo_jax.training.loop import train
from mlingo_jax.training.record import read_metrics
from tests.tiny import tiny_llama, tiny_mert

STEPS, WINDOW = 120, 20
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Towers, twelve clips of different lengths, and a manifest."""
    folder = tmp_path_factory.mktemp("corpus")
    tiny_mert(folder / "mert")
    tiny_llama(folder / "llm")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(12):
        soundfile.write(folder / f"{i}.wav", rng.normal(0, 0.1, int(24000 * (0.3 + 0.05 * i))), 24000)
        split = "eval" if i % 4 == 0 else "train"
        lines.append({"audio": f"{i}.wav", "question": "What plays?", "answer": f"A bell, number {i}.", "split": split})
    (folder / "music.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def settings(corpus: Path, workdir: Path) -> dict[str, object]:
    return {
        "workdir": workdir,
        "steps": STEPS,
        "batch_size": 4,
        "accumulate": 3,
        "mert.path": corpus / "mert",
        "mert.dtype": "float32",
        "mert.window": WINDOW,
        "llm.path": corpus / "llm",
        "llm.dtype": "float32",
        "data.manifest": corpus / "music.jsonl",
        "optim.lr": 0.02,
        "optim.min_lr": 0.001,
        "optim.warmup_steps": 10,
        "optim.epoch_steps": 0,
        "checkpoint.every": 20,
        "checkpoint.keep": 2,
        "log.eval_every": 40,
        "log.print_every": 10,
    }


def command(values: dict[str, object]) -> list[str]:
    flags = [f"--config.{name}={value}" for name, value in values.items()]
    return [sys.executable, "-W", "error", "-m", "mlingo_jax.train", "--config=base", *flags]


def as_config(values: dict[str, object]) -> Config:
    config = Config()
    for name, value in values.items():
        *parents, last = name.split(".")
        owner = config
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, last, str(value) if isinstance(value, Path) else value)
    return config


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """Programs are compiled lightly and shared among the processes: most of a tiny run is compiling."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("programs")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    return {**os.environ, **cache}


@pytest.fixture(scope="module")
def finished(corpus, environment, tmp_path_factory) -> tuple[Path, str]:
    """The folder of a run left alone, and what it showed on a terminal."""
    workdir = tmp_path_factory.mktemp("runs") / "alone"
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (30, 140))
    process = subprocess.Popen(command(settings(corpus, workdir)), cwd=ROOT, env=environment, stderr=end)
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
    assert set(run["mert"]["identity"]) == {"name", "config", "weights", "dtype"}
    assert run["data"]["train"] == 9
    assert run["data"]["eval"] == 3
    assert run["window"] == WINDOW
    assert run["versions"]["jax"]


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
    assert -np.concatenate(scores).mean() == pytest.approx(read_metrics(workdir)[-1]["eval_loss"], rel=1e-5)


def wait_and_kill(process: subprocess.Popen, moment: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not moment():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_run_that_is_killed_goes_on_as_if_nothing_had_been(finished, corpus, environment, tmp_path):
    """kill -9 before the first checkpoint, between two, and while one is being written; then audio and encoder go."""
    workdir, own = tmp_path / "killed", tmp_path / "corpus"
    shutil.copytree(corpus, own)
    values = settings(own, workdir)

    def recorded(number: int) -> Callable[[], bool]:
        path = workdir / "metrics.jsonl"
        return lambda: path.exists() and path.read_bytes().count(b"\n") >= number

    def writing(step: int) -> Callable[[], bool]:
        return lambda: any((workdir / "checkpoints").glob(f"{step}.*"))

    for moment in (recorded(7), recorded(55), writing(80)):
        with subprocess.Popen(command(values), cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
            wait_and_kill(process, moment)
        assert not (workdir / "loss.png").exists()
    for file in [*own.glob("*.wav"), *(own / "mert").iterdir()]:
        file.unlink()
    values["mert.path"] = ""
    done = subprocess.run(command(values), cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search("going on after step (60|80) of 120", done.stderr)
    assert "step 120/120: loss" in done.stderr
    assert (workdir / "metrics.jsonl").read_bytes() == (finished[0] / "metrics.jsonl").read_bytes()
    ours, theirs = (load_run_adapter(folder)[0]["projection"]["kernel"] for folder in (workdir, finished[0]))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim.lr": 0.01}, r"holds another run: config\.optim\.lr was 0\.02, is 0\.01"),
        ({"seed": 1, "steps": 5}, r"config\.seed was 42, is 1; config\.steps was 120, is 5"),
        ({"data.manifest": ""}, r"config\.data\.manifest is empty"),
        ({"llm.path": "llm2"}, r"llm\.identity\.weights was '\w+', is '\w+'"),
        ({"mert.path": "mert2"}, r"holds another run: mert\.identity\.weights was '\w+', is '\w+'"),
        ({"data.manifest": "other.jsonl"}, r"data\.fingerprint was '\w+', is '\w+'"),
    ],
)
def test_another_run_is_refused_and_the_folder_stays_as_it_is(finished, corpus, changes, message):
    workdir, _ = finished
    tiny_llama(corpus / "llm2", seed=5)
    tiny_mert(corpus / "mert2", seed=5)
    (corpus / "other.jsonl").write_text((corpus / "music.jsonl").read_text().replace("bell", "drum"))
    changes = {name: corpus / value if value and isinstance(value, str) else value for name, value in changes.items()}
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=message) as error:
        train(as_config(settings(corpus, workdir) | changes))
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def test_a_folder_in_which_another_process_trains_is_left_alone(finished, corpus):
    workdir, _ = finished
    with alone(workdir / ".lock", "busy"), pytest.raises(UserError, match="another process is training in it"):
        train(as_config(settings(corpus, workdir)))


def test_a_batch_that_the_mesh_cannot_split(corpus, tmp_path):
    with pytest.raises(UserError, match=r"mesh: fsdp 3 times tensor 1 does not make up the 1 devices"):
        train(as_config(settings(corpus, tmp_path) | {"mesh.fsdp": 3}))


def test_audio_may_be_heard_in_the_step_and_the_adapter_go_on_from_another(finished, corpus, tmp_path):
    values = settings(corpus, tmp_path / "heard") | {"steps": 2, "data.hear_in_step": True, "data.crop_seconds": 1.0}
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
    values = settings(corpus, tmp_path) | {"steps": 3, "adapter.learn_states": True, "log.eval_every": 0}
    train(as_config(values))
    adapter, _ = load_run_adapter(tmp_path)
    assert adapter["state_logits"].shape == (3,)
    assert np.all(adapter["state_logits"] != 0)
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3, 3]


def test_numbers_that_are_not_finite_stop_the_run(corpus, tmp_path):
    values = settings(corpus, tmp_path) | {"steps": 20, "optim.lr": 1e30, "optim.warmup_steps": 0, "accumulate": 1}
    with pytest.raises(UserError, match=r"step \d+: \w+ is (nan|inf), .*so the run stops"):
        train(as_config(values))
    assert restore(tmp_path) is None

"""A run that is killed, stopped, moved elsewhere or fed with what is no number resumes as if nothing had been."""

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from mlingo_jax.errors import Stopped, UserError
from mlingo_jax.runs.checkpoints import load_run_adapter, restore
from mlingo_jax.training.loop import train
from mlingo_jax.training.preemption import PreemptionHandler
from mlingo_jax.training.profile import profiled_steps
from mlingo_jax.training.record import read_metrics
from tests.tiny_run import ROOT, STEPS, as_config, command, make_corpus, quick_environment, settings
from tests.two_processes import start_two

# The most a scheduler waits between its notice and kill -9, in seconds.
PATIENCE = 30


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def keep_programs(folder: str | None, least_seconds: float) -> None:
    """Where this process keeps what it compiles, and how long that has to have taken."""
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)
    reset_cache()


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Of the processes; this one shares their programs."""
    programs = tmp_path_factory.mktemp("programs")
    before = jax.config.values["jax_compilation_cache_dir"]
    least = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    keep_programs(str(programs), 0.0)
    yield quick_environment(programs)
    keep_programs(before, least)


@pytest.fixture(scope="module")
def alone(corpus, environment, tmp_path_factory) -> Path:
    """The folder of a run that was left alone."""
    workdir = tmp_path_factory.mktemp("runs") / "alone"
    train(as_config(settings(corpus, workdir)))
    return workdir


def steps(workdir: Path) -> int:
    """How many have been recorded."""
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b'"loss": ') if path.exists() else 0


def send(process: int, number: signal.Signals, moment: Callable[[], bool]) -> None:
    """Sends a signal when the moment has come; gives up after five minutes."""
    deadline = time.monotonic() + 300
    while not moment() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process, number)


def stop(values: dict[str, object], number: signal.Signals, after: int) -> int:
    """Trains in this process, and stops it by a signal when so many steps are recorded; gives the last one's number."""
    workdir = Path(str(values["workdir"]))
    thread = threading.Thread(target=send, args=(os.getpid(), number, lambda: steps(workdir) >= after))
    thread.start()
    with pytest.raises(Stopped, match=rf"stopped by {number.name} and saved after step \d+ of 120") as stopped:
        train(as_config(values))
    thread.join()
    assert stopped.value.number == number
    saved = restore(workdir)
    assert saved
    assert saved.step >= after
    return saved.step


def assert_same(workdir: Path, alone: Path) -> None:
    """The records byte by byte, the checkpoints number by number."""
    assert (workdir / "metrics.jsonl").read_bytes() == (alone / "metrics.jsonl").read_bytes()
    kept = [sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in (workdir, alone)]
    assert kept[0] == kept[1]
    ours, theirs = (restore(folder) for folder in (workdir, alone))
    assert ours
    assert theirs
    assert (ours.step, ours.data, ours.watch) == (theirs.step, theirs.data, theirs.watch)
    jax.tree.map(np.testing.assert_array_equal, (ours.trained, ours.optimizer), (theirs.trained, theirs.optimizer))


def test_sigterm_saves_and_stops_and_the_same_command_goes_on(alone, corpus, environment, tmp_path):
    values = settings(corpus, tmp_path)
    with subprocess.Popen(command(values), cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        send(process.pid, signal.SIGTERM, lambda: steps(tmp_path) >= 33)
        since = time.monotonic()
        # Whoever is impatient asks twice.
        process.send_signal(signal.SIGTERM)
        shown = process.communicate()[1]
    assert process.returncode == 128 + signal.SIGTERM, shown
    assert time.monotonic() - since < PATIENCE
    last = shown.splitlines()[-1]
    step = re.fullmatch(rf"{tmp_path}: stopped by SIGTERM and saved after step (\d+) of 120; the same command .*", last)
    assert step
    saved = restore(tmp_path)
    assert saved
    assert saved.step == int(step[1]) >= 33
    stop(values, signal.SIGINT, after=64)
    stop(values, signal.SIGUSR1, after=90)
    train(as_config(values))
    assert_same(tmp_path, alone)


def test_an_evaluation_that_a_stop_cut_short_is_made_up_for(alone, corpus, tmp_path, monkeypatch):
    asked = iter([None] * 40 + [signal.SIGTERM] * 2)
    with monkeypatch.context() as patched:
        # The 40 steps ask; then the evaluation after step 40.
        patched.setattr(PreemptionHandler, "asked", lambda _: next(asked))
        with pytest.raises(Stopped, match="saved after step 40"):
            train(as_config(settings(corpus, tmp_path)))
    assert "eval_loss" not in read_metrics(tmp_path)[-1]
    # Made up for once: not again by a run that resumes from a checkpoint after it.
    stop(settings(corpus, tmp_path), signal.SIGTERM, after=42)
    train(as_config(settings(corpus, tmp_path)))
    assert_same(tmp_path, alone)


def test_a_run_that_is_killed_goes_on_as_if_nothing_had_been(alone, corpus, environment, kills, tmp_path):
    """kill -9 at random moments: while a checkpoint is written, after so many records, and before the first step."""
    workdir, own = tmp_path / "killed", tmp_path / "corpus"
    shutil.copytree(corpus, own)
    values = settings(own, workdir)
    rng = np.random.default_rng(kills)

    def writing() -> bool:
        return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))

    for number in range(kills):
        kind = ("writing", "record", "early")[number % 3]
        # Later with every kill, so that the run gets on.
        after = int(rng.integers(STEPS * number // kills, STEPS * (number + 1) // kills))
        early = time.monotonic() + rng.uniform(1, 6)
        moments = {
            "writing": lambda after=after: steps(workdir) >= min(after, STEPS - 20) and writing(),
            "record": lambda after=after: steps(workdir) >= after,
            "early": lambda early=early: time.monotonic() > early,
        }
        with subprocess.Popen(command(values), cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
            send(process.pid, signal.SIGKILL, moments[kind])
            assert process.wait() == -signal.SIGKILL
        assert not (workdir / "loss.png").exists()
    # Every clip has been encoded by now, or is encoded here.
    train(as_config(values))
    assert_same(workdir, alone)


def test_two_processes_stop_together_and_another_mesh_goes_on_with_the_same_examples(
    alone, corpus, environment, tmp_path
):
    """Begun on two processes, one of which is asked to stop; it resumes in one, with eight devices: rows, width and
    heads are split in two each."""
    values = settings(corpus, tmp_path)
    processes = start_two(command(values), environment)
    send(processes[1].pid, signal.SIGTERM, lambda: steps(tmp_path) >= 35)
    shown = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [128 + signal.SIGTERM] * 2, shown
    saved = restore(tmp_path)
    assert saved
    last = saved.step
    assert 35 <= last < STEPS
    assert all(f"stopped by SIGTERM and saved after step {last} of 120" in text for text in shown)
    mesh = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
    eight = {**environment, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(command(values | mesh), cwd=ROOT, env=eight, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "devices was 2 x cpu, is 8 x cpu" in done.stderr
    ours, theirs = read_metrics(tmp_path), read_metrics(alone)
    positions = [[(r["step"], r.get("tokens")) for r in records] for records in (ours, theirs)]
    assert positions[0] == positions[1]
    found, expected = (np.array([r.get("loss", r.get("eval_loss")) for r in records]) for records in (ours, theirs))
    # Steps of Adam carry the rounding of other sums along.
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    states = [saved.data for saved in (restore(tmp_path), restore(alone)) if saved]
    assert states[0] == states[1]


def test_steps_without_a_finite_loss_are_left_out_and_named_until_there_are_too_many(corpus, tmp_path, capsys):
    values = settings(corpus, tmp_path) | {"steps": 20, "optim.lr": 1e30, "optim.warmup_steps": 0, "accumulate": 1}
    # The one checkpoint that is due falls on the first of them, and is not made.
    with pytest.raises(UserError, match=r"steps 3, 4, 5: loss is nan.* more than config.max_skipped_steps = 2"):
        train(as_config(values | {"max_skipped_steps": 2, "checkpoint.every": 3}))
    assert restore(tmp_path) is None
    records = read_metrics(tmp_path)
    skipped = [r for r in records if "skipped" in r]
    assert len(skipped) == 3
    assert len(skipped[0]["examples"]) == 4
    assert set(skipped[0]["examples"]) <= {f"{i}.wav" for i in range(12)}
    assert records[-2]["loss"] is None
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    shown = capsys.readouterr().err
    assert f"step {skipped[0]['step']}: loss is nan" in shown
    assert f"{skipped[0]['examples'][0]} ({corpus / 'music.jsonl'}:" in shown


def test_two_runs_with_one_seed_are_one(corpus, tmp_path):
    """To the bit, random crops and all."""
    values = {"steps": 4, "accumulate": 1, "data.encode_in_step": True, "data.crop_seconds": 1.0, "data.eval_most": 1}
    for name in ("one", "two"):
        train(as_config(settings(corpus, tmp_path / name) | values))
    assert_same(tmp_path / "one", tmp_path / "two")


def test_the_best_checkpoint_and_a_trace_of_some_steps(alone, corpus, tmp_path, capsys):
    values = settings(corpus, tmp_path) | {
        "steps": 4,
        "accumulate": 1,
        # Ever greater strides, away from where another run has led.
        "adapter.start": alone,
        "optim.lr": 5.0,
        "optim.warmup_steps": 6,
        "log.eval_every": 1,
        "checkpoint.every": 1,
        "checkpoint.keep": 1,
        "profile_steps": "2,3",
    }
    train(as_config(values))
    losses = {r["step"]: r["eval_loss"] for r in read_metrics(tmp_path) if "eval_loss" in r}
    best = min(losses, key=losses.__getitem__)
    assert best < 4
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [str(best), "4"]
    named = f"--adapter {tmp_path / 'checkpoints' / str(best)}"
    assert f"the held-out loss was lowest after step {best}, {losses[best]:.4f}: {named}" in capsys.readouterr().err
    assert not np.array_equal(*(load_run_adapter(s)[0]["projection"]["bias"] for s in (tmp_path, named.split()[1])))

    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000
    with gzip.open(trace.parent / "perfetto_trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    assert {e["args"]["step_num"] for e in events if e.get("name") == "train"} == {"2", "3"}
    train(as_config(values))
    assert "profile_steps 2,3: not traced, for step 5 is the next" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["10", "5,3", "0,4", "a,b", "1,2,3", "-1,4"])
def test_steps_to_trace_are_two_rising_numbers(text):
    with pytest.raises(UserError, match="must be FIRST,LAST, two rising numbers"):
        profiled_steps(text)


def test_a_spike_names_its_clips(corpus, tmp_path, capsys):
    """Nothing is learnt here: what stands out are the harder examples, by half a deviation."""
    still = {"optim.lr": 0.0, "optim.min_lr": 0.0, "optim.warmup_lr": 0.0, "log.spike": 0.5, "steps": 40}
    train(as_config(settings(corpus, tmp_path) | still))
    records = read_metrics(tmp_path)
    spikes = [r for r in records if "spike" in r]
    assert spikes
    first = spikes[0]
    assert first["step"] > 20
    loss = next(r["loss"] for r in records if r["step"] == first["step"])
    clips = "; ".join(f"{clip} ({corpus / 'music.jsonl'}:{int(clip.split('.')[0]) + 1})" for clip in first["examples"])
    told = f"step {first['step']}: the loss {loss:.4f} is {first['spike']} deviations above the recent ones: {clips}"
    assert told in capsys.readouterr().err

"""Several processes for real: the demo's model in miniature on two of them, one killed; what joins, and what cannot."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from mlingo_jax import caption, demo
from mlingo_jax.conversion import to_jax
from mlingo_jax.errors import UserError
from mlingo_jax.flags import read_config
from mlingo_jax.processes import Job, find_job
from mlingo_jax.runs.checkpoints import load_run_adapter
from mlingo_jax.training.loop import train
from mlingo_jax.training.record import read_metrics
from tests.tiny import tiny_llama, tiny_musilingo

ROOT = Path(__file__).parents[1]
LOCAL = ROOT / "launch" / "local.sh"
STEPS, SAVED = 15, 5
MINIATURE = {
    "demo.seconds": 3.0,
    "demo.train_takes": 1,
    "demo.held_out_takes": 1,
    "demo.instruments": 2,
    "demo.llm_steps": 2,
    "steps": STEPS,
    "batch_size": 8,
    "checkpoint.every": SAVED,
    "log.eval_every": 0,
    "log.eval_answers": 0,
    "log.print_every": 5,
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """Programs are compiled lightly and kept for the next start: most of a tiny run is compiling."""
    kept = {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "4",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("programs")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "MLINGO_HEARTBEAT_SECONDS": "10",
    }
    return {**os.environ, **kept}


def command(folder: Path, name: str) -> list[str]:
    settings = {**MINIATURE, "workdir": folder / name, "demo.materials": folder / "materials"}
    return ["mlingo_jax.train", "--config=demo", *(f"--config.{key}={value}" for key, value in settings.items())]


@pytest.fixture(scope="module")
def two(environment, tmp_path_factory) -> tuple[Path, str, str]:
    """The demo on two processes of four devices, one killed after a checkpoint, and begun again; what both showed."""
    folder = tmp_path_factory.mktemp("demo")
    launch = [LOCAL, "2", *command(folder, "two")]
    checkpoint = folder / "two" / "checkpoints" / str(SAVED)
    with subprocess.Popen(
        launch, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as launcher:
        deadline = time.monotonic() + 300
        while not checkpoint.is_dir():
            assert launcher.poll() is None, launcher.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process_of(launcher.pid, number=1), signal.SIGKILL)
        killed = launcher.communicate(timeout=60)[1]
    assert launcher.returncode != 0
    finished = subprocess.run(launch, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return folder, killed, finished.stderr


def process_of(launcher: int, number: int) -> int:
    """The id of the Python process with this number under a launcher."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and f"\0JAX_PROCESS_ID={number}\0" in "\0" + path.read_text():
                return int(path.parent.name)
    raise AssertionError(f"no process {number} under {launcher}")


def test_a_death_ends_all_with_an_error(two):
    _, killed, _ = two
    assert "process 1 of 2 ended with status 137" in killed
    assert re.search("process 0 of 2 ended with status [^0]|ending the other processes", killed)
    # The reason is the other's end, not something to be searched for in the code.
    assert "Traceback" not in killed


def test_the_job_begun_again_goes_on_and_finishes(two):
    folder, _, finished = two
    assert re.search(f"two: resuming after step ({SAVED}|{2 * SAVED}) of {STEPS}", finished)
    assert "the frozen towers are unchanged" in finished
    assert {path.name for path in (folder / "two").iterdir()} >= {"report.md", "loss.png", "metrics.jsonl", "run.json"}
    # One process speaks for both.
    assert "[1] step" not in finished
    assert finished.count(f"step {STEPS}/{STEPS}: loss") == 1


def test_two_processes_of_four_devices_give_the_losses_of_one(two):
    folder, *_ = two
    assert jax.device_count() == 1
    config = read_config(command(folder, "one")[1:])
    demo.prepare(config)
    train(config)
    ours, theirs = read_metrics(folder / "two"), read_metrics(folder / "one")
    assert [record["step"] for record in ours] == [record["step"] for record in theirs]
    for a, b in zip(ours, theirs, strict=True):
        asked = [[(one["clip"], one["question"]) for one in record.pop("answers", [])] for record in (a, b)]
        assert asked[0] == asked[1]
        # A difference of two losses, each to its rounding.
        assert a.pop("listening", 0) == pytest.approx(b.pop("listening", 0), abs=1e-4)
        assert a == pytest.approx(b, rel=1e-5)
    kernels = [load_run_adapter(folder / name)[0]["projection"]["kernel"] for name in ("two", "one")]
    # Adam divides by the root of the second moment: where a gradient is near zero, its rounding is a step's.
    np.testing.assert_allclose(*kernels, atol=1e-4)


@pytest.fixture
def caption_words(tmp_path) -> list[str]:
    rng = np.random.default_rng(1)
    (tmp_path / "music").mkdir()
    for i in range(5):
        soundfile.write(tmp_path / "music" / f"{i}.wav", rng.normal(0, 0.1, 9600 + 2400 * i), 24000)
    (tmp_path / "music" / "2.wav").write_text("not audio")
    paths = [f"--{name}={path}" for name, path in tiny_musilingo(tmp_path).items()]
    return [str(tmp_path / "music"), "--question=What plays?", "--max_new_tokens=4", "--rows=2", *paths]


def test_two_processes_write_the_answers_of_one(caption_words, environment, tmp_path, monkeypatch):
    """The first two are answered before, by one process; of the rest each of two answers some."""
    whole, dealt = tmp_path / "whole.jsonl", tmp_path / "dealt.jsonl"
    monkeypatch.setattr(sys, "argv", ["caption", *caption_words, f"--output={whole}"])
    assert caption.main() == 1
    Path(f"{dealt}.settings.json").write_bytes(Path(f"{whole}.settings.json").read_bytes())
    dealt.write_bytes(b"".join(whole.read_bytes().splitlines(keepends=True)[:2]))
    words = [LOCAL, "2", "mlingo_jax.caption", *caption_words, f"--output={dealt}"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "4 of 5 files answered, 2 of them before; 1 cannot be read" in done.stderr
    assert "[1] " + str(dealt) not in done.stderr
    assert dealt.read_bytes() == whole.read_bytes()


def test_two_processes_convert_as_one(environment, tmp_path):
    tiny_llama(tmp_path / "llm")
    words = [LOCAL, "2", "conversion.to_jax", tmp_path / "llm", tmp_path / "two"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Gloo speaks of its connections on stdout too.
    assert done.stdout.count(f"{tmp_path / 'two'}: written\n") == 1
    to_jax.main([str(tmp_path / "llm"), str(tmp_path / "one")])
    converted = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("two", "one")]
    assert converted[0] == converted[1]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        ("1", "process 1 of 2: cannot reach the coordinator, process 0 at localhost:1: nothing has answered"),
        ("0", "process 0 of 2: not all of the others came within 2 s"),
    ],
)
def test_a_process_that_finds_no_other_says_so(environment, number, message):
    port = "localhost:1" if number == "1" else "localhost:0"
    job = {"JAX_COORDINATOR_ADDRESS": port, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": number}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", "from mlingo_jax.processes import initialize; initialize()"],
        env={**environment, **job, "MLINGO_JOIN_SECONDS": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert time.monotonic() - start < 60


def test_processes_of_one_run_must_be_given_the_same_settings(environment, tmp_path):
    """Each would take rows of other batches, and both would go on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    job = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", *command(tmp_path, "run"), f"--config.batch_size={8 * (number + 1)}"],
            env={**environment, **job, "JAX_PROCESS_ID": str(number)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    told = [process.communicate(timeout=100)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    for text in told:
        assert text.startswith("error: processes 0 and 1 were given different settings: config.batch_size is 8 and 16.")
        assert len(text.splitlines()) == 1
    assert not any(tmp_path.iterdir())


SLURM = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "3", "SLURM_STEP_NODELIST": "gpu[01-02]"}
HAND = {"JAX_COORDINATOR_ADDRESS": "node0:7777", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "16", "SLURM_STEP_NUM_TASKS": "1"}, None),
        (SLURM, Job("3", "16", "process 0 on the first node of gpu[01-02]")),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, Job("1", "2", "process 0 on a")),
        ({"JAX_NUM_PROCESSES": "auto"}, Job("?", "?", "process 0 where JAX finds it")),
        ({**HAND, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
    ],
)
def test_the_environment_tells_of_the_others(environment, job):
    assert find_job(environment) == job


def test_a_job_given_by_hand_goes_before_any_other():
    job = find_job({**SLURM, **HAND})
    assert job is not None
    assert (job.process, job.processes, job.address) == ("2", "4", "node0:7777")
    assert job.arguments["process_id"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAX_PROCESS_ID": ""}, "several processes need all three"),
        ({"JAX_COORDINATOR_ADDRESS": ""}, "several processes need all three"),
        ({"JAX_NUM_PROCESSES": "many"}, "JAX_NUM_PROCESSES=many"),
        ({"JAX_PROCESS_ID": "4"}, "the last process is number 3"),
        ({"JAX_COORDINATOR_ADDRESS": "node0"}, "expected HOST:PORT"),
    ],
)
def test_a_job_given_by_halves_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        find_job({**HAND, **changes})

"""The launch scripts: what they would run, that they are sound, and that local.sh passes on signals and ends."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = [LAUNCH / "local.sh", LAUNCH / "slurm.sbatch", LAUNCH / "tpu_pod.sh", LAUNCH / "gke" / "apply.sh"]
PAPER = LAUNCH / "paper.sh"


def run(*words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHON": sys.executable, **variables}
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_the_scripts_are_shellcheck_clean():
    done = run(Path(sys.executable).with_name("shellcheck"), *SCRIPTS, PAPER)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_without_arguments_says_what_it_takes(script):
    done = run(script)
    assert done.returncode == 2
    assert "[--dry_run]" in done.stderr or "--dry_run" in script.read_text()
    assert "python -m MODULE ARGUMENTS" in done.stderr


def test_local_shows_each_process():
    done = run(LAUNCH / "local.sh", "--dry_run", "2", "mlingo_jax.train", "--config.workdir=my runs")
    assert done.returncode == 0
    for i, line in enumerate(done.stdout.splitlines()):
        words = shlex.split(line)
        assert words[:4] == [
            "env",
            "JAX_COORDINATOR_ADDRESS=localhost:PORT",
            "JAX_NUM_PROCESSES=2",
            f"JAX_PROCESS_ID={i}",
        ]
        assert words[4:] == [sys.executable, "-m", "mlingo_jax.train", "--config.workdir=my runs"]
    assert len(done.stdout.splitlines()) == 2


def test_local_gives_each_process_a_gpu():
    gpus = {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": "3,5"}
    done = run(LAUNCH / "local.sh", "--dry_run", "2", "--config=demo", **gpus)
    assert re.findall(r"CUDA_VISIBLE_DEVICES=(\d)", done.stdout) == ["3", "5"]
    refused = run(LAUNCH / "local.sh", "--dry_run", "3", "--config=demo", **gpus)
    assert refused.returncode == 2
    assert "3 processes, but 2 GPUs" in refused.stderr


def test_local_ends_with_the_status_of_the_first_that_failed(tmp_path):
    (tmp_path / "child.py").write_text(
        "import os, signal, sys, time\n"
        "number = int(os.environ['JAX_PROCESS_ID'])\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "print('here', number, flush=True)\n"
        "time.sleep(60 if sys.argv[1] == 'wait' else 0)\n"
        "sys.exit(7 if number == 1 and sys.argv[1] == 'fail' else 0)\n"
    )
    failed = run(LAUNCH / "local.sh", "2", "child", "fail", PYTHONPATH=str(tmp_path))
    assert failed.returncode == 7
    assert "process 1 of 2 ended with status 7" in failed.stderr
    assert "[1] here 1" in failed.stderr
    assert failed.stdout == "here 0\n"

    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)}
    command = [LAUNCH / "local.sh", "2", "child", "wait"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here 0\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 143


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP], ids=lambda number: number.name)
def test_the_processes_of_local_end_when_it_is_killed(tmp_path, number):
    (tmp_path / "child.py").write_text(
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "place = Path(sys.argv[1], os.environ['JAX_PROCESS_ID'])\n"
        "signal.signal(signal.SIGTERM, lambda *_: (place.write_text('saved'), sys.exit(143)))\n"
        "place.write_text(str(os.getpid()))\n"
        "print('here', flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)}
    positions = [tmp_path / str(number) for number in range(2)]
    command = [LAUNCH / "local.sh", "2", "child", tmp_path]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        deadline = time.monotonic() + 20
        while not all(place.exists() and place.read_text().isdecimal() for place in positions):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        pids = [int(place.read_text()) for place in positions]
        process.send_signal(number)
        while any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.wait()
    # Told to stop, not killed at once: a run saves.
    assert [place.read_text() for place in positions] == ["saved", "saved"]


def test_slurm_starts_a_process_for_each_gpu():
    done = run(LAUNCH / "slurm.sbatch", "--dry_run", "mlingo_jax.train", "--config=pretrain")
    assert shlex.split(done.stdout)[0] == "srun"
    assert shlex.split(done.stdout)[-4:] == ["python", "-m", "mlingo_jax.train", "--config=pretrain"]
    settings = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE))
    assert settings["ntasks-per-node"] == settings["gpus-per-node"]
    assert settings["signal"].startswith("USR1@")


def test_tpu_pod_runs_on_every_worker():
    done = run(LAUNCH / "tpu_pod.sh", "--dry_run", "slice", "zone", "mlingo_jax.train", "--config.workdir=my runs")
    words = shlex.split(done.stdout)
    assert words[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh"]
    assert {"slice", "--zone=zone", "--worker=all"} <= set(words)
    remote = shlex.split(words[-1].removeprefix("--command="))
    assert remote[:2] == ["env", "JAX_NUM_PROCESSES=auto"]
    assert remote[-3:] == ["-m", "mlingo_jax.train", "--config.workdir=my runs"]


def test_the_jobset_is_one_process_for_each_host_of_the_slice():
    done = run(LAUNCH / "gke" / "apply.sh", "--dry_run", "first", "registry/image:1", "mlingo_jax.train", '--a="b" & c')
    first, _, rest = done.stdout.partition("\n")
    assert first.startswith("kubectl apply")
    jobset = yaml.safe_load(rest.rpartition("END")[0])
    assert (jobset["kind"], jobset["metadata"]["name"]) == ("JobSet", "first")
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    assert container["image"] == "registry/image:1"
    assert container["args"] == ["mlingo_jax.train", '--a="b" & c']
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert (
        job["parallelism"] == job["completions"] == rows * columns // container["resources"]["limits"]["google.com/tpu"]
    )


def test_the_image_takes_what_the_package_is_made_of_and_runs_without_root():
    text = (ROOT / "Dockerfile").read_text()
    copied = {source for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for source in line.split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert copied >= {*wheel["packages"], *wheel["force-include"], "pyproject.toml", "README.md", "LICENSE"}
    assert text.index("\nUSER mlingo") < text.index('\nENTRYPOINT ["tini", "--", "python", "-m"]')

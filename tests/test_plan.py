"""The plan of a run on a machine that is not there: the command, with tiny towers."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlingo_jax.planning.devices import cuda_plugin
from tests.tiny import LLAMA, MERT

ROOT = Path(__file__).parents[1]
SMALL = ("--config.batch_size=8", "--config.data.length=32", "--seconds=2")
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="compiling for a TPU needs libtpu"
)


@pytest.fixture(scope="module")
def towers(tmp_path_factory) -> tuple[str, str]:
    """Folders that hold a config.json and nothing else."""
    folder = tmp_path_factory.mktemp("towers")
    for name, values in (("mert", MERT), ("llm", LLAMA)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(values))
    return f"--config.mert.path={folder / 'mert'}", f"--config.llm.path={folder / 'llm'}"


def plan(*arguments: str, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {n: v for n, v in os.environ.items() if n != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    environment["PYTHONPATH"] = os.pathsep.join((str(path), str(ROOT)))
    command = [sys.executable, "-W", "error", "-m", "mlingo_jax.plan", "--config=base", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def lines(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The first line of each heading."""
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return {line[:12].strip(): line[13:] for line in done.stdout.splitlines() if line[:1].strip()}


def test_processors(towers):
    found = lines(plan("--topology=cpu:8", *SMALL, *towers, "--config.mesh.data=4", "--config.mesh.fsdp=2", "--rows=4"))
    assert found["machine"] == "cpu:8, 8 devices"
    assert found["mesh"] == "data 4, fsdp 2, tensor 1"
    assert "8 rows of 32 tokens, 1 of them music from 2 s, features cached" in found["step"]
    assert "GiB on each device: arguments" in found["memory"]
    assert "by each device" in found["sent"]
    assert "T operations a clip" in found["encoding"]
    assert found["answering"].startswith("4 rows: ")
    # Nothing is known of a processor's speed.
    assert "least time" not in found


@needs_compiler
def test_a_tpu(towers):
    found = lines(
        plan("--topology=v5e:2x2", *SMALL, *towers, "--config.data.encode_in_step=true", "--config.data.crop_seconds=2")
    )
    assert "4 devices of 15.75 GiB, 197 TFLOP/s" in found["machine"]
    assert "encoded in the step" in found["step"]
    assert "of 15.75 GiB on each device" in found["memory"]
    assert "bound by" in found["least time"]
    assert "device-hours" in found["whole run"]
    assert "encoding" not in found


def test_a_gpu(towers):
    done = plan("--topology=h100:2", *SMALL, *towers, "--rows=2")
    found = lines(done)
    assert "2 devices of 79.65 GiB, 989 TFLOP/s" in found["machine"]
    assert "programs get 75% of that memory" in done.stdout
    assert "of 59.74 GiB on each device" in found["memory"]
    assert "bound by" in found["least time"]
    # Without its compiler the same figures, of processors.
    assert ("an estimate, compiled for cpu:2" in done.stdout) == (cuda_plugin() is None)


def test_a_gpus_compiler_that_is_not_jaxs(towers, tmp_path):
    (tmp_path / "jax_cuda13_plugin").mkdir()
    (tmp_path / "jax_cuda13_plugin" / "__init__.py").touch()
    folder = tmp_path / "jax_cuda13_plugin-0.1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: jax-cuda13-plugin\nVersion: 0.1.0\n")
    done = plan("--topology=h100:2", *SMALL, *towers, path=tmp_path)
    assert done.returncode == 1
    assert "the GPU's compiler is jax_cuda13_plugin 0.1.0, and jaxlib is" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_meshes_of_a_machine(towers):
    done = plan("--topology=cpu:4", "--search", "--most=1", *SMALL, *towers)
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("data x fsdp x tensor")[2].splitlines()[1:]
    assert len(table) == 6
    assert table[0].startswith("4 x 1 x 1")
    assert sum("not compiled" in line for line in table) == 4
    assert any("2 key/value heads over tensor 4" in line for line in table)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--topology=v5e:3",), "a slice of v5e has 2 axes"),
        (("--topology=cpu:8", "--config.batch_size=2"), "config.batch_size is 2: must be a multiple of 8"),
        (("--topology=cpu:8", "--config.mesh.fsdp=3"), "does not make up the number of devices, 8"),
        (("--topology=cpu:2", "--config.llm.path=llama-99"), "none of the models whose sizes are known here"),
    ],
)
def test_mistakes(towers, arguments: tuple[str, ...], expected: str):
    done = plan(*SMALL, *towers, *arguments)
    assert done.returncode == 1
    assert done.stdout.count("\n") <= 6
    assert done.stderr.startswith("error: ")
    assert expected in done.stderr


def test_an_option_that_is_none_is_told_with_the_nearest(towers):
    done = plan(*SMALL, *towers, "--topology=cpu:2", "--clip=2")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --clip: no such option; did you mean --clips?")

"""What installing puts on a machine: console commands, and packages that a user's own folders do not stand in for."""

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.tiny import tiny_mert

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("target", PROJECT["project"]["scripts"].values(), ids=PROJECT["project"]["scripts"])
def test_console_commands_are_functions_of_the_package(target: str):
    module, _, function = target.partition(":")
    assert module.startswith("mlingo_jax.")
    assert callable(getattr(importlib.import_module(module), function))


def test_a_folder_with_packages_of_our_names(tmp_path: Path):
    """`python -m` puts the current folder before everything that is installed."""
    for name in ("configs", "conversion"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('this is another project')\n")
    tiny_mert(tmp_path / "mert")
    process = subprocess.run(
        [sys.executable, "-m", "mlingo_jax.conversion.to_jax", "mert", "jax"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "jax: written\n", "")
    assert (tmp_path / "jax/conversion.json").is_file()

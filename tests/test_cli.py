"""A command's end: a mistake is one line, and Ctrl-C stops it whatever it is at."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COLLECTING = """
import gc, os, signal, time
from mlingo_jax.cli import run_cli
left = [1]
def interrupt(*_):
    if left: left.pop(), os.kill(os.getpid(), signal.SIGINT)
def main():
    gc.callbacks.append(interrupt)
    gc.collect()
    time.sleep(60)
run_cli(main)
"""
MISTAKEN = """
from mlingo_jax.cli import run_cli
from mlingo_jax.errors import UserError
def main(): raise UserError("music.wav: there is no music in it")
run_cli(main)
"""

REFUSED = """
from pathlib import Path
from mlingo_jax.cli import run_cli
run_cli(Path("docs").read_text)
"""

WARNED = """
import warnings
from mlingo_jax.cli import run_cli
run_cli(lambda: warnings.warn("there is little music in it"))
"""


@pytest.mark.parametrize(
    ("program", "code", "shown"),
    [
        pytest.param(COLLECTING, 130, "stopped by the keyboard\n", id="interrupted while garbage is collected"),
        pytest.param(MISTAKEN, 1, "error: music.wav: there is no music in it\n", id="mistaken"),
        pytest.param(REFUSED, 1, "error: docs: Is a directory\n", id="refused by the system"),
        pytest.param(WARNED, 0, "warning: there is little music in it\n", id="warned"),
    ],
)
def test_a_command_ends_with_one_line(program, code, shown):
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stderr) == (code, shown)

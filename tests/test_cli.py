"""A command's end: a mistake is one line, and Ctrl-C stops it whatever it is at."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mlingo_jax
from mlingo_jax.__main__ import COMMANDS
from mlingo_jax.__main__ import main as list_commands
from mlingo_jax.cli import Parser

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


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["songs", "--ouput", "a.jsonl"], "--ouput: no such option; did you mean --output? (music --help)"),
        (["songs", "--ouput=a.jsonl"], "--ouput: no such option; did you mean --output? (music --help)"),
        (["songs", "--output", "a", "--zzz"], "--zzz: no such option (music --help)"),
        (["songs"], "the following arguments are required: --output (music --help)"),
        (["songs", "--output", "a", "--rows", "x"], "argument --rows: invalid int value: 'x' (music --help)"),
    ],
)
def test_a_mistake_in_the_options_is_one_line(words, shown, capsys):
    parser = Parser(prog="music")
    parser.add_argument("folder")
    parser.add_argument("--output", required=True)
    parser.add_argument("--rows", type=int)
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(words)
    assert capsys.readouterr() == ("", f"error: {shown}\n")


def test_options_of_a_subcommand_and_of_a_config(capsys):
    parser = Parser(prog="music")
    part = parser.add_subparsers().add_parser("part")
    part.add_argument("--output")
    assert parser.parse_args(["part", "--output", "a"]).output == "a"
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["part", "--ouput", "a"])
    assert capsys.readouterr().err == "error: --ouput: no such option; did you mean --output? (music part --help)\n"
    _, rest = Parser().parse_known_args(["--config.steps=2", "--config.seed", "1"])
    assert rest == ["--config.steps=2", "--config.seed", "1"]


def test_the_package_lists_its_commands(monkeypatch, capsys):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    modules = {target.partition(":")[0] for name, target in scripts.items() if name != "mlingo"}
    assert {name.replace("conversion.", "mlingo_jax.conversion.") for name in COMMANDS} == modules
    monkeypatch.setattr(sys, "argv", ["mlingo"])
    list_commands()
    shown = capsys.readouterr().out
    assert all(f"python -m {name} " in shown for name in COMMANDS)
    monkeypatch.setattr(sys, "argv", ["mlingo", "--version"])
    list_commands()
    assert capsys.readouterr().out == f"mlingo_jax {mlingo_jax.__version__}\n"


def test_the_package_shows_what_it_has():
    assert {"load", "MusiLingo", "__version__"} <= set(dir(mlingo_jax))

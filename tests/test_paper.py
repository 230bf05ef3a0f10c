"""launch/paper.sh and the page that it ends with."""

import subprocess
from pathlib import Path

import pytest

from mlingo_jax.errors import UserError
from mlingo_jax.evaluation.paper_page import write_paper

SCRIPT = Path(__file__).parents[1] / "launch" / "paper.sh"


def test_a_dry_run_shows_the_commands(tmp_path):
    done = subprocess.run(
        [SCRIPT, "DATA", "WEIGHTS", tmp_path / "RUNS", "--dry_run"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.count("-m mlingo_jax.train --config=") == 5
    assert done.stdout.count("--like qa") == 4
    assert "== pretrain (about 2 h" in done.stderr
    assert not (tmp_path / "RUNS").exists()


def test_a_page_without_its_evaluations_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"musiccaps: no finished evaluation there; launch/paper\.sh makes it"):
        write_paper(tmp_path)

import signal
import subprocess
import sys

import pytest

from mlingo_jax.errors import UserError
from mlingo_jax.files import write_atomic
from tests.full_disk import full_disk

# Writes a piece that is surely on the disk, says so, and then waits for its end.
HALF = """
import sys, time
from pathlib import Path
from mlingo_jax.files import write_atomic

def pieces():
    yield "new" * 100_000
    print("half", flush=True)
    time.sleep(60)

write_atomic(Path(sys.argv[1]), pieces())
"""


def test_a_file_is_replaced_by_the_pieces(tmp_path):
    path = tmp_path / "notes.txt"
    for pieces in ["one\n"], ["Grüße ", "'♪'\n"], []:
        write_atomic(path, pieces)
        assert path.read_text(encoding="utf-8") == "".join(pieces)
        assert list(tmp_path.iterdir()) == [path]


def test_killed_in_the_middle_the_old_file_stays(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with subprocess.Popen([sys.executable, "-c", HALF, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    write_atomic(path, ["new"])
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_middle_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "notes.txt"
    path.write_text("old")

    def fail():
        yield "half"
        raise error

    with pytest.raises(error):
        write_atomic(path, fail())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with pytest.raises(UserError, match=r"notes\.txt/inner: cannot be written \(Not a directory\)"):
        write_atomic(path / "inner", ["new"])
    with full_disk(1000), pytest.raises(UserError, match=r"/notes\.txt: cannot be written \(File too large\)"):
        write_atomic(path, ["new" * 1000])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]

"""Checkpoints: what goes in comes out, the newest are kept, damage is seen, a full disk leaves the last good one."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from mlingo_jax.errors import UserError
from mlingo_jax.runs.checkpoints import CheckpointState, load_run_adapter, restore
from mlingo_jax.runs.folder import is_run
from mlingo_jax.training import checkpoint
from mlingo_jax.training.checkpoint import Checkpoints, set_aside
from mlingo_jax.weights.folders import Found, identify

RUN = {"id": "r1", "seed": 1}
TOWERS = {"llm": {"name": "tiny", "weights": "0123"}}


def make(step: int, size: int = 8) -> CheckpointState:
    rng = np.random.default_rng(step)
    adapter = {"projection": {"kernel": rng.normal(size=(size, 4)).astype(np.float32), "bias": np.zeros(4, np.float32)}}
    optimizer = {
        "opt_state": {"count": np.array(step, np.int32), "mu": adapter},
        "token_count": np.array(2.5, np.float32),
    }
    return CheckpointState(
        step, {"adapter": adapter}, optimizer, {"next_index": step}, {"skipped": [7]}, ["7.wav: not audio"]
    )


def make_former(folder: Path, step: int) -> CheckpointState:
    """A checkpoint as it was before what is trained had named parts; what it holds, by today's names."""
    state = make(step)
    adapter = state.trained["adapter"]
    kernel = adapter["projection"]["kernel"]
    moments = {
        "1.0.count": np.array(step, np.int32),
        "1.0.mu.projection.kernel": kernel,
        "1.0.nu.layer_weights": kernel,
    }
    rest = {"gradient": adapter, "token_count": state.optimizer["token_count"], "opt_state": moments}
    ocp.save_checkpointables(
        str(folder / "checkpoints" / str(step)),
        {"adapter": adapter, "optimizer": rest},
        custom_metadata={"data": state.data, "run": RUN["id"], "step": step},
    )
    checkpoint._write_sums(folder / "checkpoints" / str(step))
    now = {name.replace("u.", "u.adapter."): values for name, values in moments.items()}
    optimizer = {**rest, "gradient": {"adapter": adapter}, "opt_state": now}
    return CheckpointState(step, state.trained, optimizer, state.data)


def keeping(run: Path, keep: int) -> Checkpoints:
    """With nothing to tell the best by."""
    return Checkpoints(run, keep=keep, best=1, losses={})


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "run.json").write_text(json.dumps(RUN))
    with keeping(folder, 2) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(make(step), TOWERS)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    return shutil.copytree(made, tmp_path, dirs_exist_ok=True)


def kept(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_is(saved: CheckpointState | None, step: int) -> None:
    assert saved is not None
    expected = make(step)
    assert (saved.step, saved.data, saved.watch) == (step, {"next_index": step}, {"skipped": [7]})
    assert saved.unreadable == ["7.wav: not audio"]
    for name, values in expected.trained["adapter"]["projection"].items():
        np.testing.assert_array_equal(saved.trained["adapter"]["projection"][name], values)
        assert saved.trained["adapter"]["projection"][name].dtype == np.float32
    assert saved.optimizer["opt_state"]["count"] == step
    assert saved.optimizer["token_count"] == 2.5


def test_a_checkpoint_of_before_parts_had_names_is_read_by_their_names(run: Path):
    former, saved = make_former(run, 40), restore(run)
    assert saved is not None
    assert saved.optimizer.keys() == former.optimizer.keys()
    assert saved.optimizer["opt_state"].keys() == former.optimizer["opt_state"].keys()
    found, expected = (saved.trained, saved.optimizer), (former.trained, former.optimizer)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_newest_are_kept_and_read_back(run):
    assert kept(run) == ["20", "30"]
    assert_is(restore(run), 30)
    adapter, described = load_run_adapter(run)
    np.testing.assert_array_equal(adapter["projection"]["kernel"], make(30).trained["adapter"]["projection"]["kernel"])
    assert described == RUN


def test_a_checkpoint_names_its_towers_and_does_not_hold_them(run):
    metadata = json.loads((run / "checkpoints" / "30" / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]
    assert metadata.pop("towers") == TOWERS
    assert (metadata.pop("run"), metadata.pop("step")) == ("r1", 30)
    assert metadata == {"data": {"next_index": 30}, "watch": {"skipped": [7]}, "unreadable": ["7.wav: not audio"]}
    assert {path.name for path in (run / "checkpoints" / "30").iterdir() if path.is_dir()} == {"adapter", "optimizer"}


def test_the_best_is_kept_besides_also_when_a_run_goes_on(run):
    losses = {40: 2.5, 50: 2.0, 70: 2.1, 80: math.nan}
    for first in (40, 70):
        with Checkpoints(run, keep=2, best=1, losses=losses) as checkpoints:
            for step in (first, first + 10, first + 20):
                checkpoints.save(make(step), TOWERS)
        # CheckpointState before its evaluation, which a stop had cut short.
        losses[60] = 1.9
    assert kept(run) == ["60", "80", "90"]
    assert_is(restore(run / "checkpoints" / ".."), 90)
    with Checkpoints(run, keep=1, best=0, losses=losses) as checkpoints:
        checkpoints.save(make(100), TOWERS)
    assert kept(run) == ["100"]


def test_one_checkpoint_of_a_run_may_be_named(run, monkeypatch):
    monkeypatch.chdir(run / "checkpoints")
    for source in (run / "checkpoints" / "20", "20", "../checkpoints/20"):
        adapter, described = load_run_adapter(source)
        np.testing.assert_array_equal(
            adapter["projection"]["kernel"], make(20).trained["adapter"]["projection"]["kernel"]
        )
        assert described == RUN
        assert identify(Path(source)) == Found("adapter", "run")
    flip_a_bit(run / "checkpoints" / "20")
    with pytest.raises(UserError, match=r"20: not a good checkpoint \(.*\); name another one, or the run"):
        load_run_adapter(run / "checkpoints" / "20")
    with pytest.raises(UserError, match="not the folder of a training run"):
        load_run_adapter(run / "checkpoints" / "70")


def test_sha256sum_agrees(run):
    folder = run / "checkpoints" / "30"
    checked = subprocess.run(["sha256sum", "-c", "--quiet", checkpoint.SUMS], cwd=folder, check=False)
    assert checked.returncode == 0


def largest(folder: Path) -> Path:
    return max(
        (p for p in folder.rglob("*") if p.is_file() and p.name != checkpoint.SUMS), key=lambda p: p.stat().st_size
    )


def cut_off(folder: Path) -> None:
    file = largest(folder)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(folder: Path) -> None:
    file = largest(folder)
    values = bytearray(file.read_bytes())
    values[len(values) // 2] ^= 1
    file.write_bytes(values)


def lose_a_file(folder: Path) -> None:
    (folder / "_CHECKPOINT_METADATA").unlink()


@pytest.mark.parametrize("damage", [cut_off, flip_a_bit, lose_a_file])
def test_a_damaged_checkpoint_is_seen_and_the_one_before_is_used(run, damage):
    damage(run / "checkpoints" / "30")
    with pytest.warns(UserWarning, match=r"30: passed over \(.*\), trying the one before"):
        assert_is(restore(run), 20)
    assert kept(run) == ["20", "30"]
    before = files(run / "checkpoints" / "30")
    with pytest.warns(UserWarning, match="passed over"):
        assert_is(restore(run), 20)
    set_aside(run, after=20)
    assert kept(run) == ["20", "30.aside"]
    # What may still be had of it stays, whatever comes after.
    assert files(run / "checkpoints" / "30.aside") == before
    with keeping(run, 2) as checkpoints:
        checkpoints.save(make(30), TOWERS)
    assert_is(restore(run), 30)
    damage(run / "checkpoints" / "30")
    set_aside(run, after=20)
    assert kept(run) == ["20", "30.aside", "30.aside2"]


def test_if_none_is_good_none_is_removed_nor_advised_to_be(run):
    for step in ("20", "30"):
        flip_a_bit(run / "checkpoints" / step)
    with (
        pytest.warns(UserWarning, match="passed over"),
        pytest.raises(UserError, match=r"none of the checkpoints is good \(30: .*; 20: .*\); they stay") as error,
    ):
        restore(run)
    assert kept(run) == ["20", "30"]
    assert not any(word in str(error.value) for word in ("remove", "delete"))


def lose_the_sums(folder: Path) -> None:
    (folder / checkpoint.SUMS).unlink()
    flip_a_bit(folder)


def empty_the_sums(folder: Path) -> None:
    (folder / checkpoint.SUMS).write_text("")
    flip_a_bit(folder)


def forget_a_file(folder: Path) -> None:
    """In the sums, so that a flipped bit in it would not be noticed."""
    lines = (folder / checkpoint.SUMS).read_text().splitlines(keepends=True)
    forgotten = largest(folder).relative_to(folder).as_posix()
    (folder / checkpoint.SUMS).write_text("".join(line for line in lines if forgotten not in line))
    flip_a_bit(folder)


def put_in_the_one_before(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("20"), folder)


def put_in_another_runs(folder: Path) -> None:
    other = folder.parents[1] / "another run"
    other.mkdir()
    (other / "run.json").write_text(json.dumps({**RUN, "id": "r2"}))
    with keeping(other, 2) as checkpoints:
        checkpoints.save(make(30), TOWERS)
    shutil.rmtree(folder)
    shutil.copytree(other / "checkpoints" / "30", folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lose_the_sums, "there is no SHA256SUMS in it"),
        (empty_the_sums, "SHA256SUMS does not have .*adapter/"),
        (forget_a_file, "SHA256SUMS does not have "),
        (put_in_the_one_before, "it is the checkpoint of step 20"),
        (put_in_another_runs, "it is of another run, r2, not of r1"),
    ],
)
def test_a_checkpoint_is_not_trusted_for_its_place(run, change, reason):
    change(run / "checkpoints" / "30")
    with pytest.warns(UserWarning, match=rf"30: passed over \({reason}"):
        assert_is(restore(run), 20)
    with pytest.raises(UserError, match=rf"30: not a good checkpoint \({reason}"):
        load_run_adapter(run / "checkpoints" / "30")


def test_a_run_from_before_runs_had_an_identity_goes_on(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"seed": 1}))
    with keeping(tmp_path, 2) as checkpoints:
        checkpoints.save(make(10), TOWERS)
    assert_is(restore(tmp_path), 10)


@pytest.mark.parametrize("name", ["[1]", "a*", "what?", "b[!c]", "[", "a b#c%d"])
def test_a_workdir_may_be_called_anything(tmp_path, name):
    """Orbax takes some of these for patterns when it reads."""
    workdir = tmp_path / name
    workdir.mkdir()
    (tmp_path / "ab").mkdir()
    (workdir / "run.json").write_text(json.dumps(RUN))
    with keeping(workdir, 2) as checkpoints:
        for step in (10, 20):
            checkpoints.save(make(step), TOWERS)
    assert_is(restore(workdir), 20)
    np.testing.assert_array_equal(
        load_run_adapter(workdir / "checkpoints" / "10")[0]["projection"]["kernel"],
        make(10).trained["adapter"]["projection"]["kernel"],
    )


def test_what_is_not_read_back_as_it_was_is_no_checkpoint(run, monkeypatch):
    real = checkpoint.ocp.load_checkpointables

    def other(path: str) -> dict:
        items = real(path)
        items["adapter"]["projection"]["kernel"][0, 0] += 1
        return items

    monkeypatch.setattr(checkpoint.ocp, "load_checkpointables", other)
    message = r"step 40 could not be saved: what is read back is not what was saved; the checkpoint of step 30 stays"
    with pytest.raises(UserError, match=message), keeping(run, 1) as checkpoints:
        checkpoints.save(make(40), TOWERS)
    monkeypatch.undo()
    assert kept(run) == ["20", "30", "40.unfinished"]
    with keeping(run, 1):
        assert kept(run) == ["20", "30"]
    assert_is(restore(run), 30)


def test_checkpoints_without_a_run_are_refused(run):
    (run / "run.json").unlink()
    for ask in (is_run, restore):
        with pytest.raises(UserError, match=r"has checkpoints, but no run\.json, which says of which run they are"):
            ask(run)


@pytest.mark.parametrize("text", ["[]", "12", "null", "[" * 100_000, "\x00"], ids=range(5))
def test_a_run_json_that_is_none_is_one_line(run, text):
    (run / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run\.json: (not JSON|expected an object)") as error:
        load_run_adapter(run)
    assert "\n" not in str(error.value)


def test_one_that_was_being_written_counts_for_nothing(run):
    (run / "checkpoints" / "40.orbax-checkpoint-tmp").mkdir()
    assert_is(restore(run), 30)
    with keeping(run, 2):
        pass
    assert kept(run) == ["20", "30"]


def test_no_run_and_no_checkpoint(tmp_path):
    assert not is_run(tmp_path)
    assert restore(tmp_path) is None
    with pytest.raises(UserError, match="not the folder of a training run"):
        load_run_adapter(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    assert is_run(tmp_path)
    with pytest.raises(UserError, match="no checkpoint yet"):
        load_run_adapter(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json: not JSON"):
        load_run_adapter(tmp_path)


def test_too_little_room_is_seen_before_anything_is_written(run, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with (
        pytest.raises(UserError, match=r"step 40 could not be saved: .* the checkpoint of step 30 stays"),
        keeping(run, 1) as checkpoints,
    ):
        checkpoints.save(make(40), TOWERS)
    assert kept(run) == ["20", "30"]


FULL = """
import resource, sys
from pathlib import Path
from absl import logging
from mlingo_jax.errors import UserError
from tests.test_checkpoint import TOWERS, keeping, make

logging.set_verbosity(logging.FATAL)
try:
    with keeping(Path(sys.argv[1]), 1) as checkpoints:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        checkpoints.save(make(40, size=100_000), TOWERS)
        checkpoints.save(make(50, size=100_000), TOWERS)
except UserError as error:
    print(error)
"""


def test_a_write_that_fails_leaves_the_last_good_checkpoint(run):
    """A limit on the size of files is the full disk that a test can make without being root."""
    pytest.importorskip("resource")
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", FULL, run], cwd=root, capture_output=True, text=True, check=True)
    assert "step 40 could not be saved: File too large; the checkpoint of step 30 stays" in done.stdout
    assert done.stdout.count("\n") == 1
    assert {"20", "30"} <= set(kept(run))
    assert_is(restore(run), 30)

"""metrics.jsonl stays in order and without repetitions, whatever moment a run was killed at."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlingo_jax.errors import UserError
from mlingo_jax.training.plot import plot_losses
from mlingo_jax.training.record import Record, read_metrics


def loss(step: int) -> dict[str, float]:
    return {"loss": float(np.float32(1) / np.float32(step + 3)), "learning_rate": 0.1}


def write(workdir: Path, first: int, last: int) -> None:
    with Record(workdir, after=first - 1) as record:
        for step in range(first, last + 1):
            record.write(step, loss(step))
        record.sync()


@settings(max_examples=25, deadline=None)
@given(done=st.integers(0, 12), saved=st.integers(0, 12), lost=st.integers(0, 60))
def test_after_a_kill_each_step_stands_once(done, saved, lost):
    saved = min(saved, done)
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder)
        write(workdir, 1, done)
        path = workdir / "metrics.jsonl"
        # A checkpoint comes after its records are on the disk: only what was written since may be cut off.
        safe = sum(len(line) + 1 for line in path.read_text().splitlines()[:saved])
        path.write_bytes(path.read_bytes()[: max(safe, path.stat().st_size - lost)])
        write(workdir, saved + 1, 15)
        assert read_metrics(workdir) == [{"step": step, **loss(step)} for step in range(1, 16)]
        assert all(json.loads(line) for line in path.read_text().splitlines())


def test_losses_read_back_exactly(tmp_path):
    values = np.random.default_rng(0).normal(size=100).astype(np.float32)
    with Record(tmp_path, after=0) as record:
        for step, value in enumerate(values, 1):
            record.write(step, {"loss": float(value)})
    np.testing.assert_array_equal(np.array([r["loss"] for r in read_metrics(tmp_path)], np.float32), values)


def test_a_record_is_one_line_whatever_its_clips_are_called_and_may_be_cut_within_a_letter(tmp_path):
    remark = {"spike": 9.0, "examples": ["one\u2028two\x85three.wav", "鐘.wav"]}
    with Record(tmp_path, after=0) as record:
        record.write(1, loss(1))
        record.remark(2, remark)
        record.write(2, loss(2))
    assert read_metrics(tmp_path) == [{"step": 1, **loss(1)}, {"step": 2, **remark}, {"step": 2, **loss(2)}]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().partition("鐘".encode())[0] + b"\xe9")
    assert read_metrics(tmp_path) == [{"step": 1, **loss(1)}]


@pytest.mark.parametrize("records", [[], [{"loss": 2.0}], [{"loss": 2.0}, {"eval_loss": 1.5}], [{"eval_loss": 1.5}]])
def test_any_run_can_be_drawn(tmp_path, records):
    with Record(tmp_path, after=0) as record:
        for step, values in enumerate(records, 1):
            record.write(step, values)
    assert plot_losses(tmp_path).read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.parametrize(
    "line",
    ["12", "{}", "[]", "null", '{"step": "2", "loss": 1.0}', '{"step": true}', '{"step": 2, "eval_loss": "low"}', "{"],
)
def test_a_line_that_is_no_record_is_named_and_nothing_is_lost(tmp_path, line):
    with Record(tmp_path, after=0) as record:
        record.write(1, loss(1))
    path = tmp_path / "metrics.jsonl"
    written = path.read_text() + line + "\n" + json.dumps({"step": 3, **loss(3)}) + "\n"
    path.write_text(written)
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a record of a step"):
        Record(tmp_path, after=3)
    assert path.read_text() == written

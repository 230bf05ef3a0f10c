"""What is written down while a run continues: metrics.jsonl and TensorBoard.

metrics.jsonl has one line per recorded step, in order, each step once, also after a run was killed and resumed:
{"step": 12, "loss": 3.1, "tokens": 40.0, ...} for a train step, {"step": 500, "eval_loss": 2.9, "eval_tokens": 800.0,
"listening": -0.1, "answers": [{"clip", "question", "reference", "answer"}]} for an evaluation after so many steps.
What stood out has a line of its own, with the clips of its batch:
{"step": 12, "skipped": "loss is nan", "examples": [...]} or {"step": 12, "spike": 9.1, "examples": [...]}. What is not
finite is null. Nothing in it depends on the clock: two runs with one seed write the same file.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from mlingo_jax.errors import UserError
from mlingo_jax.files import write_atomic
from mlingo_jax.processes import broadcast, is_primary

FILE = "metrics.jsonl"


class Record:
    """Appends to a run's metrics.jsonl and TensorBoard files, resuming after step `after`. A context manager.

    evaluations: the held-out loss after each step that was followed by an evaluation. Of several processes only the
    first one reads and writes; it tells the others of the evaluations.
    """

    def __init__(self, workdir: Path, *, after: int):
        self._writes = is_primary()
        path, records = workdir / FILE, read_metrics(workdir) if self._writes else []
        kept = [record for record in records if record["step"] <= after]
        losses = [(r["step"], math.nan if r["eval_loss"] is None else r["eval_loss"]) for r in kept if "eval_loss" in r]
        self.evaluations: dict[int, float] = dict(broadcast(losses))
        if not self._writes:
            return
        # The records of later steps will come again.
        write_atomic(path, (json.dumps(record, ensure_ascii=False) + "\n" for record in kept))
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=after + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line for a step. Floats are written so that they read back exactly."""
        self.remark(step, _finite(metrics))
        self.board(step, metrics)

    def evaluation(
        self,
        step: int,
        loss: float,
        tokens: float,
        *,
        listening: float | None = None,
        answers: Sequence[Mapping[str, str]] = (),
    ) -> None:
        """The held-out loss after a step, over so many tokens.

        And how far it is below that with other clips' music, as a negative number; and some answers.
        """
        self.evaluations[step] = loss
        metrics = {"eval_loss": loss, "eval_tokens": tokens}
        metrics |= {} if listening is None else {"listening": listening}
        self.remark(step, _finite(metrics) | ({"answers": list(answers)} if answers else {}))
        self.board(step, metrics)
        if answers and self._writes:
            self._board.add_text("held-out answers", _as_markdown(answers), step)

    def remark(self, step: int, values: Mapping[str, Any]) -> None:
        """One line of JSON values, to metrics.jsonl alone."""
        if not self._writes:
            return
        self._file.write(json.dumps({"step": step, **values}, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def board(self, step: int, metrics: Mapping[str, float]) -> None:
        """To TensorBoard alone: for what depends on the clock."""
        for name, value in metrics.items() if self._writes else ():
            if math.isfinite(value):
                self._board.add_scalar(name, value, step)

    def sync(self) -> None:
        """Makes sure that what was written is on the disk."""
        if not self._writes:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writes:
            self._file.close()
            self._board.close()


def _as_markdown(answers: Sequence[Mapping[str, str]]) -> str:
    return "\n".join(
        f"- `{one['clip']}` {one['question']}\n    - true: {one['reference']}\n    - **{one['answer'] or '(nothing)'}**"
        for one in answers
    )


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def read_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """A run's records in order; a last line that was cut off by a kill is left out.

    Raises:
        UserError: another line is not a record, so that what comes after it may not be its run's.
    """
    path = Path(workdir) / FILE
    # Bytes: the cut may go through a letter, and a clip's name may hold what Python takes for the end of a line.
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    records = [_read_record(line) for line in lines]
    if records[-1] is None:
        records.pop()
    if None in records:
        raise UserError(
            f"{path}:{records.index(None) + 1}: not a record of a step; put the file back as it was, or take it out"
        )
    return [record for record in records if record is not None]


def _read_record(line: bytes) -> dict[str, Any] | None:
    """A line's record; None if it is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    numbers = [record[name] for name in ("loss", "eval_loss") if name in record]
    return record if all(n is None or type(n) in (int, float) for n in numbers) else None

"""Writing a run's checkpoints: adapter, optimiser, step, the data iterator's state, the towers' identity; no towers.

A checkpoint (`mlingo_jax.runs.checkpoints` reads it) is written under another name, read back, and only then renamed:
what is called a checkpoint was good once. What is not good any more is put aside, never removed.
"""

import contextlib
import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from glob import escape
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from mlingo_jax.errors import UserError
from mlingo_jax.files import sha256_of, write_atomic
from mlingo_jax.processes import barrier, is_primary
from mlingo_jax.runs.checkpoints import (
    SUMS,
    CheckpointState,
    files_of,
    first_line,
    plain_path,
    read_checkpoint,
)
from mlingo_jax.runs.folder import CHECKPOINTS, checkpoint_steps, read_run

# What a checkpoint's name ends in while it is written, or once it has been passed over.
_UNFINISHED, _ASIDE = ".unfinished", ".aside"


class Checkpoints:
    """Writes the checkpoints of a run, in the background. A context manager; the run has its `run.json` already.

    The newest `keep` are kept, and the `best` with the lowest of `losses`: the held-out loss after a step, for whoever
    evaluates to fill in. Of several processes all save; the first one writes, and reads back.

    A checkpoint that cannot be written (a full disk), or is read back as something else, leaves those before it as they
    are and raises `UserError`: here, or at the next save, or at the end of the context.
    """

    def __init__(self, workdir: Path, *, keep: int, best: int, losses: Mapping[int, float]):
        self._folder = workdir.resolve() / CHECKPOINTS
        self._run = read_run(workdir).get("id")
        self._keep, self._best, self._losses = keep, best, losses
        self._thread = ThreadPoolExecutor(1)
        self._pending: tuple[int, Future[None]] | None = None
        self._folder.mkdir(exist_ok=True)
        self._exit = contextlib.ExitStack()
        if jax.process_count() > 1 and escape(str(self._folder)) != str(self._folder):
            raise UserError(
                f"{workdir}: several processes cannot save into a folder whose path has [, ], * or ? in it; choose "
                "another --config.workdir"
            )
        self._orbax = self._exit.enter_context(plain_path(self._folder))
        # Left by a kill; the second is of an earlier version.
        for name in (f"*{_UNFINISHED}*", "*.orbax-checkpoint-tmp*") if is_primary() else ():
            for unfinished in self._folder.glob(name):
                shutil.rmtree(unfinished)

    def save(self, saved: CheckpointState, towers: Mapping[str, Any]) -> None:
        """Starts writing a checkpoint. The arrays must not change afterwards. towers: their identity."""
        self.wait()
        self._check_space(saved)
        metadata: dict[str, Any] = {name: getattr(saved, name) for name in ("data", "watch", "unreadable")}
        metadata |= {"towers": dict(towers), "run": self._run, "step": saved.step}
        # Begun here and not in the thread: the processes compare their paths by a collective.
        response = ocp.save_checkpointables_async(
            str(self._orbax / self._unfinished(saved.step).name),
            {**saved.trained, "optimizer": saved.optimizer},
            custom_metadata=metadata,
            overwrite=True,
        )
        self._pending = saved.step, self._thread.submit(self._finish, response, saved)

    def wait(self) -> None:
        """Waits for the checkpoint that is being written; all processes must call it."""
        step = self._join()
        if step is None or jax.process_count() == 1:
            return
        barrier("the checkpoint is whole")
        if not is_primary():
            # Also since Orbax counts what each process does, and saves only where all have done the same.
            try:
                read_checkpoint(self._folder / str(step), self._run, step)
            except Exception as error:
                raise UserError(
                    f"{self._folder / str(step)}: process {jax.process_index()} does not find there what process 0 has "
                    f"saved ({first_line(error)}); the workdir must be one folder that all of them share"
                ) from error

    def _join(self) -> int | None:
        """Waits for this process's part of it; the step that it is of."""
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        try:
            pending[1].result()
        except Exception as error:
            # Orbax passes on whatever its threads raised: ValueError for a full disk, among others.
            code = re.search(r"os_error_code='(\d+)'|\[Errno (\d+)\]", str(error))
            reason = os.strerror(int(code[1] or code[2])) if code else f"{error}".partition("\n")[0]
            raise UserError(self._failure(pending[0], reason)) from error
        return pending[0]

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._join()
        except UserError:
            # What ended the run matters more than that its last checkpoint failed as well.
            if kind is None:
                raise
        finally:
            self._thread.shutdown()
            self._exit.close()

    def _unfinished(self, step: int) -> Path:
        return self._folder / f"{step}{_UNFINISHED}"

    def _finish(self, response: Any, saved: CheckpointState) -> None:
        # Any: Orbax's AsyncResponse is a protocol that cannot be checked at run time.
        response.result()
        if not is_primary():
            return
        unfinished, place = self._unfinished(saved.step), self._folder / str(saved.step)
        _write_sums(unfinished)
        _require_same(read_checkpoint(unfinished, self._run, saved.step), saved)
        if place.exists():
            shutil.rmtree(place)
        os.rename(unfinished, place)
        self._remove_old()

    def _remove_old(self) -> None:
        # Judged by the losses of now: a checkpoint that a stop had saved was evaluated later.
        steps = checkpoint_steps(self._folder)
        judged = [step for step in steps if math.isfinite(self._losses.get(step, math.nan))]
        kept = {*steps[-self._keep :], *sorted(judged, key=self._losses.__getitem__)[: self._best]}
        for step in set(steps) - kept:
            shutil.rmtree(self._folder / str(step))

    def _check_space(self, saved: CheckpointState) -> None:
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves((saved.trained, saved.optimizer))) + (1 << 20)
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            reason = f"it needs {needed / 1e6:.2f} MB, the disk has {free / 1e6:.2f} MB left"
            raise UserError(self._failure(saved.step, reason))

    def _failure(self, step: int, reason: str) -> str:
        steps = [s for s in checkpoint_steps(self._folder) if s != step]
        kept = f"the checkpoint of step {steps[-1]} stays" if steps else "there is none yet"
        return (
            f"{self._folder}: the checkpoint of step {step} could not be saved: {reason}; {kept}. "
            "Make room and give the same command again"
        )


def set_aside(workdir: str | Path, *, after: int) -> None:
    """Renames the checkpoints of later steps, which were passed over, to what is none.

    They may be wanted for what can still be read of them.
    """
    folder = Path(workdir) / CHECKPOINTS
    for step in checkpoint_steps(folder):
        if step > after:
            places = (folder / f"{step}{_ASIDE}{number}" for number in itertools.chain([""], itertools.count(2)))
            os.rename(folder / str(step), next(place for place in places if not place.exists()))


def _require_same(read: CheckpointState, saved: CheckpointState) -> None:
    """Raises ValueError unless every number that was read back is the one that was to be saved, to the bit."""
    pairs = jax.tree.map(_is_same, (read.trained, read.optimizer), (saved.trained, saved.optimizer))
    if not all(jax.tree.leaves(pairs)) or json.dumps(read.data) != json.dumps(saved.data):
        raise ValueError("what is read back is not what was saved")


def _is_same(read: Any, saved: Any) -> bool:
    read, saved = np.asarray(read), np.asarray(saved)
    return read.dtype == saved.dtype and read.shape == saved.shape and read.tobytes() == saved.tobytes()


def _write_sums(folder: Path) -> None:
    lines = [f"{sha256_of(path)}  {path.relative_to(folder).as_posix()}\n" for path in files_of(folder)]
    write_atomic(folder / SUMS, lines)


def to_host(tree: Any) -> Any:
    """The tree's arrays as numpy copies: a checkpoint is written while the originals are donated to the next step."""
    for leaf in jax.tree.leaves(tree):
        # All under way before the first is waited for.
        leaf.copy_to_host_async()
    return jax.tree.map(lambda x: np.array(x), tree)

"""Checkpoints of a run: adapter, optimiser, step, the data iterator's state, the towers' identity; never the towers.

A run's folder holds `run.json` (what the run is) and `checkpoints/STEP/` (Orbax). Beside Orbax's files each checkpoint
gets SHA256SUMS (`sha256sum -c` reads it): Orbax itself does not notice a flipped bit.
"""

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from mlingo_jax.differences import current_names
from mlingo_jax.errors import UserError
from mlingo_jax.files import write_atomic
from mlingo_jax.processes import is_primary
from mlingo_jax.weights.folders import CHECKPOINTS, RUN, run_of

SUMS = "SHA256SUMS"


@dataclasses.dataclass(frozen=True)
class CheckpointState:
    """What a checkpoint holds, as numpy arrays and JSON values.

    data: the state of the data's iterator. watch: that of the loop's `LossMonitor`. unreadable: why clips could not be
    read.
    """

    step: int
    adapter: dict[str, Any]
    optimizer: dict[str, Any]
    data: dict[str, Any]
    watch: dict[str, Any] = dataclasses.field(default_factory=dict)
    unreadable: list[str] = dataclasses.field(default_factory=list)


class Checkpoints:
    """Writes the checkpoints of a run, in the background. A context manager.

    The newest `keep` are kept, and the `best` with the lowest of `losses`: the held-out loss after a step, for whoever
    evaluates to fill in.

    A checkpoint that cannot be written (a full disk) leaves those before it as they are and raises `UserError`: here,
    or at the next save, or at the end of the context.
    """

    def __init__(self, workdir: Path, *, keep: int, best: int, losses: Mapping[int, float]):
        self._folder = workdir / CHECKPOINTS
        self._thread = ThreadPoolExecutor(1)
        self._pending: tuple[int, Future[None]] | None = None
        # Left by a kill. Orbax would remove them too, but in the background: a full disk has to be free at once.
        for unfinished in self._folder.glob("*.orbax-checkpoint-tmp*") if is_primary() else ():
            shutil.rmtree(unfinished)
        policies = ocp.training.preservation_policies
        # Any: Orbax's policies do not fit the protocol that it declares for them.
        kept: Any = policies.AnyPreservationPolicy([policies.LatestN(keep), _Lowest(best, losses)])
        self._checkpointer = ocp.training.Checkpointer(str(self._folder.absolute()), preservation_policy=kept)

    def save(self, saved: CheckpointState, towers: Mapping[str, Any]) -> None:
        """Starts writing a checkpoint. The arrays must not change afterwards. towers: their identity."""
        self.wait()
        self._check_space(saved)
        metadata: dict[str, Any] = {name: getattr(saved, name) for name in ("data", "watch", "unreadable")}
        response = self._checkpointer.save_checkpointables_async(
            saved.step,
            {"adapter": saved.adapter, "optimizer": saved.optimizer},
            custom_metadata=metadata | {"towers": dict(towers)},
            force=True,
        )
        assert response is not None
        self._pending = saved.step, self._thread.submit(_finish, response, self._folder / str(saved.step))

    def wait(self) -> None:
        """Waits for the checkpoint that is being written."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending[1].result()
        except Exception as error:
            # Orbax passes on whatever its threads raised: ValueError for a full disk, among others.
            code = re.search(r"os_error_code='(\d+)'|\[Errno (\d+)\]", str(error))
            reason = os.strerror(int(code[1] or code[2])) if code else f"{error}".partition("\n")[0]
            raise UserError(self._failure(pending[0], reason)) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except UserError:
            # What ended the run matters more than that its last checkpoint failed as well.
            if kind is None:
                raise
        finally:
            self._thread.shutdown()
            if kind is None:
                self._checkpointer.close()

    def _check_space(self, saved: CheckpointState) -> None:
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves((saved.adapter, saved.optimizer))) + (1 << 20)
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            reason = f"it needs {needed / 1e6:.2f} MB, the disk has {free / 1e6:.2f} MB left"
            raise UserError(self._failure(saved.step, reason))

    def _failure(self, step: int, reason: str) -> str:
        steps = [s for s in _steps(self._folder) if s != step]
        kept = f"the checkpoint of step {steps[-1]} stays" if steps else "there is none yet"
        return (
            f"{self._folder}: the checkpoint of step {step} could not be saved: {reason}; {kept}. "
            "Make room and give the same command again"
        )


@dataclasses.dataclass(frozen=True)
class _Lowest:
    """Keeps the checkpoints with the lowest losses.

    Not Orbax's BestN, whose losses are in the checkpoints: one that a stop had saved before its evaluation would never
    have one.
    """

    number: int
    losses: Mapping[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """As Orbax asks for it."""
        judged = [c.step for c in checkpoints if math.isfinite(self.losses.get(c.step, math.nan))]
        best = sorted(judged, key=self.losses.__getitem__)[: self.number]
        return [c.step in best for c in checkpoints]


def is_run(folder: str | Path) -> bool:
    """Whether a folder is that of a training run."""
    return (Path(folder) / RUN).is_file()


def read_run(source: str | Path) -> dict[str, Any]:
    """The `run.json` of a run, or of a checkpoint's run. Raises `UserError` if it is missing or not JSON."""
    workdir = run_of(source) or Path(source)
    path = workdir / RUN
    try:
        return current_names(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise UserError(f"{workdir}: no {RUN} in it, so it is not the folder of a training run") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); the run cannot be resumed, choose another workdir") from error


def load_run_adapter(source: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The adapter's parameters (numpy, float32) of a run's last good checkpoint, or of a named one, and its `run.json`.

    Args:
        source: the run's folder, or one of its checkpoints, WORKDIR/checkpoints/STEP.

    Raises:
        UserError: the folder is not a run's, or has no good checkpoint yet; the named checkpoint is damaged.
    """
    run = read_run(source)
    if is_run(source):
        saved = restore(source)
        if saved is None:
            raise UserError(f"{source}: the run has no checkpoint yet; let it train further")
        return saved.adapter, run
    try:
        return _read(Path(source).absolute()).adapter, run
    except Exception as error:
        # As in `restore`.
        raise UserError(f"{source}: damaged checkpoint ({_reason(error)}); name another one, or the run") from error


def restore(workdir: str | Path, *, remove_damaged: bool = False) -> CheckpointState | None:
    """The last good checkpoint, or None if there never was one. Warns of damaged ones, and removes them if asked to.

    Raises:
        UserError: there are checkpoints and all of them are damaged.
    """
    folder = Path(workdir).absolute() / CHECKPOINTS
    damaged: list[int] = []
    for step in reversed(_steps(folder)):
        try:
            saved = _read(folder / str(step))
        except Exception as error:
            # Orbax and its storage raise many kinds of errors over a damaged file; each means the same here.
            reason = _reason(error)
            warnings.warn(f"{folder / str(step)}: damaged checkpoint ({reason}), trying the one before", stacklevel=2)
            damaged.append(step)
            continue
        if remove_damaged:
            for bad in damaged:
                shutil.rmtree(folder / str(bad))
        return saved
    if damaged:
        raise UserError(f"{folder}: all checkpoints are damaged ({damaged}); remove the folder to start anew")
    return None


def _steps(folder: Path) -> list[int]:
    """The steps of all finished checkpoints, rising; one that was being written still has another name."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


def _read(folder: Path) -> CheckpointState:
    _check_sums(folder)
    # Each process reads by itself: else Orbax waits for all to read at the same time.
    process = jax.process_index()
    own = ocp.Context()
    own.multiprocessing.primary_host, own.multiprocessing.active_processes = process, {process}
    with own:
        items = ocp.load_checkpointables(str(folder))
        metadata = ocp.checkpointables_metadata(str(folder)).custom_metadata
    states: dict[str, Any] = current_names(metadata) if isinstance(metadata, dict) else {}
    if not isinstance(states.get("data"), dict):
        raise ValueError("its metadata cannot be read")
    watch, unreadable = states.get("watch", {}), states.get("unreadable", [])
    adapter, optimizer = current_names(items["adapter"]), current_names(items["optimizer"])
    return CheckpointState(int(folder.name), adapter, optimizer, states["data"], watch, unreadable)


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and SUMS not in path.name)


def _finish(response: Any, folder: Path) -> None:
    # Any: Orbax's AsyncResponse is a protocol that cannot be checked at run time.
    response.result()
    if is_primary():
        _write_sums(folder)


def _write_sums(folder: Path) -> None:
    lines = [f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in _files(folder)]
    write_atomic(folder / SUMS, lines)


def _check_sums(folder: Path) -> None:
    """Raises ValueError for a file that is not what was written; a run killed before it wrote the sums left none."""
    if not (folder / SUMS).exists():
        return
    for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        if not (folder / name).is_file() or _sha256(folder / name) != digest:
            raise ValueError(f"{name} is missing or not what was written")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_host(tree: Any) -> Any:
    """The tree's arrays as numpy copies: a checkpoint is written while the originals are donated to the next step."""
    for leaf in jax.tree.leaves(tree):
        # All under way before the first is waited for.
        leaf.copy_to_host_async()
    return jax.tree.map(lambda x: np.array(x), tree)

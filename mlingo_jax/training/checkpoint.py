"""Checkpoints of a run: adapter, optimiser, step, the data iterator's state, the towers' identity; never the towers.

A run's folder holds `run.json` (what the run is) and `checkpoints/STEP/` (Orbax). Beside Orbax's files each checkpoint
has SHA256SUMS (`sha256sum -c` reads it): Orbax itself does not notice a flipped bit. Its metadata say which run and
which step it is of. It is written under another name, read back, and only then renamed: what is called a checkpoint was
good once. What is not good any more is put aside, never removed.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import math
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from glob import escape
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from mlingo_jax.differences import current_names
from mlingo_jax.errors import UserError
from mlingo_jax.files import write_atomic
from mlingo_jax.processes import barrier, is_primary
from mlingo_jax.weights.folders import CHECKPOINTS, RUN, run_of

SUMS = "SHA256SUMS"
# What a checkpoint's name ends in while it is written, or once it has been passed over.
_UNFINISHED, _ASIDE = ".unfinished", ".aside"


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
    """Writes the checkpoints of a run, in the background. A context manager; the run has its `run.json` already.

    The newest `keep` are kept, and the `best` with the lowest of `losses`: the held-out loss after a step, for whoever
    evaluates to fill in. Of several processes all save; the first one writes, and reads back.

    A checkpoint that cannot be written (a full disk), or is read back as something else, leaves those before it as they
    are and raises `UserError`: here, or at the next save, or at the end of the context.
    """

    def __init__(self, workdir: Path, *, keep: int, best: int, losses: Mapping[int, float]):
        self._folder = workdir.absolute() / CHECKPOINTS
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
        self._orbax = self._exit.enter_context(_plain(self._folder))
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
            {"adapter": saved.adapter, "optimizer": saved.optimizer},
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
                _read(self._folder / str(step), self._run, step)
            except Exception as error:
                raise UserError(
                    f"{self._folder / str(step)}: process {jax.process_index()} does not find there what process 0 has "
                    f"saved ({_reason(error)}); the workdir must be one folder that all of them share"
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
        _require_same(_read(unfinished, self._run, saved.step), saved)
        if place.exists():
            shutil.rmtree(place)
        os.rename(unfinished, place)
        self._remove_old()

    def _remove_old(self) -> None:
        # Judged by the losses of now: a checkpoint that a stop had saved was evaluated later.
        steps = _steps(self._folder)
        judged = [step for step in steps if math.isfinite(self._losses.get(step, math.nan))]
        kept = {*steps[-self._keep :], *sorted(judged, key=self._losses.__getitem__)[: self._best]}
        for step in set(steps) - kept:
            shutil.rmtree(self._folder / str(step))

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


def is_run(folder: str | Path) -> bool:
    """Whether a folder is that of a training run.

    Raises:
        UserError: it has checkpoints, but does not say of which run.
    """
    if (Path(folder) / RUN).is_file():
        return True
    if _steps(Path(folder) / CHECKPOINTS):
        raise UserError(
            f"{folder}: has checkpoints, but no {RUN}, which says of which run they are; put it back, or choose "
            "another workdir"
        )
    return False


def read_run(source: str | Path) -> dict[str, Any]:
    """The `run.json` of a run, or of a checkpoint's run. Raises `UserError` if it is missing or not JSON."""
    workdir = run_of(source) or Path(source)
    path = workdir / RUN
    try:
        run = current_names(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise UserError(f"{workdir}: no {RUN} in it, so it is not the folder of a training run") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); put it back as it was, or choose another workdir") from error
    if not isinstance(run, dict):
        raise UserError(f"{path}: expected an object, found {type(run).__name__}; put it back as it was")
    return run


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
    folder = Path(source).absolute()
    try:
        return _read(folder, run.get("id"), int(folder.name)).adapter, run
    except Exception as error:
        # As in `restore`.
        raise UserError(f"{source}: not a good checkpoint ({_reason(error)}); name another one, or the run") from error


def restore(workdir: str | Path) -> CheckpointState | None:
    """The last good checkpoint, or None if there never was one. Warns of those that are damaged, or another run's.

    Raises:
        UserError: there are checkpoints and none of them is good, or nothing says of which run they are.
    """
    folder = Path(workdir).absolute() / CHECKPOINTS
    run = read_run(workdir).get("id") if is_run(workdir) else None
    passed: dict[int, str] = {}
    for step in reversed(_steps(folder)):
        try:
            saved = _read(folder / str(step), run, step)
        except Exception as error:
            # Orbax and its storage raise many kinds of errors over a damaged file; each means the same here.
            passed[step] = _reason(error)
            warnings.warn(f"{folder / str(step)}: passed over ({passed[step]}), trying the one before", stacklevel=2)
            continue
        return saved
    if passed:
        reasons = "; ".join(f"{step}: {reason}" for step, reason in passed.items())
        raise UserError(
            f"{folder}: none of the checkpoints is good ({reasons}); they stay as they are. If the disk was at fault, "
            "put back what it lost; else choose another workdir"
        )
    return None


def set_aside(workdir: str | Path, *, after: int) -> None:
    """Renames the checkpoints of later steps, which were passed over, to what is none.

    They may be wanted for what can still be read of them.
    """
    folder = Path(workdir) / CHECKPOINTS
    for step in _steps(folder):
        if step > after:
            places = (folder / f"{step}{_ASIDE}{number}" for number in itertools.chain([""], itertools.count(2)))
            os.rename(folder / str(step), next(place for place in places if not place.exists()))


def _steps(folder: Path) -> list[int]:
    """The steps of all finished checkpoints, rising; one that was being written still has another name."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


def _read(folder: Path, run: str | None, step: int) -> CheckpointState:
    """Reads the checkpoint of this run and step. Raises many kinds of errors if it is not good."""
    _check_sums(folder)
    with _alone(), _plain(folder) as path:
        metadata = ocp.checkpointables_metadata(str(path)).custom_metadata
        states: dict[str, Any] = current_names(metadata) if isinstance(metadata, dict) else {}
        if not isinstance(states.get("data"), dict):
            raise ValueError("its metadata cannot be read")
        # Neither stands in checkpoints from before runs had an identity.
        if states.get("run") != run:
            raise ValueError(f"it is of another run, {states.get('run')}, not of {run}")
        if states.get("step", step) != step:
            raise ValueError(f"it is the checkpoint of step {states['step']}")
        items = ocp.load_checkpointables(str(path))
    watch, unreadable = states.get("watch", {}), states.get("unreadable", [])
    adapter, optimizer = current_names(items["adapter"]), current_names(items["optimizer"])
    return CheckpointState(step, adapter, optimizer, states["data"], watch, unreadable)


@contextlib.contextmanager
def _plain(folder: Path) -> Iterator[Path]:
    """A path of this folder that Orbax can use: it globs paths without escaping them, so that it would not find what
    it has written where they look like a pattern; such a folder is reached by a link."""
    if escape(str(folder)) == str(folder):
        yield folder
    else:
        with tempfile.TemporaryDirectory() as temporary:
            link = Path(temporary) / CHECKPOINTS
            link.symlink_to(folder)
            yield link


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Orbax reads for this process alone: else it waits for all to read at the same time."""
    process = jax.process_index()
    own = ocp.Context()
    own.multiprocessing.primary_host, own.multiprocessing.active_processes = process, {process}
    # The tasks that it leaves behind when it fails would print a traceback each.
    asyncio = logging.getLogger("asyncio")
    level = asyncio.level
    asyncio.setLevel(logging.CRITICAL + 1)
    try:
        with own:
            yield
    finally:
        asyncio.setLevel(level)


def _require_same(read: CheckpointState, saved: CheckpointState) -> None:
    """Raises ValueError unless every number that was read back is the one that was to be saved, to the bit."""
    pairs = jax.tree.map(_is_same, (read.adapter, read.optimizer), (saved.adapter, saved.optimizer))
    if not all(jax.tree.leaves(pairs)) or json.dumps(read.data) != json.dumps(saved.data):
        raise ValueError("what is read back is not what was saved")


def _is_same(read: Any, saved: Any) -> bool:
    read, saved = np.asarray(read), np.asarray(saved)
    return read.dtype == saved.dtype and read.shape == saved.shape and read.tobytes() == saved.tobytes()


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and SUMS not in path.name)


def _write_sums(folder: Path) -> None:
    lines = [f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in _files(folder)]
    write_atomic(folder / SUMS, lines)


def _check_sums(folder: Path) -> None:
    """Raises ValueError for a file that is missing, or not what was written, or that nobody has vouched for."""
    if not (folder / SUMS).is_file():
        raise ValueError(f"there is no {SUMS} in it")
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = {path.relative_to(folder).as_posix() for path in _files(folder)}
    if not sums or found - sums.keys():
        raise ValueError(f"{SUMS} does not have {', '.join(sorted(found - sums.keys())) or 'any file'}")
    for name, digest in sums.items():
        if name not in found or _sha256(folder / name) != digest:
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

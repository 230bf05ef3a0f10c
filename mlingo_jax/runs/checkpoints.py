"""A run's checkpoints read back: adapter, optimiser, step, the data iterator's state.

Beside Orbax's files each checkpoint has SHA256SUMS (`sha256sum -c` reads it): Orbax itself does not notice a flipped
bit. Its metadata say which run and which step it is of.
"""

import contextlib
import dataclasses
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator
from glob import escape
from pathlib import Path
from typing import Any

import jax
import tensorstore
from orbax.checkpoint import v1 as ocp

from mlingo_jax.differences import current_names
from mlingo_jax.errors import UserError
from mlingo_jax.files import sha256_of
from mlingo_jax.runs.folder import CHECKPOINTS, checkpoint_steps, is_run, read_run

SUMS = "SHA256SUMS"


@dataclasses.dataclass(frozen=True)
class CheckpointState:
    """What a checkpoint holds, as numpy arrays and JSON values.

    trained: the trained parameters by the names of their parts, each an item of its own in the checkpoint: `adapter`.
    data: the state of the data's iterator. watch: that of the loop's `LossMonitor`. unreadable: why clips could not be
    read.
    """

    step: int
    trained: dict[str, Any]
    optimizer: dict[str, Any]
    data: dict[str, Any]
    watch: dict[str, Any] = dataclasses.field(default_factory=dict)
    unreadable: list[str] = dataclasses.field(default_factory=list)


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
        return saved.trained["adapter"], run
    folder = Path(source).resolve()
    try:
        return read_checkpoint(folder, run.get("id"), int(folder.name)).trained["adapter"], run
    except Exception as error:
        # As in `restore`.
        reason = first_line(error)
        raise UserError(f"{source}: not a good checkpoint ({reason}); name another one, or the run") from error


def restore(workdir: str | Path) -> CheckpointState | None:
    """The last good checkpoint, or None if there never was one. Warns of those that are damaged, or another run's.

    Raises:
        UserError: there are checkpoints and none of them is good, or nothing says of which run they are.
    """
    folder = Path(workdir).resolve() / CHECKPOINTS
    run = read_run(workdir).get("id") if is_run(workdir) else None
    passed: dict[int, str] = {}
    for step in reversed(checkpoint_steps(folder)):
        try:
            saved = read_checkpoint(folder / str(step), run, step)
        except Exception as error:
            # Orbax and its storage raise many kinds of errors over a damaged file; each means the same here.
            passed[step] = first_line(error)
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


def read_checkpoint(folder: Path, run: str | None, step: int) -> CheckpointState:
    """Reads the checkpoint of this run and step. Raises many kinds of errors if it is not good."""
    _check_sums(folder)
    _check_stores(folder)
    with _alone(), plain_path(folder) as path:
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
    trained = {name: current_names(item) for name, item in items.items()}
    optimizer = _by_parts(trained.pop("optimizer"))
    return CheckpointState(step, trained, optimizer, states["data"], watch, unreadable)


def _by_parts(optimizer: dict[str, Any]) -> dict[str, Any]:
    """The optimiser's state by the names of what is trained; in earlier checkpoints that is the adapter, unnamed."""
    gradient = optimizer.get("gradient")
    if gradient is None or "adapter" in gradient:
        return optimizer
    moments = {re.sub(r"\b(mu|nu)\.", r"\1.adapter.", name): leaf for name, leaf in optimizer["opt_state"].items()}
    return {**optimizer, "gradient": {"adapter": gradient}, "opt_state": moments}


@contextlib.contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """A path of this folder that Orbax can use.

    It globs paths without escaping them, so that it would not find what it has written where they look like a pattern;
    such a folder is reached by a link.
    """
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


def first_line(error: Exception) -> str:
    """An error's first line, or what kind it is if it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def files_of(folder: Path) -> list[Path]:
    """A checkpoint's files, but those of its checksums."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and SUMS not in path.name)


def _check_sums(folder: Path) -> None:
    """Raises ValueError for a file that is missing, or not what was written, or that nobody has vouched for."""
    if not (folder / SUMS).is_file():
        raise ValueError(f"there is no {SUMS} in it")
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = {path.relative_to(folder).as_posix() for path in files_of(folder)}
    if not sums or found - sums.keys():
        raise ValueError(f"{SUMS} does not have {', '.join(sorted(found - sums.keys())) or 'any file'}")
    for name, digest in sums.items():
        if name not in found or sha256_of(folder / name) != digest:
            raise ValueError(f"{name} is missing or not what was written")


def _check_stores(folder: Path) -> None:
    """Raises ValueError for an array store that does not open.

    Orbax would say so too, but the parallel reads that it leaves behind then print a traceback each, at any time.
    """
    for manifest in folder.glob("*/manifest.ocdbt"):
        store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{manifest.parent}/"}}
        tensorstore.KvStore.open(store).result().list().result()

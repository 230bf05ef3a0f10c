"""A training run's folder: `run.json`, what the run is, and `checkpoints/STEP/`."""

import json
from pathlib import Path
from typing import Any

from mlingo_jax.differences import current_names
from mlingo_jax.errors import UserError

RUN, CHECKPOINTS = "run.json", "checkpoints"
# What the settings, run.json and checkpoints call the towers.
TOWERS = {"encoder": "mert", "llm": "llm"}


def run_of(source: str | Path) -> Path | None:
    """The training run that a folder is, or that it is a checkpoint of (RUN/checkpoints/STEP); None if neither."""
    source = Path(source)
    if (source / RUN).is_file():
        return source
    folder = source.resolve()
    above = folder.parent.parent
    is_checkpoint = folder.is_dir() and folder.name.isdecimal() and folder.parent.name == CHECKPOINTS
    return above if is_checkpoint and (above / RUN).is_file() else None


def is_run(folder: str | Path) -> bool:
    """Whether a folder is that of a training run.

    Raises:
        UserError: it has checkpoints, but does not say of which run.
    """
    if (Path(folder) / RUN).is_file():
        return True
    if checkpoint_steps(Path(folder) / CHECKPOINTS):
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


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of all finished checkpoints, rising; one that was being written still has another name."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())

"""Where a model's parts are: what is given, or else what its adapter's run or folder says."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlingo_jax.data.prompt import PromptSettings
from mlingo_jax.data.resampling import Resampling
from mlingo_jax.errors import UserError
from mlingo_jax.models.quantization import Quantization
from mlingo_jax.runs.folder import read_run, run_of
from mlingo_jax.settings import EncoderConfig


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where a model's parts are and how it is used, as far as that is known before weights are read.

    run: the training run's `run.json`, if the adapter is one's.
    """

    mert: str | Path
    llm: str | Path
    quantization: Quantization
    prompt: PromptSettings
    frames_per_token: int
    resampling: Resampling
    run: dict[str, Any] | None


def find_sources(
    mert: str | Path | None = None,
    llm: str | Path | None = None,
    adapter: str | Path | None = None,
    quantization: Quantization | None = None,
    prompt: PromptSettings | None = None,
    frames_per_token: int | None = None,
    resampling: Resampling | None = None,
) -> Sources:
    """What `load` loads: what is given, or else what the adapter's run or folder says.

    Raises:
        UserError: a tower is neither given nor known, or is not there any more.
    """
    run = None
    if adapter is not None and run_of(adapter):
        run = read_run(adapter)
        mert, llm = mert or tower_of(run, "mert", adapter), llm or tower_of(run, "llm", adapter)
        prompt = prompt or PromptSettings.from_json(run["prompt"])
        frames_per_token = frames_per_token or run["frames_per_token"]
        resampling = resampling or run.get("resampling")
        quantization = quantization or run["llm"]["identity"].get("quantization")
    elif adapter is not None and Path(adapter).is_dir():
        mert, llm = mert or adapter, llm or adapter
    if mert is None or llm is None:
        lacking = " and ".join(name for name, given in (("mert", mert), ("llm", llm)) if given is None)
        raise UserError(
            f"{adapter or 'no adapter'}: does not say which towers belong to it; give {lacking}, folder or hub id"
        )
    prompt, frames_per_token = prompt or PromptSettings(), frames_per_token or EncoderConfig.frames_per_token
    return Sources(mert, llm, quantization or "none", prompt, frames_per_token, resampling or "soxr", run)


def tower_of(run: Mapping[str, Any], name: str, source: str | Path) -> str:
    """Where a run's tower is. Raises UserError if it has been moved: a hub id stays where it is."""
    folder = run[name]["folder"]
    if not folder or (Path(folder).is_absolute() and not Path(folder).exists()):
        what = {"mert": "encoder", "llm": "language model"}[name]
        raise UserError(
            f"{source}: its {what} was {folder or 'not recorded'}, and is not there; name the folder where it is now: "
            f"--{name} FOLDER, or {name}= in Python"
        )
    return folder

"""What a run is: `config.json` (its settings) and `run.json` (what it was really made of). Another run is refused.

run.json: the run's id, mert and llm (folder or hub id, identity), the checksum of the adapter before the first step,
frames_per_token, prompt, data (numbers, fingerprint, the audio's digest), seed, the adapter's architecture, versions,
git commit, devices, and the compiler's flags of the environment.
"""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import mlingo_jax
from mlingo_jax.data.prompt import PromptSettings
from mlingo_jax.data.statistics import ExampleStatistics
from mlingo_jax.differences import current_names, differences, flatten
from mlingo_jax.errors import UserError
from mlingo_jax.files import read_json, write_atomic
from mlingo_jax.flags import fields, to_json
from mlingo_jax.models.adapter import AdapterConfig
from mlingo_jax.processes import all_gather
from mlingo_jax.runs.folder import RUN, is_run, read_run
from mlingo_jax.settings import Config, PromptConfig

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "transformers", "tokenizers")
PACKAGES += ("av", "soundfile", "soxr")
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
# What a run must keep to be the same run; the rest of run.json is for the reader.
ESSENTIAL = ("mert.identity", "llm.identity", "frames_per_token", "prompt", "data", "seed")
# What runs from before it was written down do not have, nor those whose audio nobody has digested.
MAY_BE_UNKNOWN = ("data.audio", "mert.identity.rounded", "llm.identity.rounded")


def prompt_settings(prompt: PromptConfig) -> PromptSettings:
    """A run's prompt, as the data room takes it."""
    return PromptSettings(
        prompt.template, prompt.end_symbol, prompt.max_answer_tokens, (prompt.stop or prompt.end_symbol,)
    )


def describe_data(statistics: ExampleStatistics, train: int, length: int, audio: str | None) -> dict[str, Any]:
    """What run.json says of the data.

    The numbers of examples, of which the first `train` are to train on, their fingerprint, the rows' length, and the
    digest of the clips' audio.
    """
    numbers = {"train": train, "eval": len(statistics.clip) - train, "length": length}
    return {**numbers, "fingerprint": statistics.fingerprint(train), "audio": audio}


def describe_run(
    config: Config,
    *,
    mert: Mapping[str, Any],
    llm: Mapping[str, Any],
    adapter: str,
    architecture: AdapterConfig,
    data: Mapping[str, Any],
) -> dict[str, Any]:
    """`run.json` for a run with these towers ({"folder", "identity"} each), first adapter (a checksum) and data.

    id: of the run, for its checkpoints: of the settings that make it, and of what it is made of.
    """
    made_of = {
        "mert": dict(mert),
        "llm": dict(llm),
        "adapter": adapter,
        "frames_per_token": config.mert.frames_per_token,
        "resampling": config.mert.resampling,
        "prompt": prompt_settings(config.prompt).to_json(),
        "data": dict(data),
        "seed": config.seed,
    }
    return {
        "id": _digest(_fixed(config), made_of),
        **made_of,
        "adapter_config": architecture.to_json(),
        "versions": {
            "mlingo_jax": mlingo_jax.__version__,
            "python": platform.python_version(),
            "backend": " ".join(jax.devices()[0].client.platform_version.split()),
            **{name: metadata.version(name) for name in PACKAGES},
        },
        "commit": _commit(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "flags": {name: os.environ[name] for name in FLAGS if name in os.environ},
    }


def check_config(config: Config) -> None:
    """If the workdir holds a run, refuses a config that would make another one of it.

    Raises:
        UserError: a setting differs that may not; names each with both values.
    """
    workdir = Path(config.workdir)
    try:
        config.workdir.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"config.workdir: {config.workdir!r} is not UTF-8; choose another one") from error
    if not is_run(workdir):
        return
    try:
        before = current_names(read_json(workdir / "config.json"))
    except UserError as error:
        raise UserError(f"{error}; put it back as it was, or choose another workdir") from error
    fixed = _fixed(config)
    # A setting that there was not when the run began: it did what the default does.
    before = dict(flatten(json.loads(to_json(Config())))) | dict(flatten(before))
    changed = differences(before, json.loads(to_json(config)))
    _refuse(workdir, {f"config.{name}": values for name, values in changed.items() if name in fixed})


def check_alike(config: Config) -> None:
    """Of several processes, refuses those that were not all given the same settings; all must call it.

    Raises:
        UserError: on all of them; names each setting that differs, with both values.
    """
    first, *others = all_gather(json.loads(to_json(config)))
    for number, other in enumerate(others, 1):
        if changed := differences(first, other):
            listed = "; ".join(f"config.{name} is {a!r} and {b!r}" for name, (a, b) in changed.items())
            raise UserError(
                f"processes 0 and {number} were given different settings: {listed}. Give all processes the same command"
            )


def check_run(workdir: Path, run: Mapping[str, Any], parts: tuple[str, ...] = ESSENTIAL) -> None:
    """If the workdir holds a run, refuses one with other towers, another prompt or other data (or other `parts`).

    Raises:
        UserError: names what differs, with both values.
    """
    if not is_run(workdir):
        return
    changed = differences(read_run(workdir), run)
    essential = {n: v for n, v in changed.items() if n.startswith(parts) and not n.endswith("identity.name")}
    _refuse(workdir, {n: v for n, v in essential.items() if n not in MAY_BE_UNKNOWN or None not in v})


def require_towers(source: str | Path, run: Mapping[str, Any], **towers: Mapping[str, str]) -> None:
    """Refuses towers (the identities of mert and llm) that are not those between which a run trained its adapter.

    Towers of other dtypes are compared in bfloat16. Where that cannot be (one of them is quantised, or of a run in
    float32 from before its rounded checksum was kept) their configs are.

    Raises:
        UserError: names the tower, and what to do.
    """
    for part, found in towers.items():
        expected = run.get(part, {}).get("identity", {})
        same = [expected.get(name) == found.get(name) for name in ("dtype", "quantization")]
        before, now = (expected.get("weights"), found.get("weights")) if all(same) else map(_rounded, (expected, found))
        if not before or not now:
            before, now = expected.get("config"), found.get("config")
        if before != now:
            what = {"mert": "encoder", "llm": "language model"}[part]
            raise UserError(
                f"{source}: was trained with another {what}, {expected.get('name')} ({str(before)[:16]}), than "
                f"{found.get('name')} ({str(now)[:16]}); name that one, or take the adapter out of its run, with "
                f"`python -m conversion.to_pytorch {source} adapter.pth`, to use it with any that fits"
            )


def _rounded(identity: Mapping[str, str]) -> str | None:
    """A tower's checksum in bfloat16; None if it is not known."""
    if identity.get("quantization", "none") != "none":
        return None
    return identity.get("weights") if identity.get("dtype") == "bfloat16" else identity.get("rounded")


def check_encoder(workdir: Path, identity: Mapping[str, Any]) -> None:
    """If the workdir holds a run, refuses another encoder than the run's. Raises as `check_run`."""
    check_run(workdir, {"mert": {"identity": identity}}, ("mert.identity",))


def changes_since(workdir: Path, run: Mapping[str, Any]) -> list[str]:
    """What differs from when the run began, of what changes losses by rounding alone: versions, devices, flags."""
    rounding = ("versions", "devices", "commit", "flags")
    changed = differences(read_run(workdir), run)
    return [f"{name} was {a}, is {b}" for name, (a, b) in changed.items() if name.startswith(rounding)]


def write_run(workdir: Path, config: Config, run: Mapping[str, Any]) -> None:
    """Writes config.json and run.json; the folder is a run's from the moment it has run.json."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomic(workdir / "config.json", [to_json(config)])
    if not is_run(workdir):
        write_atomic(workdir / RUN, [json.dumps(run, indent=2, ensure_ascii=False), "\n"])


def _fixed(config: Config) -> dict[str, Any]:
    """The settings that make a run the run that it is."""
    values = dict(flatten(json.loads(to_json(config))))
    return {
        f.name: values[f.name] for f in fields(config) if not f.metadata.get("free") and not f.name.startswith("demo")
    }


def _digest(settings: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Of what differs between two runs: neither the folders nor the names of its towers count."""
    counted = {n: v for n, v in flatten(run) if not n.endswith((".folder", "identity.name"))}
    return hashlib.sha256(json.dumps([settings, counted], sort_keys=True).encode()).hexdigest()


def _refuse(workdir: Path, changed: Mapping[str, tuple[Any, Any]]) -> None:
    if changed:
        listed = "; ".join(f"{name} was {a!r}, is {b!r}" for name, (a, b) in changed.items())
        raise UserError(f"{workdir}: holds another run: {listed}. Choose another --config.workdir, or set it back")


def _commit() -> str | None:
    """The commit of the checkout that this code runs from, marked if files were changed; None outside of one."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()

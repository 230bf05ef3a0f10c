"""What a folder is: which model, in whose layout; the files that go along with the weights; targets that are whole."""

import contextlib
import dataclasses
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from mlingo_jax.errors import UserError
from mlingo_jax.files import read_json, write_json
from mlingo_jax.models.llama_config import FAMILIES
from mlingo_jax.runs.folder import run_of
from mlingo_jax.weights.checkpoints import no_gguf, what_it_is

TowerKindName = Literal["mert", "llama"]
Kind = Literal["mert", "llama", "adapter", "musilingo"]
Layout = Literal["torch", "jax", "run"]

RECORD = "conversion.json"
FORMAT = 1
ADAPTER_FILES = (".pth", ".pt", ".safetensors")
MODEL_TYPES: dict[str, Kind] = {"mert_model": "mert", "hubert": "mert", "musilingo": "musilingo"}
MODEL_TYPES |= dict.fromkeys(FAMILIES, "llama")
# Configs, tokenizers, licences, and the Python files some configs name (kept for PyTorch's sake, never run here).
SIDE_FILES = (".json", ".jinja", ".md", ".model", ".py", ".txt")
SIDE_NAMES = ("LICENSE", "NOTICE", "USE_POLICY")


@dataclasses.dataclass(frozen=True)
class Found:
    """What a path holds: a model, in PyTorch's layout, in ours, or as a training run of this project."""

    kind: Kind
    layout: Layout


def identify(source: Path) -> Found:
    """What a file or folder holds.

    Raises:
        UserError: nothing, or nothing that is known.
    """
    if source.is_file():
        if source.suffix in ADAPTER_FILES:
            return Found("adapter", "torch")
        if source.suffix == ".gguf":
            raise UserError(no_gguf(source))
        raise UserError(f"{source}: expected a folder, or an adapter's file ({', '.join(ADAPTER_FILES)})")
    if not source.is_dir():
        raise UserError(f"{source}: no such file or folder")
    if not any(source.iterdir()):
        raise UserError(f"{source}: the folder is empty")
    if (source / RECORD).is_file():
        return Found(_read_kind(source), "jax")
    if run_of(source):
        return Found("adapter", "run")
    config = source / "config.json"
    if not config.is_file():
        raise UserError(
            what_it_is(source)
            or f"{source}: no config.json, so it is no Hugging Face or converted model, and no training run"
        )
    model_type = read_json(config).get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        raise UserError(
            f"{config}: model_type is {str(model_type)[:80]!r}, expected one of {', '.join(sorted(MODEL_TYPES))}"
        )
    return Found(MODEL_TYPES[model_type], "torch")


def _read_kind(folder: Path) -> Kind:
    record = read_json(folder / RECORD)
    kinds: dict[str, Kind] = {"mert": "mert", "llama": "llama", "adapter": "adapter", "musilingo": "musilingo"}
    if record.get("format") != FORMAT or record.get("kind") not in list(kinds):
        found = f"kind {record.get('kind')!r} in format {record.get('format')!r}"
        raise UserError(f"{folder / RECORD}: {found}, expected format {FORMAT}; convert the model again")
    return kinds[record["kind"]]


def find(source: str | Path) -> Path:
    """The local path of a file, a folder, or a model on the Hugging Face hub (downloaded, or from its local cache).

    Raises:
        UserError: there is no such path, and the hub cannot be reached or has no such model.
    """
    path = Path(source).expanduser()
    if path.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(source)):
        return path
    try:
        side = [f"*{suffix}" for suffix in SIDE_FILES if suffix != ".py"]
        folder = Path(snapshot_download(str(source), allow_patterns=[*side, "model*.safetensors"]))
        if not any(folder.glob("model*.safetensors")):
            snapshot_download(str(source), allow_patterns=["pytorch_model*.bin"])
    except (OSError, HFValidationError) as error:
        raise UserError(
            f"{source}: no such folder here, and the Hugging Face hub does not give it ({str(error).splitlines()[0]}); "
            f"where there is a network, run `hf download {source} --local-dir {path.name}` and name that folder instead"
        ) from error
    return folder


def carry(source: Path, target: Path) -> None:
    """Copies a folder's small files unchanged: configs, tokenizer, preprocessor, licence; no weights, no index."""
    for file in sorted(source.iterdir()):
        known = file.suffix in SIDE_FILES or file.name in SIDE_NAMES
        if file.is_file() and known and file.name != RECORD and not file.name.endswith(".index.json"):
            shutil.copyfile(file, target / file.name)


def write_record(folder: Path, kind: Kind, **values: object) -> None:
    """Marks a folder as converted: a tower's with what the way back needs of its naming, an adapter's with its config.

    Raises:
        UserError: it cannot be written.
    """
    write_json(folder / RECORD, {"kind": kind, "format": FORMAT, **values})


@contextlib.contextmanager
def new_target(target: Path, *, folder: bool) -> Iterator[Path]:
    """A path beside `target` to write a file or a folder to; it becomes `target` if all goes well, or else is removed.

    Raises:
        UserError: there is something at `target` already, or it cannot be written (a full disk, no permission).
    """
    if target.exists() and not (folder and target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target}: is there already; name a new {'folder' if folder else 'file'}, or remove it")
    partial = target.with_name(f".{target.name}.partial")
    try:
        _remove(partial)  # Of a conversion that was killed.
        target.parent.mkdir(parents=True, exist_ok=True)
        if folder:
            partial.mkdir()
        yield partial
        os.rename(partial, target)
    except OSError as error:
        raise UserError(f"{target}: not written: {error}") from error
    finally:
        # A folder that cannot be written has been reported above, and holds nothing to remove.
        with contextlib.suppress(OSError):
            _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

"""The files that torch writes, `.bin` and `.pth`: the one place where torch is imported, and only when it is needed."""

import functools
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mlingo_jax.errors import UserError
from mlingo_jax.files import refuse_pointer
from mlingo_jax.weights.tensors import BUFFERS, DTYPES, Tensor, Tensors, numpy_dtype

ZIP = b"PK\x03\x04"
# What its unpickler allows although a few bytes of it ask for any amount of memory.
_BUFFER = re.compile(rb"c(builtins|__builtin__)\nbytearray\n")
# By torch's names, which are numpy's.
NAMES = {dtype.name: name for name, dtype in DTYPES.items()}


def read_torch(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that torch wrote: of a dict of tensors, or of one that stands under "model" in a dict.

    Raises:
        UserError: the file is truncated, corrupt, holds anything but tensors there, or torch is not installed.
    """
    state = _load(path)
    return {name: _tensor(path, name, value) for name, value in state.items() if not name.endswith(BUFFERS)}


def write_torch(path: Path, state: Mapping[str, Tensors] | Tensors) -> None:
    """Writes tensors, or dicts of them, by `torch.save`, all in memory at once.

    Raises:
        UserError: torch is not installed.
    """
    torch = _import_torch("writing files of PyTorch")

    def made(part: Any) -> Any:
        is_tensor = isinstance(part, Tensor)
        return _to_torch(part.read(), torch) if is_tensor else {name: made(inner) for name, inner in part.items()}

    torch.save(made(state), path)


def _import_torch(what: Path | str) -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{what}: needs torch: pip install 'mlingo_jax[torch]'") from error
    return torch


def _tensor(path: Path, name: str, value: Any) -> Tensor:
    if str(value.layout) != "torch.strided" or value.device.type != "cpu" or value.is_quantized:
        raise UserError(f"{path}: {name} is a {value.layout} tensor on {value.device}, expected plain numbers")
    # A tensor's strides may repeat a few numbers as often as they like.
    claimed, held = value.numel() * value.element_size(), value.untyped_storage().nbytes()
    if claimed > held:
        raise UserError(
            f"{path}: {name} claims {claimed:,} bytes, and the file has {held:,} of them; save it whole, by .clone()"
        )
    torch_name = str(value.dtype).removeprefix("torch.")
    dtype = numpy_dtype(path, name, NAMES.get(torch_name, torch_name))
    return Tensor(tuple(value.shape), dtype, lambda: _to_numpy(_load(path)[name], dtype, _import_torch(path)))


def _to_numpy(value: Any, dtype: np.dtype, torch: ModuleType) -> np.ndarray:
    # torch and numpy know no bfloat16 of each other's: bits are handed over, as integers.
    bits = getattr(torch, f"int{8 * dtype.itemsize}")
    return value.detach().contiguous().view(bits).numpy().view(dtype)


def _to_torch(array: np.ndarray, torch: ModuleType) -> Any:
    bits = np.ascontiguousarray(array).view(f"int{8 * array.dtype.itemsize}")
    return torch.from_numpy(bits).view(getattr(torch, array.dtype.name)).reshape(array.shape)


def _load(path: Path) -> dict[str, Any]:
    refuse_pointer(path)
    with path.open("rb") as file:
        is_zip = file.read(len(ZIP)) == ZIP
    if is_zip:
        _check_zip(path)
    # Mapped anew for each tensor: the pages of a file that stays mapped would count as our memory.
    return _unpickle(path, mmap=True) if is_zip else _load_old(path, path.stat().st_mtime_ns)


def _check_zip(path: Path) -> None:
    """Raises UserError for what torch never writes: contents larger than the file, or buffers that a size makes."""
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise UserError(f"{path}: claims to hold more than it has bytes; it was not written by torch")
            pickles = [file.read(entry) for entry in entries if entry.filename.endswith(".pkl")]
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise UserError(f"{path}: truncated or corrupt ({error}); download it again") from error
    if any(_BUFFER.search(pickled) for pickled in pickles):
        raise UserError(f"{path}: corrupt, or holds more than tensors and plain values, which is not loaded")


@functools.lru_cache(maxsize=1)
def _load_old(path: Path, written: int) -> dict[str, Any]:
    # Files from before torch 1.6 are no zip and cannot be mapped: the last one read stays in memory, whole.
    return _unpickle(path, mmap=False)


def _unpickle(path: Path, *, mmap: bool) -> dict[str, Any]:
    torch = _import_torch(path)
    try:
        state = torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: corrupt, or holds more than tensors and plain values, which is not loaded") from error
    except Exception as error:  # torch raises errors of many kinds over a broken file.
        reason = f"{type(error).__name__}: {error}".partition("\n")[0].partition(". ")[0]
        raise UserError(f"{path}: truncated or corrupt ({reason}); download it again") from error
    state = state.get("model", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: expected a dict of tensors, or such a dict under 'model'")
    return state

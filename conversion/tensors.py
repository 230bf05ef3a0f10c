"""Tensors at rest: reading PyTorch's and safetensors files one tensor at a time, and writing safetensors shards.

A checkpoint is a mapping from names to `Tensor`s, none of which is in memory: renaming, transposing or adding two
checkpoints is a comprehension over such mappings, and writing one reads, works out and forgets each tensor in turn.
"""

import dataclasses
import functools
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from mlingo_jax.errors import UserError

Shape = tuple[int, ...]

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that is not in memory: `read` gives it, of this shape and dtype."""

    shape: Shape
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def map(self, function: Callable[[np.ndarray], np.ndarray], shape: Shape) -> "Tensor":
        """The tensor that `function` makes of this one, of the given shape and the same dtype."""
        return Tensor(shape, self.dtype, lambda: function(self.read()))


Tensors = Mapping[str, Tensor]


def read_checkpoint(folder: Path) -> dict[str, Tensor]:
    """The tensors of a Hugging Face or converted folder: safetensors if there, else `.bin`; in one file or in shards.

    Raises:
        UserError: there are no weights, a shard is missing, truncated or corrupt, or two hold a tensor of one name.
    """
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        shard = read_file(path)
        if twice := sorted(shard.keys() & tensors.keys()):
            raise UserError(f"{path}: holds tensors that an earlier shard holds as well: {', '.join(twice)}")
        tensors.update(shard)
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder that hold its weights.

    Raises:
        UserError: there is none, or the index is broken or names a file that is not there.
    """
    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _indexed_files(index)
        if (folder / name).is_file():
            return [folder / name]
    raise UserError(f"{folder}: no weights; expected {' or '.join(WEIGHT_FILES)}, or shards of one with an index")


def _indexed_files(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(f, str) and Path(f).name == f for f in weight_map.values()
    ):
        raise UserError(f"{index}: 'weight_map' must name a file of this folder for each tensor; download it again")
    files = sorted({index.parent / file for file in weight_map.values()})
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(f"{index}: names files that are not there: {', '.join(missing)}; download them")
    return files


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: the file is not there, or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one `.safetensors` file, or of one that torch wrote (`.bin`, `.pth`).

    Of a torch file which wraps its tensors as training code does, `{"model": {…}, "optimizer": …}`, only the model's.

    Raises:
        UserError: the file is truncated, corrupt, holds anything but tensors, or torch is needed and not installed.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    state = _load_torch(path)
    return {name: _from_torch(path, name, state[name]) for name in state}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    def read(name: str) -> np.ndarray:
        # Opened for each tensor: the pages of a file that stays mapped would count as our memory.
        with safe_open(path, "np") as file:
            return file.get_tensor(name)

    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, "np") as file:
            for name in file.offset_keys():
                view = file.get_slice(name)
                dtype = _dtype(path, name, view.get_dtype())
                tensors[name] = Tensor(tuple(view.get_shape()), dtype, functools.partial(read, name))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: truncated or corrupt ({error}); download or convert it again") from error
    return tensors


def _dtype(path: Path, tensor: str, name: str) -> np.dtype:
    if name not in DTYPES:
        raise UserError(
            f"{path}: {tensor} is stored as {name}, expected {', '.join(DTYPES)}; quantised weights are not read"
        )
    return DTYPES[name]


def _from_torch(path: Path, name: str, value: Any) -> Tensor:
    import torch

    names = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    dtype = _dtype(path, name, names.get(value.dtype, str(value.dtype)))
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize]

    def read() -> np.ndarray:
        # numpy has no bfloat16 that torch knows of, so the bits are handed over.
        return _load_torch(path)[name].detach().contiguous().view(bits).numpy().view(dtype)

    return Tensor(tuple(value.shape), dtype, read)


def _load_torch(path: Path) -> dict[str, Any]:
    return _map_torch(path) if zipfile.is_zipfile(path) else _load_old_torch(path)


def _map_torch(path: Path) -> dict[str, Any]:
    return _unpickle(path, mmap=True)


@functools.lru_cache(maxsize=1)
def _load_old_torch(path: Path) -> dict[str, Any]:
    # The format before torch 1.6 cannot be mapped: the last file read stays in memory, whole.
    return _unpickle(path, mmap=False)


def _unpickle(path: Path, *, mmap: bool) -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: needs torch: pip install 'mlingo_jax[torch]', or convert it to safetensors"
        ) from error
    try:
        state = torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: corrupt, or holds more than tensors and plain values, which is not loaded") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AssertionError) as error:
        raise UserError(f"{path}: truncated or corrupt ({str(error).splitlines()[0]}); download it again") from error
    state = state.get("model", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: expected a dict of tensors, or such a dict under 'model'")
    return state


def write_checkpoint(folder: Path, tensors: Tensors, *, shard_bytes: int, title: str) -> None:
    """Writes a checkpoint as `model.safetensors`, or as shards of at most `shard_bytes` with an index.

    A single tensor may be larger than a shard. Shows a progress bar called `title` where there is a terminal.
    """
    shards = list(_split(tensors, shard_bytes))
    files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = ["model.safetensors"]
    size = sum(tensor.nbytes for tensor in tensors.values())
    with tqdm(total=size, unit="B", unit_scale=True, desc=title, disable=None) as progress:
        for file, shard in zip(files, shards, strict=True):
            write_safetensors(folder / file, shard, progress.update)
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON object for people to read."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _split(tensors: Tensors, limit: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    filled = 0
    for name, tensor in tensors.items():
        if shard and filled + tensor.nbytes > limit:
            yield shard
            shard, filled = {}, 0
        shard[name] = tensor
        filled += tensor.nbytes
    yield shard


def write_safetensors(path: Path, tensors: Tensors, progress: Callable[[int], Any] = lambda _: None) -> None:
    """Writes a safetensors file as its tensors are read: the library's own writer wants them all in memory.

    Format: https://github.com/huggingface/safetensors, "Format".
    """
    # Wide ones first, as the library does: each starts at a multiple of its item size.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": names[tensor.dtype], "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for _, tensor in ordered:
            file.write(np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8).data)
            progress(tensor.nbytes)

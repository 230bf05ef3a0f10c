"""Tensors at rest, and the safetensors format.

A checkpoint is a mapping from names to `Tensor`s, none of which is in memory: renaming, transposing or adding two
checkpoints is a comprehension over such mappings, and writing one reads, works out and forgets each tensor in turn.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from mlingo_jax.errors import UserError
from mlingo_jax.files import refuse_pointer

Shape = tuple[int, ...]

# By safetensors' names.
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# What some checkpoints hold beside their weights: constants that follow from the config, passed over when reading.
BUFFERS = ("rotary_emb.inv_freq", "position_ids")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that is not in memory: `read` gives it, of this shape and dtype."""

    shape: Shape
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def map(self, function: Callable[[np.ndarray], np.ndarray], shape: Shape) -> "Tensor":
        """The tensor that `function` makes of this one, of the given shape and the same dtype."""
        return Tensor(shape, self.dtype, lambda: function(self.read()))


Tensors = Mapping[str, Tensor]


def numpy_dtype(path: Path, tensor: str, name: str) -> np.dtype:
    """The dtype of safetensors' name. Raises `UserError` for integers and the like: quantised weights are not read."""
    if name not in DTYPES:
        raise UserError(f"{path}: {tensor} is stored as {name}, expected {', '.join(DTYPES)}: give unquantised weights")
    return DTYPES[name]


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in the order in which they lie there.

    Raises:
        UserError: the file is truncated or corrupt, or stands for one that was not downloaded.
    """
    try:
        refuse_pointer(path)
        with safe_open(path, "np") as file:
            views = {name: file.get_slice(name) for name in file.offset_keys() if not name.endswith(BUFFERS)}
            return {
                name: Tensor(
                    tuple(view.get_shape()),
                    numpy_dtype(path, name, view.get_dtype()),
                    partial(_read_safetensor, path, name),
                )
                for name, view in views.items()
            }
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: truncated or corrupt ({error}); download or convert it again") from error


def _read_safetensor(path: Path, name: str) -> np.ndarray:
    # Opened for each tensor: the pages of a file that stays mapped would count as our memory.
    with safe_open(path, "np") as file:
        return file.get_tensor(name)


def write_safetensors(path: Path, tensors: Tensors, progress: Callable[[int], Any] = lambda _: None) -> None:
    """Writes a safetensors file as its tensors are read: the library's own writer wants them all in memory.

    Source: https://github.com/huggingface/safetensors, "Format". `progress` is told the bytes written.
    """
    # Wide ones first, as the library does: each starts at a multiple of its item size.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers reads no file without it.
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

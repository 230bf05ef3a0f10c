"""Vicuna's first releases: the difference between its weights and LLaMA's, to be added to LLaMA's.

Reference: FastChat's `apply_delta`, which adds in float16, tensor by tensor.
"""

from pathlib import Path

import numpy as np

from mlingo_jax.errors import UserError
from mlingo_jax.weights.checkpoints import read_checkpoint
from mlingo_jax.weights.folders import Found, find, identify
from mlingo_jax.weights.keymap import check
from mlingo_jax.weights.naming import canonical
from mlingo_jax.weights.tensors import Shape, Tensor, Tensors
from mlingo_jax.weights.towers import LLAMA, is_delta

# Vicuna v0 has a '[PAD]' token that LLaMA has not: FastChat gives LLaMA a row of zeros for it.
VOCAB_MATRICES = ("model.embed_tokens.weight", "lm_head.weight")


def merge(delta: Tensors, source: Path, base: str | Path) -> dict[str, Tensor]:
    """The weights of the language model in `source`, whose tensors are a delta over those in the folder `base`.

    Raises:
        UserError: they are no delta, or the base is no LLaMA's folder or does not fit.
    """
    if not is_delta(delta):
        raise UserError(f"{source}: is not a delta (its last norm's mean is far from 0); convert it without --base")
    folder = find(base)
    if identify(folder) != Found("llama", "torch"):
        raise UserError(f"{folder}: expected a LLaMA folder in Hugging Face's layout")
    _, tensors = canonical(read_checkpoint(folder), LLAMA.names, folder)
    return add_delta(tensors, delta, str(folder))


def add_delta(base: Tensors, delta: Tensors, base_source: str) -> dict[str, Tensor]:
    """The weights that a delta stands for: base + delta, in float16, each to be worked out when read.

    Raises:
        UserError: the base does not have the delta's tensors, or is a delta itself.
    """
    if is_delta(base):
        raise UserError(
            f"{base_source}: is itself a delta; --base takes the LLaMA weights that the delta was made from"
        )
    check({name: _base_shape(name, tensor, base) for name, tensor in delta.items()}, base, base_source)
    return {name: _sum(base[name], tensor) for name, tensor in delta.items()}


def _base_shape(name: str, delta: Tensor, base: Tensors) -> Shape:
    rows, *rest = delta.shape
    lacks_pad = name in VOCAB_MATRICES and name in base and base[name].shape[:1] == (rows - 1,)
    return (rows - 1, *rest) if lacks_pad else delta.shape


def _sum(base: Tensor, delta: Tensor) -> Tensor:
    def read() -> np.ndarray:
        total = delta.read().astype(np.float16)
        total[: base.shape[0]] += base.read().astype(np.float16)
        return total

    return Tensor(delta.shape, np.dtype(np.float16), read)

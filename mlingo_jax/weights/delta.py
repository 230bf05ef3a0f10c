"""Vicuna's first releases: the difference between its weights and LLaMA's, to be added to LLaMA's.

Reference: FastChat's `apply_delta`, which adds in float16, tensor by tensor.
"""

import numpy as np

from mlingo_jax.errors import UserError
from mlingo_jax.weights.keymap import check
from mlingo_jax.weights.tensors import Shape, Tensor, Tensors

# Vicuna v0 has a '[PAD]' token that LLaMA has not: FastChat gives LLaMA a row of zeros for it.
VOCAB_MATRICES = ("model.embed_tokens.weight", "lm_head.weight")
# A model's last norm starts at 1 and its mean stays far from 0; that of a difference between models is near 0.
DELTA_BELOW = 0.05


def is_delta(tensors: Tensors) -> bool:
    """Whether a language model's weights are only a difference, which its last norm's mean shows."""
    norm = tensors.get("model.norm.weight")
    return norm is not None and abs(float(norm.read().astype(np.float32).mean())) < DELTA_BELOW


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

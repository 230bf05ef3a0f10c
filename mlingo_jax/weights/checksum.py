"""A checksum of arrays on their devices: the same for the same numbers, however they are sharded or stacked."""

from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, UInt32


def weights_checksum(params: Mapping[str, Any], rounded: DTypeLike | None = None) -> str:
    """SHA-256 over each parameter's path, shape, dtype and digest; hexadecimal.

    The digest is a sum over the elements of their bits mixed with their positions, in integers: no order of summation,
    and so no sharding, changes it. Like arrays in a list (layers that are not stacked) count as the stack of them. It
    tells equal weights from changed ones, but is no defence against an adversary.

    rounded: what floats are rounded to first, if anything, so that the same tower can be known in another dtype.
    """
    total = sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(_stacked(params), is_leaf=lambda x: isinstance(x, tuple)):
        parts, shape = (leaf, (len(leaf), *leaf[0].shape)) if isinstance(leaf, tuple) else ((leaf,), leaf.shape)
        dtype = rounded if rounded and jnp.issubdtype(parts[0].dtype, jnp.floating) else parts[0].dtype
        total.update(f"{jax.tree_util.keystr(path)} {shape} {jnp.dtype(dtype)} ".encode())
        digests = [np.asarray(_digest(part, np.uint32(index), jnp.dtype(dtype))) for index, part in enumerate(parts)]
        total.update(np.sum(digests, axis=0, dtype=np.uint32).tobytes())
    return total.hexdigest()


def _stacked(params: Any) -> Any:
    """The tree, but for a list {0: tree, 1: a tree like it, ...} one tree of tuples, an array of each part in them."""
    if not isinstance(params, Mapping):
        return params
    if 0 in params and len({str(jax.tree.map(np.shape, part)) for part in params.values()}) == 1:
        return jax.tree.map(lambda *arrays: arrays, *(params[index] for index in range(len(params))))
    return {name: _stacked(part) for name, part in params.items()}


@partial(jax.jit, static_argnums=2)
def _digest(x: Array, index: UInt32[Array, ""] | np.uint32, dtype: np.dtype) -> UInt32[Array, "2"]:
    """The share of a part, as of this dtype, in the digest of its stack."""
    x = x.astype(dtype)
    bits = jax.lax.bitcast_convert_type(x, f"uint{jax.dtypes.itemsize_bits(x.dtype)}").astype(jnp.uint32)
    position = index
    for axis, size in enumerate(x.shape):
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.stack([jnp.sum(_mix(bits ^ _mix(position + jnp.uint32(seed))), dtype=jnp.uint32) for seed in (1, 2**31)])


def _mix(x: Array) -> Array:
    """MurmurHash3's finaliser: each bit of the input flips each bit of the output half the time."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)

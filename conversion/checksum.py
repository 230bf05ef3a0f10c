"""A checksum of arrays on their devices: the same for the same numbers, however they are sharded."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32


def weights_checksum(params: Mapping[str, Any]) -> str:
    """SHA-256 over each parameter's path, shape, dtype and digest; hexadecimal.

    The digest is a sum over the elements of their bits mixed with their places, in integers: no order of summation, and
    so no sharding, changes it. It tells equal weights from changed ones, but is no defence against an adversary.
    """
    total = sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        total.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype} ".encode())
        total.update(np.asarray(_digest(leaf)).tobytes())
    return total.hexdigest()


@jax.jit
def _digest(x: Array) -> UInt32[Array, "2"]:
    bits = jax.lax.bitcast_convert_type(x, f"uint{jax.dtypes.itemsize_bits(x.dtype)}").astype(jnp.uint32)
    place = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.stack([jnp.sum(_mix(bits ^ _mix(place + jnp.uint32(seed))), dtype=jnp.uint32) for seed in (1, 2**31)])


def _mix(x: Array) -> Array:
    """MurmurHash3's finaliser: each bit of the input flips each bit of the output half the time."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)

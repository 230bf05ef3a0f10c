"""A checksum of arrays on their devices: the same for the same numbers, however they are sharded or stacked.

Axes: R rows of a block, C columns of one, D dtypes.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Shaped, UInt32

# Numbers of a block, and of one where fewer are left: two programs for arrays of all shapes.
_BLOCK, _SMALL_BLOCK = 1 << 20, 1 << 14
# Of a block's matrix; sums run along its rows, which a CPU adds side by side.
_COLUMNS = 1024


def weights_checksum(params: Mapping[str, Any]) -> str:
    """As `weights_checksums`, of the numbers as they are."""
    return weights_checksums(params, (None,))[0]


def weights_checksums(params: Mapping[str, Any], dtypes: Sequence[DTypeLike | None]) -> list[str]:
    """SHA-256 over each parameter's path, shape, dtype and digest; hexadecimal. One for each of `dtypes`.

    The digest is a sum over the elements of their bits mixed with their positions, in integers: no order of summation,
    and so no sharding, changes it. Like arrays in a list (layers that are not stacked) count as the stack of them. It
    tells equal weights from changed ones, but is no defence against an adversary.

    dtypes: what floats are rounded to first, if anything, so that the same tower can be known in another dtype.
    """
    totals = [sha256() for _ in dtypes]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, leaf in jax.tree_util.tree_leaves_with_path(_stacked(params), is_leaf=lambda x: isinstance(x, tuple)):
            parts, shape = (leaf, (len(leaf), *leaf[0].shape)) if isinstance(leaf, tuple) else ((leaf,), leaf.shape)
            kept = jnp.dtype(parts[0].dtype)
            kinds = tuple(jnp.dtype(d) if d and jnp.issubdtype(kept, jnp.floating) else kept for d in dtypes)
            digests = _sum([_digests(part, n, kinds, pool) for n, part in enumerate(parts)])
            for total, kind, digest in zip(totals, kinds, digests, strict=True):
                total.update(f"{jax.tree_util.keystr(path)} {shape} {kind} ".encode())
                total.update(digest.tobytes())
    return [total.hexdigest() for total in totals]


def _digests(
    x: Shaped[Array, "..."] | Shaped[np.ndarray, "..."], index: int, dtypes: tuple[np.dtype, ...], pool: Executor
) -> UInt32[np.ndarray, "D 2"]:
    """The share of a part, as of these dtypes, in the digests of its stack."""
    if isinstance(x, jax.Array) and (len(x.devices()) > 1 or next(iter(x.devices())).platform != "cpu"):
        return np.stack([np.asarray(_digest(x, jnp.uint32(index), dtype)) for dtype in dtypes])
    # On a CPU this is no copy.
    numbers = np.asarray(x).reshape(-1)
    whole = numbers.size // _BLOCK * _BLOCK

    def of_block(begin: int) -> np.ndarray:
        size = _BLOCK if begin < whole else _SMALL_BLOCK
        block = numbers[begin : begin + size]
        padded = block if len(block) == size else np.pad(block, (0, size - len(block)))
        start = np.uint32((index * numbers.size + begin) % 2**32)
        return np.asarray(_digest_block(padded, start, len(block), dtypes))

    begins = [*range(0, whole, _BLOCK), *range(whole, numbers.size, _SMALL_BLOCK)]
    return _sum([np.zeros((len(dtypes), 2), np.uint32), *pool.map(of_block, begins)])


def _sum(digests: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(np.sum(digests, axis=0, dtype=np.uint32))


@partial(jax.jit, static_argnums=3)
def _digest_block(
    block: Shaped[Array, "_"], start: UInt32[Array, ""], count: Array, dtypes: tuple[np.dtype, ...]
) -> UInt32[Array, "D 2"]:
    """The digests of `count` numbers, the first of which is at position `start`; what follows them does not count."""
    index = jnp.arange(len(block), dtype=jnp.uint32)
    numbers, index = block.reshape(-1, _COLUMNS), index.reshape(-1, _COLUMNS)
    mixed = [_mix_bits(numbers, start + index, dtype) for dtype in dtypes]
    return jnp.stack(
        [
            jnp.stack([jnp.where(index < count, m, 0).sum(axis=0, dtype=jnp.uint32).sum(dtype=jnp.uint32) for m in one])
            for one in mixed
        ]
    )


def _stacked(params: Any) -> Any:
    """The tree, but for a list {0: tree, 1: a tree like it, ...} one tree of tuples, an array of each part in them."""
    if not isinstance(params, Mapping):
        return params
    if 0 in params and len({str(jax.tree.map(np.shape, part)) for part in params.values()}) == 1:
        return jax.tree.map(lambda *arrays: arrays, *(params[index] for index in range(len(params))))
    return {name: _stacked(part) for name, part in params.items()}


@partial(jax.jit, static_argnums=2)
def _digest(x: Array, index: UInt32[Array, ""], dtype: np.dtype) -> UInt32[Array, "2"]:
    """The share of a part, as of this dtype, in the digest of its stack."""
    position = index
    for axis, size in enumerate(x.shape):
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.stack([jnp.sum(mixed, dtype=jnp.uint32) for mixed in _mix_bits(x, position, dtype)])


def _mix_bits(x: Array, position: Array, dtype: np.dtype) -> list[Array]:
    """Each number's bits, as of this dtype, mixed with its position in two ways."""
    x = x.astype(dtype)
    bits = jax.lax.bitcast_convert_type(x, f"uint{jax.dtypes.itemsize_bits(x.dtype)}").astype(jnp.uint32)
    return [_mix(bits ^ _mix(position + jnp.uint32(seed))) for seed in (1, 2**31)]


def _mix(x: Array) -> Array:
    """MurmurHash3's finaliser: each bit of the input flips each bit of the output half the time."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)

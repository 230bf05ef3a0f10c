"""Columns of keys and values: taken out of rows, put behind one another, put into rows, moved within them.

Axes: B rows, A of them, S columns, T of them, L layers, K key/value heads, H head width. What the columns hold is told
in layout.py.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from mlingo_jax.inference.layout import Layout
from mlingo_jax.models.llama import KVCache
from mlingo_jax.models.partition import constrain

Chosen = Int32[Array, " A"] | Int32[np.ndarray, " A"]


def join(one: KVCache, other: KVCache) -> KVCache:
    """The columns of one behind those of the other."""
    positions = jnp.concatenate((one.positions, other.positions), axis=1)
    return KVCache(*_each(lambda a, b: jnp.concatenate((a, b), axis=-3), one, other), positions)


def take(cache: KVCache, rows: Chosen, columns: int) -> KVCache:
    """The first columns of some rows."""
    return KVCache(*_each(lambda x: x[..., rows, :columns, :, :], cache), cache.positions[rows, :columns])


def put(cache: KVCache, new: KVCache, rows: Chosen) -> KVCache:
    """The cache with some rows' first columns from `new`, and their others empty; a row past the last is none.

    Empty columns hold zeros: a mask gives them the weight 0, but a NaN of whoever had the row before would outlast it.
    """
    rest = cache.positions.shape[1] - new.positions.shape[1]

    def write(x: Float[Array, "*L B S K H"], part: Float[Array, "*L A T K H"]) -> Float[Array, "*L B S K H"]:
        whole = jnp.pad(part, [*[(0, 0)] * (part.ndim - 3), (0, rest), (0, 0), (0, 0)])
        return x.at[..., rows, :, :, :].set(whole, mode="drop")

    positions = jnp.pad(new.positions, ((0, 0), (0, rest)), constant_values=-1)
    return KVCache(*_each(write, cache, new), cache.positions.at[rows].set(positions, mode="drop"))


def settle(cache: KVCache, layout: Layout, counts: Int32[Array, " B"]) -> KVCache:
    """Moves the staging columns to where each row's answer had come to, and empties them."""
    staging, size = layout.staging_at, layout.chunk
    # A row that has ended can stand at the end of its columns; what is moved over it there is empty.
    at = layout.answers_at + jnp.minimum(counts, layout.answer - size)

    def move(x: Float[Array, "*L B S K H"]) -> Float[Array, "*L B S K H"]:
        rows = x.ndim - 4

        def row(columns: Array, start: Array) -> Array:
            part = jax.lax.slice_in_dim(columns, staging, staging + size, axis=rows)
            return jax.lax.dynamic_update_slice_in_dim(columns, part, start, axis=rows)

        return jax.vmap(row, in_axes=(rows, 0), out_axes=rows)(x, at)

    def place(row: Int32[Array, " S"], start: Array) -> Int32[Array, " S"]:
        row = jax.lax.dynamic_update_slice_in_dim(row, row[staging:], start, axis=0)
        return row.at[staging:].set(-1)

    return KVCache(*_each(move, cache), jax.vmap(place)(cache.positions, at))


def laid(cache: KVCache) -> KVCache:
    """On a mesh: rows and heads over its parts, as the layers take them."""
    kept = _each(lambda x: constrain(x, "LBSKH"[5 - x.ndim :]), cache)
    return KVCache(*kept, constrain(cache.positions, "BS"))


def _each(change: Callable[..., Array], *caches: KVCache) -> tuple[Any, Any]:
    """Keys and values after a change of each array, [..., B, S, K, H] with or without the layers' axis."""
    return (
        jax.tree.map(change, *(cache.key for cache in caches)),
        jax.tree.map(change, *(cache.value for cache in caches)),
    )

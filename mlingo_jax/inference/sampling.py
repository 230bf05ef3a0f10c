"""How the next token is chosen from the logits: the most probable one, or a draw from a filtered distribution.

Axes: B rows, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, Key, UInt32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """What draws are made from: the distribution at a temperature above 0, then its top k, then its top-p nucleus.

    The numbers are traced: another value does not compile again, only None in place of a number does. Without top k
    and top p the vocabulary is not sorted.
    """

    temperature: Float[Array, ""]
    top_k: Int32[Array, ""] | None
    top_p: Float[Array, ""] | None


def row_keys(seed: int, salts: UInt32[np.ndarray, " B"]) -> Key[Array, " B"]:
    """A random key for each row from the seed and the row's own salt: its draws do not depend on its place or batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), salts)


def choose(
    logits: Float[Array, "B V"], keys: Key[Array, " B"], step: Int32[Array, ""], sampling: Sampling | None
) -> Int32[Array, " B"]:
    """The next token of each row: drawn with its key at this step, or without `sampling` the most probable one."""
    if sampling is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
    return jax.vmap(jax.random.categorical)(keys, filter_logits(logits, sampling)).astype(jnp.int32)


def filter_logits(logits: Float[Array, "B V"], sampling: Sampling) -> Float[Array, "B V"]:
    """Logits of the distribution to draw from; -inf for a token left out. The order is that of transformers' warpers.

    Top k keeps what is at least as probable as the k-th token (so more than k where there are ties), top p the smallest
    set of what is left whose probability reaches p; the most probable token always stays.
    """
    logits = logits / sampling.temperature
    if sampling.top_k is None and sampling.top_p is None:
        return logits
    order = jnp.argsort(logits, axis=-1, descending=True)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    kept = _kept(ranked, sampling)
    return jnp.where(jnp.put_along_axis(jnp.zeros_like(kept), order, kept, axis=-1, inplace=False), logits, -jnp.inf)


def _kept(ranked: Float[Array, "B V"], sampling: Sampling) -> Bool[Array, "B V"]:
    """Which of the logits, the largest first, are kept."""
    kept = jnp.ones(ranked.shape, bool)
    if sampling.top_k is not None:
        kth = jnp.clip(sampling.top_k, 1, ranked.shape[-1]) - 1
        kept = ranked >= jax.lax.dynamic_slice_in_dim(ranked, kth, 1, axis=-1)
    if sampling.top_p is not None:
        probabilities = jax.nn.softmax(jnp.where(kept, ranked, -jnp.inf), axis=-1)
        before = jnp.cumsum(probabilities, axis=-1)[:, :-1]
        kept &= jnp.pad(before < sampling.top_p, ((0, 0), (1, 0)), constant_values=True)
    return kept

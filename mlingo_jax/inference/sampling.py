"""How the next token is chosen from the logits: the most probable one, or a draw from a filtered distribution.

Axes: B rows, V vocabulary.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, Key, UInt32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """What draws are made from: the distribution at a temperature above 0, then its top k, then its top-p nucleus.

    The numbers are traced: another value does not compile again, only None in place of a number does.
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

    Top k keeps the k most probable tokens, top p the smallest set of what is left whose probability reaches p; the most
    probable token always stays. Tokens of the same logit are kept or left out together.
    """
    logits = logits / sampling.temperature
    top_k, top_p = sampling.top_k, sampling.top_p
    if top_k is not None:
        logits = jnp.where(_fewest(logits, lambda kept: kept.sum(-1) >= top_k), logits, -jnp.inf)
    if top_p is not None:
        probabilities = jax.nn.softmax(logits, axis=-1)
        reached = _fewest(logits, lambda kept: jnp.where(kept, probabilities, 0).sum(-1) >= top_p)
        logits = jnp.where(reached, logits, -jnp.inf)
    return logits


def _fewest(
    logits: Float[Array, "B V"], enough: Callable[[Bool[Array, "B V"]], Bool[Array, " B"]]
) -> Bool[Array, "B V"]:
    """Marks as few of each row's largest logits as are `enough`, all of them if that is never so.

    The least logit kept is found by bisection over the 2^32 numbers it can be: 32 sums instead of sorting the
    vocab_size, which takes several times as long.
    """
    bits = jax.lax.bitcast_convert_type(logits.astype(jnp.float32), jnp.int32)
    # Negative numbers' bits grow with their magnitude; turned over, integers stand in the order of the numbers.
    order = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low | high) - ((low ^ high) >> 1)
        holds = enough(order >= middle[:, None])
        return jnp.where(holds, middle, low), jnp.where(holds, high, middle - 1)

    lowest = jnp.full(len(order), jnp.iinfo(jnp.int32).min)
    least, _ = jax.lax.fori_loop(0, 32, halve, (lowest, order.max(axis=-1)))
    return order >= least[:, None]

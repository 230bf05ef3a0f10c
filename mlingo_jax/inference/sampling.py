"""How the next token is chosen from the logits: the most probable one, or a draw from a filtered distribution.

Axes: B rows, V vocabulary.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32, Key, UInt32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """How each row's tokens are drawn: from the distribution at a temperature, its top k, then its top-p nucleus.

    Temperature 0 takes the most probable token; top_k 0 and top_p 1 are no limits. Rows may differ, and nothing here
    is compiled for.
    """

    temperature: Float[Array, " B"] | Float32[np.ndarray, " B"]
    top_k: Int32[Array, " B"] | Int32[np.ndarray, " B"]
    top_p: Float[Array, " B"] | Float32[np.ndarray, " B"]


def row_keys(seed: int, salts: UInt32[np.ndarray, " B"]) -> Key[Array, " B"]:
    """A random key for each row from the seed and the row's own salt: its draws do not depend on its place or batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), salts)


def choose(
    logits: Float[Array, "B V"], keys: Key[Array, " B"], steps: Int32[Array, " B"], sampling: Sampling | None
) -> Int32[Array, " B"]:
    """The next token of each row: the most probable one, or one drawn with the row's key at the row's step.

    Work that no row asks for is left out while the program runs, and without `sampling` also from the program.
    """
    likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if sampling is None:
        return likeliest

    def draw() -> Int32[Array, " B"]:
        folded = jax.vmap(jax.random.fold_in)(keys, steps)
        drawn = jax.vmap(jax.random.categorical)(folded, filter_logits(logits, sampling))
        return jnp.where(sampling.temperature > 0, drawn, likeliest).astype(jnp.int32)

    return jax.lax.cond((sampling.temperature > 0).any(), draw, lambda: likeliest)


def filter_logits(logits: Float[Array, "B V"], sampling: Sampling) -> Float[Array, "B V"]:
    """Logits of the distribution to draw from; -inf for a token left out. The order is that of transformers' warpers.

    Top k keeps the k most probable tokens, top p the smallest set of what is left whose probability reaches p; the most
    probable token always stays. Tokens of the same logit are kept or left out together. A row at temperature 0 keeps
    its logits.
    """
    draws = sampling.temperature > 0
    logits = logits / jnp.where(draws, sampling.temperature, 1)[:, None]
    limited, nucleus = draws & (sampling.top_k > 0), draws & (sampling.top_p < 1)

    def keep_top_k(logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        kept = _fewest(logits, lambda kept: kept.sum(-1) >= sampling.top_k)
        return jnp.where(kept | ~limited[:, None], logits, -jnp.inf)

    def keep_top_p(logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        probabilities = jax.nn.softmax(logits, axis=-1)
        kept = _fewest(logits, lambda kept: jnp.where(kept, probabilities, 0).sum(-1) >= sampling.top_p)
        return jnp.where(kept | ~nucleus[:, None], logits, -jnp.inf)

    logits = jax.lax.cond(limited.any(), keep_top_k, lambda logits: logits, logits)
    return jax.lax.cond(nucleus.any(), keep_top_p, lambda logits: logits, logits)


def _fewest(
    logits: Float[Array, "B V"], enough: Callable[[Bool[Array, "B V"]], Bool[Array, " B"]]
) -> Bool[Array, "B V"]:
    """Marks as few of each row's largest logits as are `enough`, all of them if that is never so.

    The least logit kept is found by bisection over the 2^32 numbers it can be: 32 sums instead of sorting the
    vocab_size, which takes several times as long.
    """
    # Both zeros are one number.
    numbers = jnp.where(logits == 0, 0.0, logits).astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(numbers, jnp.int32)
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

"""Attention of queries to keys, with grouped key/value heads.

Axes: B rows, T queries, S keys, N heads, K key/value heads, H head width.
"""

import jax
from jaxtyping import Array, Bool, Float


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """Softmax attention with grouped key/value heads; `mask` is True where a query may look.

    A query that may look nowhere (padding) gets a finite, meaningless result.
    """
    return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None])

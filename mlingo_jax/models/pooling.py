"""Temporal compression: music tokens are means over runs of encoder frames (MusiLingo, section 3.1).

Axes: B rows, T frames, K music tokens, D embedding.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int


def pooled_length(frames: int, frames_per_token: int) -> int:
    """K: the music tokens of so many frames; the last one may be of fewer."""
    return -(-frames // frames_per_token)


@jax.named_scope("pool")
def pool_frames(x: Float[Array, "B T D"], frames: Int[Array, " B"], frames_per_token: int) -> Float32[Array, "B K D"]:
    """Means over runs of `frames_per_token` of each row's first `frames` frames; 0 for a run without any of them."""
    batch, length, embed_dim = x.shape
    tokens = pooled_length(length, frames_per_token)
    x = jnp.where(valid_frames(x, frames), x.astype(jnp.float32), 0)
    x = jnp.pad(x, ((0, 0), (0, tokens * frames_per_token - length), (0, 0)))
    counts = jnp.clip(frames[:, None] - frames_per_token * jnp.arange(tokens), 1, frames_per_token)
    return x.reshape(batch, tokens, frames_per_token, embed_dim).sum(2) / counts[..., None]


def valid_frames(x: Float[Array, "B T C"], frames: Int[Array, " B"]) -> Bool[Array, "B T 1"]:
    """True for each row's first `frames` frames."""
    return (jnp.arange(x.shape[1]) < frames[:, None])[..., None]

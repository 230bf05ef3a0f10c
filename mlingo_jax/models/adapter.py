"""The one trained part: a linear map from music features to music tokens.

Axes: B rows, S hidden states, M music tokens, D encoder width, E language-model width.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mlingo_jax.models.layers import Projection, parameter


class Adapter(nnx.Module):
    """MusiLingo's `llama_proj`: features [B, M, D] -> music tokens [B, M, E], in float32.

    With `states` set, the features keep the encoder's hidden states, [B, S, M, D], and a learned softmax weight for
    each is trained along (the "weighted average" of the paper's section 3.1); the weights start equal: at the mean.
    Pooling over time comes before the map: a mean commutes with it.

    Kernel and bias are drawn as torch's `nn.Linear` draws them: evenly within 1 / sqrt(D) on both sides of 0.
    """

    def __init__(self, features: int, tokens: int, *, states: int | None = None, rngs: nnx.Rngs):
        sizes = {"D": features, "E": tokens}
        self.projection = Projection("BMD,DE->BME", sizes, bias="E", dtype=jnp.float32, rngs=rngs)
        kernel, bias, bound = self.projection.kernel, self.projection.bias, features**-0.5
        assert bias is not None
        for drawn in (kernel, bias):
            drawn.set_value(jax.random.uniform(rngs.params(), drawn.shape, jnp.float32, -bound, bound))
        self.layer_weights = None if states is None else parameter("S", {"S": states}, None, jnp.zeros, jnp.float32)

    @jax.named_scope("adapter")
    def __call__(self, features: Float[Array, "B ..."]) -> Float[Array, "B M E"]:
        features = features.astype(jnp.float32)
        if self.layer_weights is not None:
            features = jnp.einsum("S,BSMD->BMD", jax.nn.softmax(self.layer_weights[...]), features)
        return self.projection(features)

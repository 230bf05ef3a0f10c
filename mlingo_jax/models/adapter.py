"""The one trained part: a linear map from music features to music tokens.

Axes: B rows, S hidden states, M music tokens, D encoder width, E language-model width.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mlingo_jax.errors import UserError
from mlingo_jax.models.layers import Projection, parameter


@dataclass(frozen=True)
class AdapterConfig:
    """An adapter's architecture, as run.json and a converted folder's conversion.json keep it.

    Attributes:
        features: D, the width of the encoder whose features it takes.
        tokens: E, the width of the language model whose tokens it makes.
        states: S, the hidden states of the encoder that it learns a weight for; None where it takes their mean.
        kind: what it computes; there is one kind.
    """

    features: int
    tokens: int
    states: int | None = None
    kind: str = "linear"

    @property
    def per_layer(self) -> bool:
        """What it needs of the features: whether they keep the encoder's hidden states apart, [S, M, D] for a clip."""
        return self.states is not None

    def to_json(self) -> dict[str, Any]:
        """The values that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any, source: str) -> "AdapterConfig":
        """Reads what `to_json` gave; `source` is the file's name, for messages.

        Raises:
            UserError: it describes no adapter, or one of a kind that is not built here.
        """
        if not isinstance(values, Mapping) or {"kind", "features", "tokens", "states"} - values.keys():
            raise UserError(f"{source}: expected an adapter's kind, features, tokens and states, found {values!r}")
        if values["kind"] != "linear":
            raise UserError(f"{source}: its adapter is of kind {values['kind']!r}, expected 'linear'")
        sizes = [values[name] for name in ("features", "tokens", "states")]
        if not all(isinstance(size, int) and size > 0 for size in sizes[:2]) or not isinstance(sizes[2], int | None):
            raise UserError(f"{source}: its adapter's sizes are {sizes}, expected whole numbers above 0")
        return cls(*sizes)


class Adapter(nnx.Module):
    """MusiLingo's `llama_proj`, in float32: features become music tokens, one of one.

    With `config.states` set, the features keep the encoder's hidden states, and a learned softmax weight for each is
    trained along (the "weighted average" of the paper's section 3.1); the weights start equal: at the mean.
    Pooling over time comes before the map: a mean commutes with it.

    Kernel and bias are drawn as torch's `nn.Linear` draws them: evenly within 1 / sqrt(D) on both sides of 0.
    """

    def __init__(self, config: AdapterConfig, *, rngs: nnx.Rngs):
        self.config = config
        sizes = {"D": config.features, "E": config.tokens}
        self.projection = Projection("BMD,DE->BME", sizes, bias="E", dtype=jnp.float32, rngs=rngs)
        kernel, bias, bound = self.projection.kernel, self.projection.bias, config.features**-0.5
        assert bias is not None
        for drawn in (kernel, bias):
            drawn.set_value(jax.random.uniform(rngs.params(), drawn.shape, jnp.float32, -bound, bound))
        states = config.states
        self.layer_weights = None if states is None else parameter("S", {"S": states}, None, jnp.zeros, jnp.float32)

    @jax.named_scope("adapter")
    def tokens(self, features: Float[Array, "B *S M D"]) -> Float[Array, "B M E"]:
        """Music tokens of features [B, M, D], or [B, S, M, D] with learned layer weights."""
        features = features.astype(jnp.float32)
        if self.layer_weights is not None:
            features = jnp.einsum("S,BSMD->BMD", jax.nn.softmax(self.layer_weights[...]), features)
        return self.projection(features)

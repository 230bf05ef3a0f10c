"""LLaMA and its relatives, run on embeddings: LLaMA 1-3.2, Vicuna, TinyLlama, SmolLM2, Mistral, Qwen2, Qwen2.5, Qwen3.

Axes: B rows, T queries, S keys, D width, N heads, K key/value heads, H head width, R = H / 2, F inner width, L layers,
V vocabulary. A token's place in its text is its position; a row may hold several texts, its segments, from 1 on;
segment 0 is padding. The reference for every number is transformers' LlamaForCausalLM, MistralForCausalLM,
Qwen2ForCausalLM and Qwen3ForCausalLM.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int

from mlingo_jax.models.attention import Segments, attend
from mlingo_jax.models.layers import ACTIVATIONS, Projection, RMSNorm, normal, parameter
from mlingo_jax.models.llama_config import LlamaConfig
from mlingo_jax.models.partition import DECODE_RULES, GATHERED, constrain, gather_params
from mlingo_jax.models.quantization import Quantization
from mlingo_jax.models.stack import layer_graph, run_layers, unstack

CacheArrays = Float[Array, "L B S K H"] | tuple[Float[Array, "B S K H"], ...]

NO_WINDOW = np.iinfo(np.int32).max


def _anything_but_weights(primitive: Any, *_: Any, **params: Any) -> bool:
    # As `save_anything_except_these_names` should, which in JAX 0.10 takes no notice of the names.
    return not (primitive.name == "name" and params["name"] == GATHERED)


# What the backward pass finds of a layer beside its input: nothing, the products with weights, all. Never the weights:
# a scan keeps what it keeps in copies, and those of all layers would be the model once more, and not in parts.
REMAT: Mapping[str, Callable[..., Any]] = {
    "layer": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "none": _anything_but_weights,
}


@partial(jax.tree_util.register_dataclass, data_fields=("key", "value", "positions"), meta_fields=())
@dataclass(frozen=True)
class KVCache:
    """What the layers remember of the tokens so far: a slot per token; position -1 marks an empty slot or padding.

    Keys and values of all layers are stacked as the layers are, or one array a layer.
    """

    key: CacheArrays
    value: CacheArrays
    positions: Int[Array, "B S"]


def attention_mask(
    positions: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    key_positions: Int[Array, "B S"],
    key_segments: Int[Array, "B S"],
    window: Int[Array, ""] | int = NO_WINDOW,
) -> Bool[Array, "B T S"]:
    """True where a query may look at a key: in its own segment, not after itself, nearer than `window` tokens.

    positions [0 1 2 0 1 0], segments [1 1 1 2 2 0] as queries and keys, window 2:

        1 . . . . .
        1 1 . . . .
        . 1 1 . . .     the third token no longer sees the first
        . . . 1 . .     a new segment sees nothing of the one before
        . . . 1 1 .
        . . . . . .     padding sees nothing and is seen by nothing
    """
    distance = positions[:, :, None] - key_positions[:, None, :]
    same = (segments[:, :, None] == key_segments[:, None, :]) & (key_segments[:, None, :] != 0)
    return same & (distance >= 0) & (distance < window)


def rope_frequencies(config: LlamaConfig) -> Float32[np.ndarray, "R"]:
    """The angles in radians by which a head's R pairs of numbers turn from one position to the next.

    In float32, as transformers has them, but for the power: it is rounded once, NumPy's own in float32 is off by up to
    1.5e-7. torch's is off in the last place here and there, though at none of the widths that LLaMA has.
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    powers = np.float64(config.rope_theta) ** exponents.astype(np.float64)
    return config.rope_scaling(1 / powers.astype(np.float32))


def rope_angles(config: LlamaConfig, positions: Int[Array, "B T"]) -> Float32[Array, "2 B T R"]:
    """Cosines and sines of the angles of each position, once for all layers (RoFormer, section 3.2)."""
    angles = positions[..., None].astype(jnp.float32) * rope_frequencies(config)
    return jnp.stack((jnp.cos(angles), jnp.sin(angles)))


def apply_rope(x: Float[Array, "B T N H"], angles: Float32[Array, "2 B T R"]) -> Float[Array, "B T N H"]:
    """Turns the pairs (i, i + H / 2) of every head, in float32; returned in the input's dtype."""
    cos, sin = angles[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1).astype(x.dtype)


def stacks_layers(mesh: Mesh | None) -> bool:
    """Whether a mesh (None: the default device) runs layers best as a stack, of which a program holds one for all.

    A GPU's products take whole arrays, and a CPU's too: each layer's would be copied out of the stack first, three
    times the traffic of decoding. But where layers are gathered, over `fsdp`, they are arrays of their own in any case,
    and a GPU's compiler gathers layers that it sees one by one before they are needed, many at once. Several CPUs stand
    for other machines.
    """
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    if platform == "cpu":
        return mesh is not None and mesh.size > 1
    return platform != "gpu" or (mesh is not None and mesh.shape.get("fsdp", 1) > 1)


def vocabulary_logits(hidden: Float[Array, "*B D"], table: Float[Array, "V D"]) -> Float32[Array, "*B V"]:
    """Each token's product with the hidden states, in the table's dtype, summed in float32."""
    return jnp.einsum("...D,VD->...V", hidden.astype(table.dtype), table, preferred_element_type=jnp.float32)


class Attention(nnx.Module):
    """Grouped-query attention's projections, stacked over the layers."""

    def __init__(self, config: LlamaConfig, *, dtype: DTypeLike, quantization: Quantization, rngs: nnx.Rngs):
        sizes = {"D": config.embed_dim, "N": config.num_heads, "K": config.num_kv_heads, "H": config.head_dim}
        kept = {"layers": config.num_layers, "dtype": dtype, "quantization": quantization}
        project = partial(Projection, sizes=sizes, **kept, rngs=rngs)
        norm = partial(RMSNorm, config.head_dim, axis="H", eps=config.eps, layers=config.num_layers, dtype=dtype)
        self.query = project("BTD,NHD->BTNH", bias="NH" if config.qkv_bias else "")
        self.key = project("BTD,KHD->BTKH", bias="KH" if config.qkv_bias else "")
        self.value = project("BTD,KHD->BTKH", bias="KH" if config.qkv_bias else "")
        self.out = project("BTNH,NHD->BTD", bias="D" if config.out_bias else "")
        self.query_norm = norm() if config.qk_norm else None
        self.key_norm = norm() if config.qk_norm else None

    @jax.named_scope("attention")
    def project(
        self, x: Float[Array, "B T D"], angles: Float32[Array, "2 B T R"]
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Query, key and value heads; query and key are turned to their positions."""
        query, key = self.query(x), self.key(x)
        query = query if self.query_norm is None else self.query_norm(query)
        key = key if self.key_norm is None else self.key_norm(key)
        return apply_rope(query, angles), apply_rope(key, angles), self.value(x)


class MLP(nnx.Module):
    """The gated feed-forward block: down(activation(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig, *, dtype: DTypeLike, quantization: Quantization, rngs: nnx.Rngs):
        sizes = {"D": config.embed_dim, "F": config.mlp_dim}
        kept = {"layers": config.num_layers, "dtype": dtype, "quantization": quantization}
        project = partial(Projection, sizes=sizes, **kept, rngs=rngs)
        self.activation = config.activation
        self.gate = project("BTD,DF->BTF", bias="F" if config.mlp_bias else "")
        self.up = project("BTD,DF->BTF", bias="F" if config.mlp_bias else "")
        self.down = project("BTF,FD->BTD", bias="D" if config.mlp_bias else "")

    @jax.named_scope("mlp")
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down(ACTIVATIONS[self.activation](self.gate(x)) * self.up(x))


class DecoderLayer(nnx.Module):
    """All decoder layers, stacked; a scan takes them one by one, and then these methods are one layer's."""

    def __init__(self, config: LlamaConfig, *, dtype: DTypeLike, quantization: Quantization, rngs: nnx.Rngs):
        norm = partial(RMSNorm, config.embed_dim, eps=config.eps, layers=config.num_layers, dtype=dtype)
        self.attention_norm = norm()
        self.attention = Attention(config, dtype=dtype, quantization=quantization, rngs=rngs)
        self.mlp_norm = norm()
        self.mlp = MLP(config, dtype=dtype, quantization=quantization, rngs=rngs)

    def project(
        self, x: Float[Array, "B T D"], angles: Float32[Array, "2 B T R"]
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """The layer up to its attention: query, key and value heads of the residual stream `x`."""
        return self.attention.project(self.attention_norm(x), angles)

    def finish(self, x: Float[Array, "B T D"], attended: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
        """The layer from its attention's result on."""
        x = x + self.attention.out(attended)
        return x + self.mlp(self.mlp_norm(x))


class Llama(nnx.Module):
    """A decoder-only language model on embeddings; computes in `dtype`, norms, softmax, rotation and logits in float32.

    The embeddings come in from outside because music tokens have none of their own: see `embed` and `musilingo`.
    Quantised are the layers' projections; embedding, head and norms stay in `dtype`. The layers are `stacked` and
    scanned, or stand one by one and are unrolled: the numbers are the same, see `stacks_layers`.
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        dtype: DTypeLike,
        quantization: Quantization = "none",
        stacked: bool = True,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.stacked = stacked
        sizes = {"V": config.vocab_size, "D": config.embed_dim}
        initial = partial(parameter, "VD", sizes, None, dtype=dtype)
        self.embedding = initial(init=normal(rngs, config.embed_dim**-0.5))
        layers = DecoderLayer(config, dtype=dtype, quantization=quantization, rngs=rngs)
        self.layers = layers if stacked else nnx.List(unstack(layers, config.num_layers))
        self.norm = RMSNorm(config.embed_dim, eps=config.eps, dtype=dtype)
        self.head = None if config.tied else initial(init=normal(rngs, config.embed_dim**-0.5))

    @jax.named_scope("embed")
    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The tokens' rows of the embedding table, which stays where it is: tokens and rows travel, not the table."""
        tokens = constrain(tokens, "BT", DECODE_RULES)
        return constrain(jnp.take(self.embedding[...], tokens, axis=0), "BTD", DECODE_RULES)

    def __call__(
        self,
        embeddings: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"],
        *,
        remat: str = "none",
    ) -> Float[Array, "B T D"]:
        """The normed last hidden states of whole rows; those of padding have no meaning.

        `remat` says which of a layer's activations the backward pass makes again: see `REMAT`.
        """
        angles = rope_angles(self.config, positions)
        # The layers are one computation; with a window in some of them the mask is the layer's own.
        windowed = any(window is not None and window < positions.shape[1] for window in self.config.windows)
        in_words = None if windowed else Segments(segments, causal=True)

        graphdef = layer_graph(self.layers)

        def step(x: Array, state: Any, window: Array | int) -> tuple[Array, None]:
            layer = nnx.merge(graphdef, gather_params(state))
            mask = attention_mask(positions, segments, positions, segments, window)
            query, key, value = layer.project(x, angles)
            attended = attend(query, key, value, mask, in_words)
            return constrain(layer.finish(x, attended), "BTD"), None

        # prevent_cse is for remat outside of a scan, and costs time inside.
        step = jax.checkpoint(step, prevent_cse=not self.stacked, policy=REMAT[remat])
        x = constrain(embeddings.astype(self.embedding.dtype), "BTD")
        return self.norm(run_layers(self.layers, step, x, self._windows)[0])

    @property
    def table(self) -> Float[Array, "V D"]:
        """The vectors that hidden states are compared with; in a tied model the embedding."""
        return (self.embedding if self.head is None else self.head)[...]

    @jax.named_scope("logits")
    def logits(self, hidden: Float[Array, "*B D"]) -> Float32[Array, "*B V"]:
        """Vocabulary logits of normed hidden states."""
        return vocabulary_logits(hidden, self.table)

    def init_cache(self, batch: int, size: int, dtype: DTypeLike) -> KVCache:
        """An empty cache of `size` slots for each of `batch` rows."""
        layers, shape = self.config.num_layers, (batch, size, self.config.num_kv_heads, self.config.head_dim)

        def empty() -> CacheArrays:
            if self.stacked:
                return jnp.zeros((layers, *shape), dtype)
            return tuple(jnp.zeros(shape, dtype) for _ in range(layers))

        # Each an array of its own: one standing for two could not be donated.
        return KVCache(empty(), empty(), jnp.full((batch, size), -1, jnp.int32))

    def extend(
        self,
        embeddings: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"],
        cache: KVCache,
        start: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """Hidden states of `__call__` for T further tokens of rows that hold one text each, and the cache with them.

        The tokens take slots `start` to `start + T` in every row, which must fit the cache; padding (segment 0) takes
        its slots too, as empty ones. At slot 0 this is the prefill, with T = 1 a decoding step.
        """
        angles = rope_angles(self.config, positions)
        segments = jnp.minimum(segments, 1)
        stored = jnp.where(segments == 0, -1, positions).astype(cache.positions.dtype)
        key_positions = jax.lax.dynamic_update_slice(cache.positions, stored, (0, start))
        key_segments = (key_positions >= 0).astype(segments.dtype)

        graphdef = layer_graph(self.layers)

        # The whole cache is carried and written in place; scanned over, slice by slice, it would stand in memory twice.
        def step(
            carry: tuple[Array, CacheArrays, CacheArrays], state: Any, index: Any, window: Array | int
        ) -> tuple[tuple[Array, CacheArrays, CacheArrays], None]:
            x, keys, values = carry
            layer = nnx.merge(graphdef, state)
            query, key, value = layer.project(x, angles)
            keys, own_keys = _store(keys, index, constrain(key, "BTKH"), start)
            values, own_values = _store(values, index, constrain(value, "BTKH"), start)
            mask = attention_mask(positions, segments, key_positions, key_segments, window)
            attended = attend(constrain(query, "BTNH"), own_keys.astype(x.dtype), own_values.astype(x.dtype), mask)
            return (constrain(layer.finish(x, attended), "BTD", DECODE_RULES), keys, values), None

        x = constrain(embeddings.astype(self.embedding.dtype), "BTD", DECODE_RULES)
        layers = range(self.config.num_layers)
        (x, keys, values), _ = run_layers(self.layers, step, (x, cache.key, cache.value), layers, self._windows)
        return self.norm(x), KVCache(keys, values, key_positions)

    @property
    def _windows(self) -> list[int]:
        return [NO_WINDOW if window is None else window for window in self.config.windows]


def _store(
    kept: CacheArrays, index: Any, new: Float[Array, "B T K H"], start: Int[Array, ""] | int
) -> tuple[CacheArrays, Float[Array, "B S K H"]]:
    """All layers' keys, or values, with the newest of one of them from slot `start` on; and that layer's alone."""
    if isinstance(kept, tuple):
        own = jax.lax.dynamic_update_slice(kept[index], new.astype(kept[index].dtype), (0, start, 0, 0))
        own = constrain(own, "BSKH")
        return (*kept[:index], own, *kept[index + 1 :]), own
    kept = jax.lax.dynamic_update_slice(kept, new[None].astype(kept.dtype), (index, 0, start, 0, 0))
    kept = constrain(kept, "LBSKH")
    return kept, kept[index]

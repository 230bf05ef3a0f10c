"""Attention of queries to keys, with grouped key/value heads: plain, or by a kernel that never writes the scores down.

Axes: B rows, T queries, S keys, N heads, K key/value heads, H head width.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mlingo_jax.models.partition import used

Implementation = Literal["xla", "cudnn", "splash"]

# From here on a kernel is quicker. Plain scores are written and read in float32, 4 x 4 T bytes a query and head: at 256
# positions a few hundredths of what a layer's weights take, at MERT's 2,250 frames three times its products' time.
LONG = 1024
# Queries and keys that the TPU's kernel holds at a time; rows are padded to a multiple.
BLOCK = 512


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segments:
    """A mask in words, for the kernels: a position sees its own segment and, if `causal`, no later ones.

    What padding sees is left open, as long as nothing but padding sees padding.
    """

    ids: Int[Array, "B T"]
    causal: bool = dataclasses.field(metadata={"static": True})


@jax.named_scope("attend")
def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
    segments: Segments | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention; `mask` is True where a query may look, and `segments`, if given, says the same.

    A query that may look nowhere (padding) gets a finite, meaningless result.
    """
    size = query.shape[1], query.shape[3], query.dtype
    implementation = "xla" if segments is None else choose(_platform(), *size, segments.causal)
    if segments is None or implementation == "xla":
        return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None])
    if implementation == "cudnn":
        return _cudnn(query, key, value, mask, segments)
    return _splash(query, key, value, segments)


def choose(platform: str, length: int, head_dim: int, dtype: DTypeLike, causal: bool) -> Implementation:
    """How self-attention over rows of this length is computed best on a platform ("cpu", "gpu", "tpu")."""
    if length < LONG or jnp.dtype(dtype) != jnp.bfloat16:
        return "xla"
    # cuDNN's backward pass and its added mask take even lengths only. What is not causal here is a frozen encoder: a
    # forward pass by lengths, and MERT makes 2,249 frames of 30 s.
    if platform == "gpu" and head_dim <= 128 and head_dim % 8 == 0 and not (causal and length % 2):
        return "cudnn"
    return "splash" if platform == "tpu" else "xla"


def _platform() -> str:
    """That of the mesh in use, which need not be this machine's: programs are also compiled for others."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def _cudnn(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
    segments: Segments,
) -> Float[Array, "B T N H"]:
    """cuDNN's kernel. Rows of one segment that all may see are a length to it, everything else an added mask."""
    if segments.causal:
        return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None], implementation="cudnn")
    # No key at all would be a division by zero, and what padding gets has no meaning.
    lengths = jnp.maximum((segments.ids > 0).sum(axis=1, dtype=jnp.int32), 1)
    whole = jnp.full_like(lengths, query.shape[1])
    return jax.nn.dot_product_attention(
        query, key, value, query_seq_lengths=whole, key_value_seq_lengths=lengths, implementation="cudnn"
    )


def _splash(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segments: Segments,
    *,
    block: int = BLOCK,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """The TPU's kernel, on each device for its own rows and heads; it skips blocks that lie in the future."""
    # Here: to import them takes almost half a second, and only a TPU needs them.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_masks

    length = query.shape[1]
    padding = -length % block
    wide = ((0, 0), (0, padding), (0, 0), (0, 0))
    # A segment of its own: each position has to see something.
    ids = jnp.pad(segments.ids, ((0, 0), (0, padding)), constant_values=-1)
    query, key, value = (jnp.pad(x, wide) for x in (query * query.shape[3] ** -0.5, key, value))

    def local(
        query: Float[Array, "B T N H"], key: Float[Array, "B T K H"], value: Float[Array, "B T K H"], ids: Array
    ) -> Float[Array, "B T N H"]:
        size = (length + padding, length + padding)
        mask = splash_masks.CausalMask(size) if segments.causal else splash_masks.FullMask(size)
        kernel = splash.make_splash_mha(
            splash_masks.MultiHeadMask([mask] * query.shape[2]),
            block_sizes=splash.BlockSizes(block, block, None, block, block, None, block, block),
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        heads = [x.swapaxes(1, 2) for x in (query, key, value)]
        attended: Any = jax.vmap(kernel)(*heads, splash.SegmentIds(ids, ids))
        return attended.swapaxes(1, 2)

    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        specs = tuple(used(x.shape, axes) for x, axes in ((query, "BTNH"), (key, "BTKH"), (value, "BTKH"), (ids, "BT")))
        local = jax.shard_map(local, in_specs=specs, out_specs=specs[0], check_vma=False)
    return local(query, key, value, ids)[:, :length]

"""MERT, the frozen encoder: a HuBERT-shaped network over raw audio.

For one clip it computes what MERT's `modeling_MERT.py` and transformers' `HubertModel` compute. In a padded batch it
differs from them on purpose: statistics, attention and pooling see a row's own frames only, so that a clip's features
do not depend on its neighbours.

Axes: B rows, N samples (of a waveform), T frames or taps of a convolution, U a convolution's output frames, I and O
its input and output channels, C the last one's output channels, D width, F inner width, N heads and H head width (of a
kernel), L layers, S hidden states (L + 1), K pooling windows.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int

from mlingo_jax.models.attention import Segments, attend
from mlingo_jax.models.layers import ACTIVATIONS, LayerNorm, Projection, normal, parameter
from mlingo_jax.models.mert_config import MertConfig, conv_length
from mlingo_jax.models.partition import constrain, gather_params, used
from mlingo_jax.models.pooling import pool_frames, valid_frames
from mlingo_jax.models.stack import layer_graph, run_layers

# PyTorch's default: the convolutions' norms do not read the configuration's layer_norm_eps.
CONV_NORM_EPS = 1e-5


class ChannelNorm(nnx.Module):
    """Group normalisation with one channel per group: over a row's valid frames, in float32."""

    def __init__(self, size: int, *, dtype: DTypeLike):
        self.scale = parameter("O", {"O": size}, None, jnp.ones, dtype)
        self.bias = parameter("O", {"O": size}, None, jnp.zeros, dtype)

    def __call__(self, x: Float[Array, "B T O"], frames: Int[Array, " B"]) -> Float[Array, "B T O"]:
        valid = valid_frames(x, frames)
        count = jnp.maximum(frames, 1)[:, None, None]
        y = x.astype(jnp.float32)
        y = y - jnp.sum(y, axis=1, keepdims=True, where=valid) / count
        variance = jnp.sum(jnp.square(y), axis=1, keepdims=True, where=valid) / count
        y = y * jax.lax.rsqrt(variance + CONV_NORM_EPS)
        return (y * self.scale[...].astype(y.dtype) + self.bias[...].astype(y.dtype)).astype(x.dtype)


class ConvLayer(nnx.Module):
    """Strided convolution without padding, norm (none, `ChannelNorm` or `LayerNorm`), activation."""

    def __init__(self, config: MertConfig, index: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        inputs = config.conv_channels[index - 1] if index else 1
        outputs, kernel_size = config.conv_channels[index], config.conv_kernel_sizes[index]
        self.stride = config.conv_strides[index]
        self.activation = config.conv_activation
        sizes = {"T": kernel_size, "I": inputs, "O": outputs}
        self.kernel = parameter("TIO", sizes, None, normal(rngs, (kernel_size * inputs) ** -0.5), dtype)
        self.bias = parameter("O", sizes, None, jnp.zeros, dtype) if config.conv_bias else None
        if config.conv_norm == "layer":
            self.norm = LayerNorm(outputs, axis="O", eps=CONV_NORM_EPS, dtype=dtype)
        else:
            self.norm = None if index else ChannelNorm(outputs, dtype=dtype)

    def frames(self, frames: Int[Array, " B"]) -> Int[Array, " B"]:
        """Number of valid output frames of that many input frames."""
        return conv_length(frames, self.kernel.shape[0], self.stride)

    @jax.named_scope("convolution")
    def __call__(self, x: Float[Array, "B T I"], frames: Int[Array, " B"]) -> Float[Array, "B U O"]:
        """`frames` counts the output's valid frames."""
        # Accelerators round by default, the waveform too (see `Mert._frame_vectors`); for one channel, not to is free.
        precision = jax.lax.Precision.HIGHEST if x.shape[-1] == 1 else None
        kernel = constrain(self.kernel[...], "TIO").astype(x.dtype)
        x = jax.lax.conv_general_dilated(
            x, kernel, (self.stride,), "VALID", dimension_numbers=("NTC", "TIO", "NTC"), precision=precision
        )
        if self.bias is not None:
            x = x + self.bias[...].astype(x.dtype)
        if isinstance(self.norm, ChannelNorm):
            x = self.norm(x, frames)
        elif self.norm is not None:
            x = self.norm(x)
        return constrain(ACTIVATIONS[self.activation](x), "BTC")


class PositionConv(nnx.Module):
    """Grouped convolution over time that stands in for position embeddings; weight norm kept as gain and direction."""

    def __init__(self, config: MertConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.groups = config.position_groups
        self.activation = config.conv_activation
        inputs = config.embed_dim // self.groups
        sizes = {"T": config.position_kernel_size, "I": inputs, "O": config.embed_dim}
        self.gain = parameter("T", sizes, None, jnp.ones, dtype)
        self.direction = parameter("TIO", sizes, None, normal(rngs, 1.0), dtype)
        self.bias = parameter("O", sizes, None, jnp.zeros, dtype)

    @jax.named_scope("position_convolution")
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        kernel = self.kernel().astype(x.dtype)
        kernel_size = len(kernel)
        # Half the kernel on either side; an even number would give one frame more, and the last one is dropped.
        padding = (kernel_size // 2, (kernel_size - 1) // 2)
        convolve = partial(
            jax.lax.conv_general_dilated,
            window_strides=(1,),
            padding=(padding,),
            dimension_numbers=("NTC", "TIO", "NTC"),
            feature_group_count=self.groups,
        )
        if not jax.sharding.get_abstract_mesh().empty:
            # XLA does not split a grouped convolution's rows by itself: each device would compute those of all.
            rows = used(x.shape, "BTD")
            convolve = jax.shard_map(convolve, in_specs=(rows, P()), out_specs=rows)
        x = convolve(x, kernel)
        return ACTIVATIONS[self.activation](x + self.bias[...].astype(x.dtype))

    def kernel(self) -> Float32[Array, "T I O"]:
        """Each tap's direction scaled to the length that its gain gives."""
        direction = constrain(self.direction[...], "TIO").astype(jnp.float32)
        length = jnp.sqrt(jnp.square(direction).sum((1, 2), keepdims=True))
        return self.gain[...].astype(jnp.float32)[:, None, None] * direction / length


class Attention(nnx.Module):
    """Self-attention of all frames to a row's valid frames."""

    def __init__(self, config: MertConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        sizes = {"D": config.embed_dim, "N": config.num_heads, "H": config.embed_dim // config.num_heads}
        project = partial(Projection, sizes=sizes, layers=config.num_layers, dtype=dtype, rngs=rngs)
        self.query = project("BTD,NDH->BTNH", bias="NH")
        self.key = project("BTD,NDH->BTNH", bias="NH")
        self.value = project("BTD,NDH->BTNH", bias="NH")
        self.out = project("BTNH,NHD->BTD", bias="D")

    @jax.named_scope("attention")
    def __call__(self, x: Float[Array, "B T D"], valid: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        mask = jnp.broadcast_to(valid[:, None], (*x.shape[:2], x.shape[1]))
        segments = Segments(valid.astype(jnp.int32), causal=False)
        return self.out(attend(self.query(x), self.key(x), self.value(x), mask, segments))


class MLP(nnx.Module):
    """Two linear maps with an activation between them."""

    def __init__(self, config: MertConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        sizes = {"D": config.embed_dim, "F": config.mlp_dim}
        project = partial(Projection, sizes=sizes, layers=config.num_layers, dtype=dtype, rngs=rngs)
        self.activation = config.activation
        self.up = project("BTD,DF->BTF", bias="F")
        self.down = project("BTF,FD->BTD", bias="D")

    @jax.named_scope("mlp")
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class EncoderLayer(nnx.Module):
    """All transformer layers, stacked along L; a scan's slice of them is one layer, and that is what is called."""

    def __init__(self, config: MertConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.pre_norm = config.pre_norm
        norm = partial(LayerNorm, config.embed_dim, eps=config.eps, layers=config.num_layers, dtype=dtype)
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.attention_norm = norm()
        self.mlp = MLP(config, dtype=dtype, rngs=rngs)
        self.mlp_norm = norm()

    def __call__(self, x: Float[Array, "B T D"], valid: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        if self.pre_norm:
            x = x + self.attention(self.attention_norm(x), valid)
            return x + self.mlp(self.mlp_norm(x))
        x = self.attention_norm(x + self.attention(x, valid))
        return self.mlp_norm(x + self.mlp(x))


class Mert(nnx.Module):
    """The encoder. Parameters are kept, and the layers computed, in `dtype`; norms and pooling in float32."""

    def __init__(self, config: MertConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.config = config
        self.dtype = jnp.dtype(dtype)
        embed_dim, channels = config.embed_dim, config.conv_channels[-1]
        convs = range(len(config.conv_channels))
        self.conv_layers = nnx.List([ConvLayer(config, i, dtype=dtype, rngs=rngs) for i in convs])
        self.feature_norm = (
            LayerNorm(channels, axis="C", eps=config.eps, dtype=dtype) if config.projection_norm else None
        )
        sizes = {"C": channels, "D": embed_dim}
        self.feature_projection = Projection("BTC,CD->BTD", sizes, bias="D", dtype=dtype, rngs=rngs)
        mask = config.mask_embedding
        self.masked_spec_embed = parameter("D", sizes, None, normal(rngs, 1.0), dtype) if mask else None
        self.position_conv = PositionConv(config, dtype=dtype, rngs=rngs)
        self.layers = EncoderLayer(config, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(embed_dim, eps=config.eps, dtype=dtype)

    def features(
        self,
        waveform: Float[Array, "B N"],
        lengths: Int[Array, " B"],
        *,
        frames_per_token: int,
        per_layer: bool = False,
        mask_time: Bool[Array, "B T"] | None = None,
    ) -> Float32[Array, "B *S K D"]:
        """Music features: the mean over hidden states, then over runs of `frames_per_token` valid frames.

        Each row's first `lengths` samples count. A row's last token may be of fewer frames; tokens behind it are 0.
        K = `pooled_length` of its frames. `per_layer` leaves out the mean over the S hidden states. `mask_time`
        (SpecAugment) puts the learned mask vector in the place of these frames.
        """
        frames = self.config.frames(lengths)
        # A state is pooled as it is computed: S states of K tokens are kept, never S states of T frames.
        pool = partial(pool_frames, frames=frames, frames_per_token=frames_per_token)
        states = self._states(waveform, lengths, pool, mask_time)
        return jnp.moveaxis(states, 0, 1) if per_layer else states.mean(0)

    def hidden_states(self, waveform: Float[Array, "B N"], lengths: Int[Array, " B"]) -> Float[Array, "S B T D"]:
        """Every hidden state, as transformers 4 returns them: the last one is normed in a pre-norm encoder as well.

        Frames past a row's own hold finite numbers without meaning.
        """
        return self._states(waveform, lengths, lambda x: x, None)

    def _states(
        self,
        waveform: Float[Array, "B N"],
        lengths: Int[Array, " B"],
        keep: Callable[[Array], Array],
        mask_time: Bool[Array, "B T"] | None,
    ) -> Float[Array, "S ..."]:
        """`keep(hidden state)` of all hidden states."""
        x, frames = self._frame_vectors(waveform, lengths, mask_time)
        x = x + self.position_conv(x)
        if not self.config.pre_norm:
            x = self.norm(x)
        valid = valid_frames(x, frames)[..., 0]
        graphdef = layer_graph(self.layers)

        def step(x: Array, layer: Any) -> tuple[Array, Array]:
            return constrain(nnx.merge(graphdef, gather_params(layer))(x, valid), "BTD"), keep(x)

        x, states = run_layers(self.layers, step, x)
        if self.config.pre_norm:
            x = self.norm(x)
        return jnp.concatenate([states, keep(x)[None]])

    def _frame_vectors(
        self, waveform: Float[Array, "B N"], lengths: Int[Array, " B"], mask_time: Bool[Array, "B T"] | None
    ) -> tuple[Float[Array, "B T D"], Int[Array, " B"]]:
        """The transformer's input before positions, 0 past a row's frames, and the number of these."""
        # The first convolution runs in float32: its high-pass channels are what is left of the large low frequencies,
        # and its norm would blow a bfloat16 waveform's rounding up to full scale.
        x, frames = constrain(waveform.astype(jnp.float32)[..., None], "BTI"), lengths
        for layer in self.conv_layers:
            frames = layer.frames(frames)
            x = layer(x, frames).astype(self.dtype)
        if self.feature_norm is not None:
            x = self.feature_norm(x)
        x = constrain(self.feature_projection(x), "BTD")
        if mask_time is not None:
            if self.masked_spec_embed is None:
                raise ValueError("mask_time given, but this encoder has no masked_spec_embed")
            x = jnp.where(mask_time[..., None], self.masked_spec_embed[...].astype(x.dtype), x)
        return jnp.where(valid_frames(x, frames), x, 0), frames

"""MERT, the frozen encoder: a HuBERT-shaped network over raw audio.

For one clip it computes what MERT's `modeling_MERT.py` and transformers' `HubertModel` compute. In a padded batch it
differs from them on purpose: statistics, attention and pooling see a row's own frames only, so that a clip's features
do not depend on its neighbours.

Axes: B rows, N samples (of a waveform), T frames or taps of a convolution, U a convolution's output frames, I and O
its input and output channels, C the last one's output channels, D width, F inner width, N heads and H head width (of a
kernel), L layers, S hidden states (L + 1), K pooling windows.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int

from mlingo_jax.models.attention import Segments, attend
from mlingo_jax.models.attributes import MOST_LAYERS, Attributes
from mlingo_jax.models.layers import ACTIVATIONS, LayerNorm, Projection, normal, parameter
from mlingo_jax.models.partition import constrain, gather_params, used
from mlingo_jax.models.pooling import pool_frames, valid_frames
from mlingo_jax.models.stack import layer_graph, run_layers

Samples = TypeVar("Samples", bound=int | np.integer | np.ndarray | Array)

# PyTorch's default: the convolutions' norms do not read the configuration's layer_norm_eps.
CONV_NORM_EPS = 1e-5

# What would change the computation in a way not built here, and the value that switches each off.
SWITCHED_OFF: Mapping[str, Any] = {
    "add_adapter": False,
    "conv_pos_batch_norm": False,
    "deepnorm": False,
    "feature_extractor_cqt": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
}
# Older files leave out what their models could not yet choose.
WHEN_ABSENT: Mapping[str, Any] = {"feat_proj_layer_norm": True, "model_type": "hubert", **SWITCHED_OFF}
# Bookkeeping, training and other heads: none changes a hidden state of the frozen encoder. attention_relax acts only
# together with deepnorm, the number of CQT bins only together with CQT.
HARMLESS = """
    _* activation_dropout apply_spec_augment architectures attention_dropout attention_relax attn_implementation
    auto_map chunk_size_feed_forward classifier_proj_size ctc_* dtype feat_extract_dropout feat_proj_dropout
    feature_extractor_cqt_bins final_dropout finetuning_task gradient_checkpointing hidden_dropout id2label
    initializer_range label2id layerdrop mask_channel_* mask_feature_* mask_time_* name_or_path output_* problem_type
    proj_codevector_dim return_dict sample_rate task_specific_params tokenizer_class torch_dtype torchscript
    transformers_version use_weighted_layer_sum vocab_size *_token_id
"""


@dataclass(frozen=True)
class MertConfig:
    """An encoder's architecture, as its `config.json` gives it."""

    embed_dim: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    eps: float
    activation: str
    pre_norm: bool
    conv_channels: tuple[int, ...]
    conv_kernel_sizes: tuple[int, ...]
    conv_strides: tuple[int, ...]
    conv_bias: bool
    conv_norm: str
    conv_activation: str
    projection_norm: bool
    position_kernel_size: int
    position_groups: int
    mask_embedding: bool

    @classmethod
    def from_json(cls, values: Mapping[str, Any], source: str) -> "MertConfig":
        """Reads a Hugging Face `config.json` of a MERT or HuBERT model; `source` is its name, for messages.

        Raises:
            UserError: an attribute is missing or of the wrong kind, or asks for a computation that is not this one.
        """
        attributes = Attributes(values, source, WHEN_ABSENT)
        attributes.only("model_type", "mert_model", "hubert")
        for name, off in SWITCHED_OFF.items():
            attributes.only(name, off)
        config = cls(
            embed_dim=attributes.count("hidden_size"),
            mlp_dim=attributes.count("intermediate_size"),
            num_layers=attributes.count("num_hidden_layers", most=MOST_LAYERS),
            num_heads=attributes.count("num_attention_heads"),
            eps=attributes.number("layer_norm_eps"),
            activation=attributes.only("hidden_act", *ACTIVATIONS),
            pre_norm=attributes.flag("do_stable_layer_norm"),
            conv_channels=attributes.counts("conv_dim"),
            conv_kernel_sizes=attributes.counts("conv_kernel"),
            conv_strides=attributes.counts("conv_stride"),
            conv_bias=attributes.flag("conv_bias"),
            conv_norm=attributes.only("feat_extract_norm", "group", "layer"),
            conv_activation=attributes.only("feat_extract_activation", *ACTIVATIONS),
            projection_norm=attributes.flag("feat_proj_layer_norm"),
            position_kernel_size=attributes.count("num_conv_pos_embeddings"),
            position_groups=attributes.count("num_conv_pos_embedding_groups"),
            # transformers makes this parameter only where training is to mask something.
            mask_embedding=max(attributes.number("mask_time_prob"), attributes.number("mask_feature_prob")) > 0,
        )
        convs = len(config.conv_channels)
        if attributes.get("num_feat_extract_layers") not in (None, convs):
            attributes.refuse("num_feat_extract_layers", f"the length of conv_dim, {convs}")
        for name in ("conv_kernel", "conv_stride"):
            if len(attributes.counts(name)) != convs:
                attributes.refuse(name, f"as long as conv_dim, {convs}")
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            if config.embed_dim % attributes.count(name):
                attributes.refuse(name, f"a divisor of hidden_size, {config.embed_dim}")
        attributes.finish(HARMLESS.split())
        return config

    @property
    def states(self) -> int:
        """Number of hidden states: the first layer's input and every layer's output."""
        return self.num_layers + 1

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(self.conv_strides)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees; the shortest audio that has a frame."""
        reaches = [(k - 1) * math.prod(self.conv_strides[:i]) for i, k in enumerate(self.conv_kernel_sizes)]
        return 1 + sum(reaches)

    def frames(self, samples: Samples) -> Samples:
        """Number of frames of that many samples, for an integer or an array of them; 0 below the receptive field."""
        for kernel, stride in zip(self.conv_kernel_sizes, self.conv_strides, strict=True):
            samples = _conv_length(samples, kernel, stride)
        return samples


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
        return _conv_length(frames, self.kernel.shape[0], self.stride)

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


def _conv_length(length: Samples, kernel: int, stride: int) -> Samples:
    """Outputs of a convolution without padding; 0 where the input is shorter than the kernel."""
    outputs: Any = (length - kernel) // stride + 1
    return outputs * (outputs > 0)

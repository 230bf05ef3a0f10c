"""MERT's architecture, as its `config.json` gives it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from mlingo_jax.models.attributes import ACTIVATIONS, MOST_LAYERS, Attributes

# Of an integer, a numpy or a JAX array.
Samples = TypeVar("Samples")

# The published models': samples of audio a second, and those that one frame sees (75 frames a second).
SAMPLE_RATE = 24_000
RECEPTIVE_FIELD = 400

# What would change the computation in a way not built here, and the value that switches each off.
SWITCHED_OFF: Mapping[str, Any] = {
    "add_adapter": False,
    "conv_pos_batch_norm": False,
    "deepnorm": False,
    "feature_extractor_cqt": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
}
# Older files leave out what their models could not yet choose; HuBERT's state no rate of their audio.
WHEN_ABSENT: Mapping[str, Any] = {
    "feat_proj_layer_norm": True,
    "model_type": "hubert",
    "sample_rate": SAMPLE_RATE,
    **SWITCHED_OFF,
}
# Bookkeeping, training and other heads: none changes a hidden state of the frozen encoder. attention_relax acts only
# together with deepnorm, the number of CQT bins only together with CQT.
HARMLESS = """
    _* activation_dropout apply_spec_augment architectures attention_dropout attention_relax attn_implementation
    auto_map chunk_size_feed_forward classifier_proj_size ctc_* dtype feat_extract_dropout feat_proj_dropout
    feature_extractor_cqt_bins final_dropout finetuning_task gradient_checkpointing hidden_dropout id2label
    initializer_range label2id layerdrop mask_channel_* mask_feature_* mask_time_* name_or_path output_* problem_type
    proj_codevector_dim return_dict task_specific_params tokenizer_class torch_dtype torchscript
    transformers_version use_weighted_layer_sum vocab_size *_token_id
"""


@dataclass(frozen=True)
class MertConfig:
    """An encoder's architecture, as its `config.json` gives it.

    `sample_rate` is that of its audio in Hz, for plans; what a run encodes has that of `preprocessor_config.json`.
    """

    sample_rate: int
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
            sample_rate=attributes.count("sample_rate"),
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
            samples = conv_length(samples, kernel, stride)
        return samples

    def more_operations(self, samples: int) -> dict[str, int]:
        """Operations on one clip, by name, beyond the two for each parameter and frame.

        Between the frames of a clip, frames^2 counts; and the extractor's convolutions run at more than the frames'
        rate, up to 64 times.
        """
        frames = self.frames(samples)
        return {
            "the frames' attention": 4 * frames * frames * self.embed_dim * self.num_layers,
            "the extractor": self._extractor_operations(samples),
        }

    def _extractor_operations(self, samples: int) -> int:
        inputs = (1, *self.conv_channels)
        weights = [k * i * o for k, i, o in zip(self.conv_kernel_sizes, inputs, self.conv_channels, strict=False)]
        positions = samples
        total = 0
        for weight, kernel, stride in zip(weights, self.conv_kernel_sizes, self.conv_strides, strict=True):
            positions = (positions - kernel) // stride + 1
            total += 2 * weight * positions
        return total - 2 * sum(weights) * positions


def conv_length(length: Samples, kernel: int, stride: int) -> Samples:
    """Outputs of a convolution without padding; 0 where the input is shorter than the kernel."""
    inputs: Any = length
    outputs: Any = (inputs - kernel) // stride + 1
    return outputs * (outputs > 0)

"""What LLaMA and its relatives measure, as read from their config.json; the network is `mlingo_jax.models.llama`'s.

R is half of a head's width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from mlingo_jax.models.attributes import ACTIVATIONS, MOST_LAYERS, Attributes

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
LAYER_TYPES = ("full_attention", "sliding_attention")

# Attributes that would change the computation in a way not built here, and the value that switches each off. The biases
# and the window are read where the family has them.
SWITCHED_OFF: Mapping[str, Any] = {
    "add_cross_attention": False,
    "attention_bias": False,
    "is_encoder_decoder": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "pruned_heads": {},
    "rope_interleaved": False,
    "tie_encoder_decoder": False,
    "use_mrope": False,
    "use_sliding_window": False,
}
# What older files leave out has the one value that their families had then.
WHEN_ABSENT: Mapping[str, Any] = {"rope_theta": 10_000.0, "tie_word_embeddings": False, **SWITCHED_OFF}
# Bookkeeping, training, generation: whatever the value, the frozen model's computation stays as it is.
HARMLESS = """
    _* architectures attention_dropout attn_implementation auto_map bad_words_ids begin_suppress_tokens
    chunk_size_feed_forward diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty finetuning_task id2label initializer_range is_llama_config label2id length_penalty
    max_length max_position_embeddings max_sequence_length min_length name_or_path
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_* prefix pretraining_tp problem_type
    remove_invalid_values repetition_penalty return_dict* suppress_tokens task_specific_params
    temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript transformers.js_config
    transformers_version typical_p unsloth_* use_bfloat16 use_cache *_token_id
"""


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor`; 1 for none."""

    factor: float

    def __call__(self, frequencies: Float32[np.ndarray, "R"]) -> Float32[np.ndarray, "R"]:
        return frequencies / np.float32(self.factor)


@dataclass(frozen=True)
class Llama3Scaling:
    """LLaMA 3.1's scaling of RoPE.

    Waves longer than the trained context / `low_factor` are slowed by `factor`, those shorter than the
    trained context / `high_factor` are kept, those between are blended. `context` is in tokens.
    """

    factor: float
    low_factor: float
    high_factor: float
    context: int

    def __call__(self, frequencies: Float32[np.ndarray, "R"]) -> Float32[np.ndarray, "R"]:
        # By way of the wavelengths, and each quotient as torch takes it, by a reciprocal: so it is rounded as there.
        wavelengths = np.float32(2 * np.pi) * (1 / frequencies)
        turns = self.context * (1 / wavelengths)
        kept = np.clip((turns - self.low_factor) / (self.high_factor - self.low_factor), 0, 1)
        return ((1 - kept) * frequencies / self.factor + kept * frequencies).astype(np.float32)


@dataclass(frozen=True)
class LlamaConfig:
    """The architecture, as read from a model's config.json; no field has a default, each is read by the code.

    `windows` gives each layer's sliding window in tokens, None for all of the past.
    """

    vocab_size: int
    embed_dim: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    activation: str
    rope_theta: float
    rope_scaling: LinearScaling | Llama3Scaling
    windows: tuple[int | None, ...]
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied: bool

    @classmethod
    def from_json(cls, values: Mapping[str, Any], source: str) -> "LlamaConfig":
        """Reads transformers' attributes, in the spelling of its version 4 or 5; `source` is the file's name.

        Raises:
            UserError: an attribute is missing, of the wrong kind, unknown, or asks for a computation not built here.
        """
        attributes = Attributes(values, source, WHEN_ABSENT)
        family = attributes.only("model_type", *FAMILIES)
        heads, embed_dim = attributes.count("num_attention_heads"), attributes.count("hidden_size")
        # Only LLaMA's files may lack this one, and Qwen3's head_dim is no function of the width.
        if family == "llama":
            attributes.values.setdefault("num_key_value_heads", heads)
        if family != "qwen3" and embed_dim % heads == 0:
            attributes.values.setdefault("head_dim", embed_dim // heads)
        layers = attributes.count("num_hidden_layers", most=MOST_LAYERS)
        bias = family in ("llama", "qwen3") and attributes.flag("attention_bias")
        theta, scaling = _read_rope(attributes)
        config = cls(
            vocab_size=attributes.count("vocab_size"),
            embed_dim=embed_dim,
            mlp_dim=attributes.count("intermediate_size"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=attributes.count("num_key_value_heads"),
            head_dim=attributes.count("head_dim", least=2),
            eps=attributes.number("rms_norm_eps"),
            activation=attributes.only("hidden_act", *ACTIVATIONS),
            rope_theta=theta,
            rope_scaling=scaling,
            windows=_read_windows(attributes, family, layers, stated="sliding_window" in values),
            qkv_bias=bias or family == "qwen2",
            out_bias=bias,
            mlp_bias=family == "llama" and attributes.flag("mlp_bias"),
            qk_norm=family == "qwen3",
            tied=attributes.flag("tie_word_embeddings"),
        )
        if heads % config.num_kv_heads:
            attributes.refuse("num_key_value_heads", f"a divisor of num_attention_heads, {heads}")
        if config.head_dim % 2:
            attributes.refuse("head_dim", "even")
        for name, off in SWITCHED_OFF.items():
            if name not in attributes.seen:
                attributes.only(name, off)
        attributes.finish(HARMLESS.split())
        return config


def _read_rope(attributes: Attributes) -> tuple[float, LinearScaling | Llama3Scaling]:
    """theta and scaling, from rope_parameters (transformers 5) or rope_theta and rope_scaling (transformers 4)."""
    old, new = attributes.get("rope_scaling"), attributes.get("rope_parameters")
    if old is not None and new is not None:
        attributes.refuse("rope_scaling", "absent, or rope_parameters are")
    table = old or new or {}
    if not isinstance(table, dict):
        attributes.refuse("rope_parameters" if old is None else "rope_scaling", "a table")
    when_absent = {"rope_theta": attributes.get("rope_theta"), "partial_rotary_factor": 1.0}
    # Old files say type, new ones rope_type, some both.
    rope = Attributes(table, attributes.source, {"rope_type": table.get("type", "default"), **when_absent})
    theta, kind = rope.number("rope_theta", least=1.0), rope.only("rope_type", "default", "linear", "llama3")
    rope.only("partial_rotary_factor", 1.0)
    if kind == "default":
        scaling = LinearScaling(1.0)
    elif kind == "linear":
        scaling = LinearScaling(rope.number("factor", least=1.0))
    else:
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if low >= high:
            rope.refuse("high_freq_factor", f"above low_freq_factor, {low}")
        context = rope.count("original_max_position_embeddings")
        scaling = Llama3Scaling(rope.number("factor", least=1.0), low, high, context)
    rope.finish(harmless=("type",))
    return theta, scaling


def _read_windows(attributes: Attributes, family: str, layers: int, *, stated: bool) -> tuple[int | None, ...]:
    if family == "llama":
        return (None,) * layers
    if family == "mistral":
        # transformers takes 4096 where it is missing, later Mistrals mean none by null: it has to be there.
        if not stated:
            attributes.refuse("sliding_window", "given: a number of tokens, or null for none")
        return (None if attributes.get("sliding_window") is None else attributes.count("sliding_window"),) * layers
    # A null is no window, whatever use_sliding_window says.
    slides = attributes.flag("use_sliding_window") and not (stated and attributes.get("sliding_window") is None)
    window = attributes.count("sliding_window") if slides else None
    attributes.seen.update(("sliding_window", "max_window_layers"))
    kinds = attributes.get("layer_types")
    if kinds is None:
        first = layers if window is None else attributes.count("max_window_layers", least=0)
        kinds = ["full_attention" if layer < first else "sliding_attention" for layer in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in LAYER_TYPES for kind in kinds):
        attributes.refuse("layer_types", f"a list of {layers}, each {' or '.join(LAYER_TYPES)}")
    if "sliding_attention" in kinds and window is None:
        attributes.refuse("use_sliding_window", "true, since layer_types has sliding_attention")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)

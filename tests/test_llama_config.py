"""Reading config.json: both spellings, what older files leave out, and what has to be refused by name."""

from typing import Any

import pytest
import transformers

from mlingo_jax.errors import UserError
from mlingo_jax.models.llama_config import LinearScaling, Llama3Scaling, LlamaConfig

# As the files of these models have it, but for attributes that every one of them has.
VICUNA_V0 = {
    "_name_or_path": "vicuna-7b",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_sequence_length": 2048,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.28.1",
    "use_cache": True,
    "vocab_size": 32001,
}
LLAMA_32_1B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
QWEN2 = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 32768,
    "max_window_layers": 1,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 16,
    "tie_word_embeddings": False,
    "use_mrope": False,
    "use_sliding_window": True,
    "vocab_size": 128,
}
MISTRAL = {
    "model_type": "mistral",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 128,
}
QWEN3 = {
    **{name: value for name, value in QWEN2.items() if name != "use_mrope"},
    "model_type": "qwen3",
    "attention_bias": True,
    "head_dim": 32,
    "use_sliding_window": False,
}


def read(values: dict[str, Any]) -> LlamaConfig:
    return LlamaConfig.from_json(values, "config.json")


def test_vicuna_v0() -> None:
    assert read(VICUNA_V0) == LlamaConfig(
        vocab_size=32001,
        embed_dim=4096,
        mlp_dim=11008,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        eps=1e-6,
        activation="silu",
        rope_theta=10_000.0,
        rope_scaling=LinearScaling(1.0),
        windows=(None,) * 32,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        qk_norm=False,
        tied=False,
    )


def test_llama_3_2() -> None:
    config = read(LLAMA_32_1B)
    assert (config.rope_theta, config.rope_scaling) == (500_000.0, Llama3Scaling(32.0, 1.0, 4.0, 8192))
    assert (config.num_heads, config.num_kv_heads, config.head_dim, config.tied) == (32, 8, 64, True)


def test_families() -> None:
    mistral, qwen2, qwen3 = read(MISTRAL), read(QWEN2), read(QWEN3)
    assert [c.windows for c in (mistral, qwen2, qwen3)] == [(4096, 4096), (None, 16, 16), (None, None, None)]
    assert [(c.qkv_bias, c.out_bias) for c in (mistral, qwen2, qwen3)] == [(False, False), (True, False), (True, True)]
    assert [c.qk_norm for c in (mistral, qwen2, qwen3)] == [False, False, True]
    assert [c.head_dim for c in (mistral, qwen2, qwen3)] == [16, 16, 32]


@pytest.mark.parametrize(
    ("values", "config_class"),
    [
        (VICUNA_V0, transformers.LlamaConfig),
        (LLAMA_32_1B, transformers.LlamaConfig),
        (VICUNA_V0 | {"rope_scaling": {"type": "linear", "factor": 8.0}}, transformers.LlamaConfig),
        (MISTRAL, transformers.MistralConfig),
        (MISTRAL | {"sliding_window": None}, transformers.MistralConfig),
        (QWEN2, transformers.Qwen2Config),
        (QWEN2 | {"use_sliding_window": False}, transformers.Qwen2Config),
        (QWEN2 | {"sliding_window": None}, transformers.Qwen2Config),
        (QWEN3, transformers.Qwen3Config),
    ],
)
def test_both_spellings_say_the_same(values: dict[str, Any], config_class: type) -> None:
    """transformers 5 reads the old file and writes it in its own spelling."""
    new = config_class(**values).to_dict()
    assert "rope_parameters" in new
    assert "rope_theta" not in new
    assert read(new) == read(values)


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization_config": None, "pretraining_tp": 2, "attention_dropout": 0.1},
        {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"kv_cache_dtype": "float32"}},
        {"rope_scaling": None, "num_key_value_heads": None, "head_dim": None},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}},
        {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 1.0}},
    ],
)
def test_what_changes_nothing_is_accepted(changes: dict[str, Any]) -> None:
    assert read(VICUNA_V0 | changes) == read(VICUNA_V0)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({**VICUNA_V0, "model_type": "gemma"}, "model_type"),
        ({**VICUNA_V0, "hidden_act": "relu6"}, "hidden_act"),
        ({**VICUNA_V0, "hidden_size": "4096"}, "hidden_size"),
        ({**VICUNA_V0, "num_hidden_layers": 0}, "num_hidden_layers"),
        ({**VICUNA_V0, "num_hidden_layers": True}, "num_hidden_layers"),
        ({**VICUNA_V0, "num_key_value_heads": 5}, "num_key_value_heads"),
        ({**VICUNA_V0, "num_attention_heads": 33}, "head_dim"),
        ({**VICUNA_V0, "head_dim": 127}, "head_dim"),
        ({**VICUNA_V0, "rms_norm_eps": None}, "rms_norm_eps"),
        ({**VICUNA_V0, "tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ({**VICUNA_V0, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({**VICUNA_V0, "quantization_config": {"bits": 4}}, "quantization_config"),
        ({**VICUNA_V0, "sliding_window": 128}, "sliding_window"),
        ({**VICUNA_V0, "no_rope_layers": [1]}, "no_rope_layers"),
        ({**VICUNA_V0, "rope_scaling": 2}, "rope_scaling"),
        ({**VICUNA_V0, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
        ({**VICUNA_V0, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'"),
        ({**VICUNA_V0, "rope_scaling": {"type": "linear"}}, "factor"),
        ({**VICUNA_V0, "rope_scaling": {"type": "linear", "factor": 2.0, "mscale": 1}}, "mscale"),
        ({**VICUNA_V0, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary"),
        ({**VICUNA_V0, "rope_parameters": {"rope_type": "default"}, "rope_scaling": {"a": 1}}, "rope_scaling"),
        ({**LLAMA_32_1B, "rope_scaling": {**LLAMA_32_1B["rope_scaling"], "high_freq_factor": 1.0}}, "high_freq_factor"),
        ({name: value for name, value in MISTRAL.items() if name != "sliding_window"}, "sliding_window"),
        ({name: value for name, value in QWEN2.items() if name != "num_key_value_heads"}, "num_key_value_heads"),
        ({**MISTRAL, "attention_bias": True}, "attention_bias"),
        ({**QWEN2, "attention_bias": True}, "attention_bias"),
        ({**QWEN2, "use_mrope": True}, "use_mrope"),
        ({**QWEN2, "layer_types": ["full_attention", "chunked_attention", "full_attention"]}, "layer_types"),
        ({**QWEN2, "layer_types": ["full_attention"]}, "layer_types"),
        ({**QWEN2, "layer_types": ["sliding_attention"] * 3, "use_sliding_window": False}, "use_sliding_window"),
        ({name: value for name, value in QWEN3.items() if name != "head_dim"}, "head_dim"),
    ],
)
def test_what_is_not_built_is_refused_by_name(values: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError, match=f"^config.json: .*{name}"):
        read(values)

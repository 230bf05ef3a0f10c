"""Small things made on the spot for the tests: a tokenizer, and models with random weights as Hugging Face folders."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mlingo_jax.models.llama import Llama
from mlingo_jax.models.llama_config import LlamaConfig
from mlingo_jax.models.mert import Mert, MertConfig
from mlingo_jax.weights.keymap import Rule, entries, parameters
from mlingo_jax.weights.llama import RULES as LLAMA_RULES
from mlingo_jax.weights.mert import RULES as MERT_RULES

TEXTS = [
    "###Human: <Audio></Audio> What instrument plays? ###Assistant: A slow bell plays in a low register.###",
    "###Human: <Audio></Audio> Describe the tempo of the music. ###Assistant: The tempo is fast, in a minor key.###",
]


def tiny_tokenizer(folder: Path, *, bos: bool = True, vocabulary: int = 320) -> PreTrainedTokenizerFast:
    """Writes a byte-level BPE tokenizer of about `vocabulary` pieces into `folder`; any text round-trips through it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", bos_token="<s>" if bos else None
    )
    fast.save_pretrained(folder)
    return fast


MERT = {
    "model_type": "mert_model",
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "do_stable_layer_norm": True,
    "conv_dim": [16] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_bias": False,
    "feat_extract_norm": "group",
    "feat_extract_activation": "gelu",
    "feat_proj_layer_norm": True,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.05,
    "mask_feature_prob": 0.0,
    "feature_extractor_cqt": False,
    "deepnorm": False,
    "sample_rate": 24000,
}

LLAMA = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_mert(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Writes a small encoder of random weights as a Hugging Face folder."""
    values = MERT | changes
    model = nnx.eval_shape(lambda: Mert(MertConfig.from_json(values, "tiny"), dtype=jnp.float32, rngs=nnx.Rngs(0)))
    _write_model(folder, values, MERT_RULES, model, seed)
    processor = {"do_normalize": True, "sampling_rate": values["sample_rate"]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def tiny_llama(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Writes a small language model of random weights, with a tokenizer, as a Hugging Face folder."""
    values = LLAMA | changes
    model = nnx.eval_shape(lambda: Llama(LlamaConfig.from_json(values, "tiny"), dtype=jnp.float32, rngs=nnx.Rngs(0)))
    _write_model(folder, values, LLAMA_RULES, model, seed)
    tiny_tokenizer(folder, vocabulary=values["vocab_size"])
    return folder


def tiny_musilingo(folder: Path, seed: int = 0) -> dict[str, Path]:
    """Writes an encoder, a language model and an adapter between them; where each is, by the name that commands use."""
    rng = np.random.default_rng(seed)
    weights = {"llama_proj.weight": rng.normal(0, 0.2, (32, 24)), "llama_proj.bias": rng.normal(0, 1, 32)}
    towers = {"mert": tiny_mert(folder / "mert"), "llm": tiny_llama(folder / "llm")}
    adapter = folder / "adapter.safetensors"
    save_file({name: w.astype(np.float32) for name, w in weights.items()}, adapter)
    return {**towers, "adapter": adapter}


def _write_model(folder: Path, values: dict[str, Any], rules: tuple[Rule, ...], model: nnx.Module, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    rng = np.random.default_rng(seed)
    weights = {e.torch: _random(rng, e.torch_shape) for e in entries(rules, parameters(model))}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    # Vectors are scales and biases: near one, so that no layer goes dead.
    values = rng.normal(1, 0.2, shape) if len(shape) == 1 else rng.normal(0, 0.3, shape)
    return values.astype(np.float32)

"""The numbers of transformers' LLaMA, Mistral, Qwen2 and Qwen3, read by the converter, block by block."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from flax import nnx
from jax import Array
from transformers.activations import ACT2FN

from mlingo_jax.models.attention import attend
from mlingo_jax.models.layers import ACTIVATIONS
from mlingo_jax.models.llama import (
    NO_WINDOW,
    DecoderLayer,
    KVCache,
    Llama,
    attention_mask,
    rope_angles,
    rope_frequencies,
)
from mlingo_jax.models.llama_config import LlamaConfig
from mlingo_jax.weights.load import load_tower

torch = pytest.importorskip("torch")

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
# Waves of 6 to 600 tokens: some kept, some blended, some slowed.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# A window shorter than the sequence.
WINDOW = {"sliding_window": 5}
CASES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama_grouped_tied_biased": {
        "model_type": "llama",
        "num_key_value_heads": 2,
        "head_dim": 12,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama_3_1": {"model_type": "llama", "num_key_value_heads": 2, "rope_scaling": LLAMA3_ROPE},
    "llama_linear": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama_gelu": {"model_type": "llama", "hidden_act": "gelu"},
    "mistral": {"model_type": "mistral", "num_key_value_heads": 1, **WINDOW},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 2},
    "qwen2_windows": {
        "model_type": "qwen2",
        "num_key_value_heads": 4,
        "use_sliding_window": True,
        "max_window_layers": 1,
        **WINDOW,
    },
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
    "qwen3_windows": {
        "model_type": "qwen3",
        "num_key_value_heads": 4,
        "head_dim": 8,
        "attention_bias": True,
        "use_sliding_window": True,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        **WINDOW,
    },
}
TOKENS = np.random.default_rng(0).integers(0, TINY["vocab_size"], (2, 24))


class Pair:
    """A reference model of random weights, and ours as the converter loads it from the reference's own folder."""

    def __init__(self, case: str, folder: Path):
        config = transformers.AutoConfig.for_model(**{**TINY, **CASES[case]})
        torch.manual_seed(0)
        reference = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for name, parameter in reference.named_parameters():
                # As made, biases are 0, norms 1 and attention nearly even: nothing of them would be seen.
                parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
        reference.save_pretrained(folder)
        with torch.no_grad():
            out = reference(torch.tensor(TOKENS), output_hidden_states=True)
        self.reference = reference
        self.hidden = [state.numpy() for state in out.hidden_states]
        self.logits = out.logits.numpy()
        tower = load_tower(folder, role="llm", dtype=jnp.float32)
        self.graphdef, self.params, self.config = tower.graphdef, tower.params, tower.config
        self.model: Llama = nnx.merge(tower.graphdef, nnx.State(tower.params))

    def layer(self, index: int) -> DecoderLayer:
        assert isinstance(self.model.layers, nnx.List)
        return self.model.layers[index]


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(request.param, tmp_path_factory.mktemp(request.param))


POSITIONS = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
SEGMENTS = jnp.ones_like(POSITIONS)


@partial(jax.jit, static_argnums=0)
def run(graphdef: nnx.GraphDef, params: dict[str, Any], tokens: Array) -> tuple[Array, Array]:
    model = nnx.merge(graphdef, nnx.State(params))
    hidden = model(model.embed(tokens), POSITIONS, SEGMENTS)
    return hidden, model.logits(hidden)


@partial(jax.jit, static_argnums=0)
def extend(
    graphdef: nnx.GraphDef, params: dict[str, Any], tokens: Array, positions: Array, cache: KVCache, start: int
) -> tuple[Array, KVCache]:
    model = nnx.merge(graphdef, nnx.State(params))
    hidden, cache = model.extend(model.embed(tokens), positions, jnp.ones_like(positions), cache, start)
    return model.logits(hidden), cache


def assert_equal(ours: Array, theirs: np.ndarray, tolerance: float = 1e-5) -> None:
    error = np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
    assert error < tolerance, f"relative error {error:.1e}"


def test_embedding_and_logits(pair: Pair) -> None:
    assert_equal(pair.model.embed(jnp.asarray(TOKENS)), pair.hidden[0])
    assert_equal(pair.model.logits(jnp.asarray(pair.hidden[-1])), pair.logits)


def test_mlp(pair: Pair) -> None:
    x = pair.hidden[1]
    with torch.no_grad():
        theirs = pair.reference.model.layers[1].mlp(torch.tensor(x)).numpy()
    assert_equal(pair.layer(1).mlp(jnp.asarray(x)), theirs)


def test_each_layer(pair: Pair) -> None:
    angles = rope_angles(pair.config, POSITIONS)
    # The last of transformers' hidden states is already normed.
    for index in range(pair.config.num_layers - 1):
        layer, x = pair.layer(index), jnp.asarray(pair.hidden[index])
        window = pair.config.windows[index] or NO_WINDOW
        attended = attend(*layer.project(x, angles), attention_mask(POSITIONS, SEGMENTS, POSITIONS, SEGMENTS, window))
        assert_equal(layer.finish(x, attended), pair.hidden[index + 1])


def test_whole_model(pair: Pair) -> None:
    hidden, logits = run(pair.graphdef, pair.params, TOKENS)
    assert_equal(hidden, pair.hidden[-1])
    assert_equal(logits, pair.logits)


def test_reads_its_own_past(pair: Pair) -> None:
    """A prefill of 21 tokens and three steps over the cache give transformers' logits, too."""
    cache = pair.model.init_cache(2, 24, jnp.float32)
    pieces = []
    for start, end in ((0, 21), (21, 22), (22, 23), (23, 24)):
        part = slice(start, end)
        logits, cache = extend(pair.graphdef, pair.params, TOKENS[:, part], POSITIONS[:, part], cache, start)
        pieces.append(logits)
    assert_equal(jnp.concatenate(pieces, axis=1), pair.logits)


LINEAR_ROPE = {"rope_type": "linear", "factor": 3.0}


@pytest.mark.parametrize(
    ("theta", "head_dim", "scaling", "ulps"),
    [
        # LLaMA 1 and 2 with Vicuna; LLaMA 3; LLaMA 3.1 and 3.2.
        (10_000.0, 128, None, 0),
        (10_000.0, 128, LINEAR_ROPE, 0),
        (500_000.0, 128, None, 0),
        (500_000.0, 128, LLAMA3_ROPE, 0),
        (500_000.0, 64, {**LLAMA3_ROPE, "factor": 32.0, "original_max_position_embeddings": 8192}, 0),
        # torch rounds some powers otherwise.
        (1_000_000.0, 128, None, 1),
        (10_000.0, 96, LINEAR_ROPE, 2),
        (10_000.0, 256, LLAMA3_ROPE, 2),
    ],
)
def test_rope_frequencies(theta: float, head_dim: int, scaling: dict[str, Any] | None, ulps: int) -> None:
    values = {**TINY, "model_type": "llama", "head_dim": head_dim, "rope_theta": theta, "hidden_act": "silu"}
    values |= {"rope_scaling": scaling} if scaling else {}
    theirs = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(transformers.LlamaConfig(**values))
    ours = rope_frequencies(LlamaConfig.from_json(values, "config.json"))
    np.testing.assert_array_max_ulp(ours, theirs.inv_freq.numpy(), ulps)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_are_those_of_transformers(name: str):
    x = np.linspace(-6, 6, 241, dtype=np.float32)
    expected = ACT2FN[name](torch.tensor(x)).numpy()
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)

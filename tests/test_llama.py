"""The language model without a reference: masks, packing, the cache, sizes, and that every setting is read."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array

from mlingo_jax.models.llama import KVCache, Llama, attention_mask
from mlingo_jax.models.llama_config import LinearScaling, Llama3Scaling, LlamaConfig

LENGTH = 12
TINY = LlamaConfig(
    vocab_size=64,
    embed_dim=24,
    mlp_dim=40,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    eps=1e-5,
    activation="silu",
    # With these, of the four waves one is kept, one blended, two are slowed.
    rope_theta=100.0,
    rope_scaling=Llama3Scaling(factor=8.0, low_factor=1.0, high_factor=4.0, context=32),
    windows=(None, 5),
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    qk_norm=False,
    tied=False,
)


def build(config: LlamaConfig) -> Llama:
    return Llama(config, dtype=jnp.float32, rngs=nnx.Rngs(0))


GRAPHDEF, PARAMS = nnx.split(build(TINY))


@jax.jit
def run(tokens: Array, positions: Array, segments: Array) -> Array:
    model = nnx.merge(GRAPHDEF, PARAMS)
    return model(model.embed(tokens), positions, segments)


@jax.jit
def extend(tokens: Array, positions: Array, segments: Array, cache: Any, start: int) -> tuple[Array, Any]:
    model = nnx.merge(GRAPHDEF, PARAMS)
    return model.extend(model.embed(tokens), positions, segments, cache, start)


def some_tokens(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, TINY.vocab_size, shape)


def packed(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Positions and segments [1, LENGTH] of texts of these lengths in one row, the rest of it padding."""
    positions = np.concatenate([np.arange(n) for n in (*lengths, LENGTH - sum(lengths))])
    segments = np.repeat([*range(1, len(lengths) + 1), 0], [*lengths, LENGTH - sum(lengths)])
    return positions[None], segments[None]


packings = st.lists(st.integers(1, LENGTH), min_size=1, max_size=5).filter(lambda lengths: sum(lengths) <= LENGTH)


def test_mask_of_the_docstring() -> None:
    positions, segments = jnp.array([[0, 1, 2, 0, 1, 0]]), jnp.array([[1, 1, 1, 2, 2, 0]])
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    assert (attention_mask(positions, segments, positions, segments, 2)[0] == jnp.array(expected, bool)).all()


@given(packings, st.integers(1, LENGTH + 1))
@settings(max_examples=30, deadline=None)
def test_mask_is_its_definition(lengths: list[int], window: int) -> None:
    positions, segments = packed(lengths)
    positions, segments = jnp.asarray(positions), jnp.asarray(segments)
    mask = np.asarray(attention_mask(positions, segments, positions, segments, window))[0]
    for query in range(LENGTH):
        for key in range(LENGTH):
            together = segments[0, query] == segments[0, key] > 0
            assert mask[query, key] == (together and 0 <= query - key < window)


@given(packings)
@settings(max_examples=15, deadline=None)
def test_texts_of_one_row_do_not_know_of_each_other(lengths: list[int]) -> None:
    tokens, (positions, segments) = some_tokens(1, LENGTH), packed(lengths)
    together = run(tokens, positions, segments)[0]
    start = 0
    for length in lengths:
        text = slice(start, start + length)
        alone_tokens = np.zeros((1, LENGTH), int)
        alone_tokens[0, :length] = tokens[0, text]
        alone = run(jnp.asarray(alone_tokens), *packed([length]))[0, :length]
        np.testing.assert_allclose(together[text], alone, rtol=1e-5, atol=1e-5)
        start += length


def test_padding_is_finite_and_has_a_finite_gradient() -> None:
    positions, segments = packed([5])

    def loss(embeddings: Array) -> Array:
        hidden = nnx.merge(GRAPHDEF, PARAMS)(embeddings, jnp.asarray(positions), jnp.asarray(segments))
        return jnp.square(hidden[:, :5]).sum() + 0.0 * hidden.sum()

    value, gradient = jax.value_and_grad(loss)(jnp.ones((1, LENGTH, TINY.embed_dim)))
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()
    assert (gradient[:, 5:] == 0).all()


@given(st.lists(st.integers(1, 4), min_size=1, max_size=LENGTH).filter(lambda steps: sum(steps) <= LENGTH))
@settings(max_examples=10, deadline=None)
def test_extending_in_any_steps_is_the_whole(steps: list[int]) -> None:
    tokens, positions = some_tokens(2, LENGTH), np.broadcast_to(np.arange(LENGTH), (2, LENGTH))
    whole = run(tokens, positions, np.ones_like(positions))
    cache = nnx.merge(GRAPHDEF, PARAMS).init_cache(2, LENGTH + 1, jnp.float32)
    start = 0
    for length in steps:
        part = np.s_[:, start : start + length]
        hidden, cache = extend(tokens[part], positions[part], np.ones((2, length), int), cache, start)
        np.testing.assert_allclose(hidden, whole[part], rtol=1e-5, atol=1e-5)
        start += length


def test_prompts_of_several_lengths_go_on_from_the_same_slot() -> None:
    """Rows of 3 and 7 tokens, padded on either side, then two more tokens each: as if each row were alone."""
    tokens, lengths, slots = some_tokens(2, LENGTH), np.array([3, 7]), 8
    for left in (False, True):
        cache = nnx.merge(GRAPHDEF, PARAMS).init_cache(2, slots + 2, jnp.float32)
        positions = np.arange(slots) - left * (slots - lengths)[:, None]
        segments = ((positions >= 0) & (positions < lengths[:, None])).astype(int)
        positions = np.where(segments, positions, 0)
        hidden, cache = extend(np.take_along_axis(tokens, positions, 1), positions, segments, cache, 0)
        for step in range(2):
            positions = (lengths + step)[:, None]
            hidden, cache = extend(
                np.take_along_axis(tokens, positions, 1), positions, np.ones((2, 1), int), cache, slots + step
            )
            for row in range(2):
                alone = run(tokens[row : row + 1], *packed([lengths[row] + step + 1]))[0, lengths[row] + step]
                np.testing.assert_allclose(hidden[row, 0], alone, rtol=1e-5, atol=1e-5)


def test_a_donated_cache_is_written_in_place() -> None:
    abstract = nnx.eval_shape(lambda: build(dataclasses.replace(TINY, num_layers=16, windows=(None,) * 16)))
    graphdef, params = nnx.split(abstract)
    cache, token = abstract.init_cache(1, 512, jnp.float32), jnp.zeros((1, 1), jnp.int32)

    @partial(jax.jit, donate_argnums=1)
    def step(params: Any, leaves: list[Array], token: Array) -> tuple[Array, list[Array]]:
        model = nnx.merge(graphdef, params)
        hidden, new = model.extend(model.embed(token), token, token, KVCache(*leaves), 3)
        return hidden, jax.tree.leaves(new)

    memory = step.lower(params, jax.tree.leaves(cache), token).compile().memory_analysis()
    assert memory is not None
    size = sum(kept.nbytes for kept in jax.tree.leaves((cache.key, cache.value)))
    assert memory.alias_size_in_bytes >= size
    # One layer's keys and values may be copied at a time, never all.
    assert memory.temp_size_in_bytes < size / 4


@pytest.mark.parametrize("remat", ["layer", "dots"])
def test_remat_changes_no_gradient(remat: str) -> None:
    positions, segments = map(jnp.asarray, packed([4, 6]))

    @partial(jax.jit, static_argnums=1)
    def gradient(embeddings: Array, remat: str) -> Array:
        model = nnx.merge(GRAPHDEF, PARAMS)
        return jax.grad(lambda x: jnp.square(model(x, positions, segments, remat=remat)[:, 3]).sum())(embeddings)

    embeddings = jax.random.normal(jax.random.key(0), (1, LENGTH, TINY.embed_dim))
    np.testing.assert_allclose(gradient(embeddings, remat), gradient(embeddings, "none"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("remat", ["layer", "dots", "none"])
def test_the_backward_pass_is_left_no_copy_of_the_weights(remat: str) -> None:
    """What the layers' scan hands on has the activations' shapes, whatever is kept."""
    positions, segments = map(jnp.asarray, packed([4, 6]))

    def loss(embeddings: Array) -> Array:
        return nnx.merge(GRAPHDEF, PARAMS)(embeddings, positions, segments, remat=remat).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss))(jnp.zeros((1, LENGTH, TINY.embed_dim)))
    kept = {out.aval.shape for e in jaxpr.eqns if e.primitive.name == "scan" for out in e.outvars}
    matrices = {leaf.shape for leaf in jax.tree.leaves(PARAMS["layers"]) if leaf.ndim > 2}
    assert (TINY.num_layers, 1, LENGTH, TINY.embed_dim) in kept
    assert not kept & matrices


def test_bfloat16() -> None:
    """Hidden states in the model's dtype, logits in float32, and near those of float32."""
    positions, segments = map(jnp.asarray, packed([LENGTH]))
    tokens = jnp.asarray(some_tokens(1, LENGTH))
    half = nnx.merge(GRAPHDEF, jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS))
    # Music tokens arrive in float32.
    hidden = half(half.embed(tokens).astype(jnp.float32), positions, segments)
    logits = half.logits(hidden)
    assert (hidden.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    full = nnx.merge(GRAPHDEF, PARAMS).logits(run(tokens, positions, segments))
    # bfloat16 has 8 bits: 0.4 % per rounding, some tens of roundings in a row.
    assert jnp.abs(logits - full).max() < 0.05 * jnp.abs(full).max()


PERTURBED: dict[str, dict[str, Any]] = {
    "vocab_size": {"vocab_size": 65},
    "embed_dim": {"embed_dim": 28},
    "mlp_dim": {"mlp_dim": 41},
    "num_layers": {"num_layers": 3, "windows": (None, 5, None)},
    "num_heads": {"num_heads": 6},
    "num_kv_heads": {"num_kv_heads": 1},
    "head_dim": {"head_dim": 10},
    "eps": {"eps": 1e-2},
    "activation": {"activation": "gelu"},
    "rope_theta": {"rope_theta": 50.0},
    "rope_scaling": {"rope_scaling": LinearScaling(1.0)},
    "rope_scaling.factor": {"rope_scaling": Llama3Scaling(4.0, 1.0, 4.0, 32)},
    "rope_scaling.low_factor": {"rope_scaling": Llama3Scaling(8.0, 2.0, 4.0, 32)},
    "rope_scaling.high_factor": {"rope_scaling": Llama3Scaling(8.0, 1.0, 8.0, 32)},
    "rope_scaling.context": {"rope_scaling": Llama3Scaling(8.0, 1.0, 4.0, 64)},
    "windows": {"windows": (None, None)},
    "qkv_bias": {"qkv_bias": True},
    "out_bias": {"out_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "qk_norm": {"qk_norm": True},
    "tied": {"tied": True},
}


def shapes(model: Llama) -> Any:
    return jax.tree.map(lambda p: p.shape, nnx.to_pure_dict(nnx.state(model)))


@partial(jax.jit, static_argnums=0)
def logits(graphdef: nnx.GraphDef) -> Array:
    model = nnx.merge(graphdef, PARAMS)
    return model.logits(model(model.embed(jnp.asarray(some_tokens(1, LENGTH))), *map(jnp.asarray, packed([LENGTH]))))


def test_every_field_is_perturbed() -> None:
    fields = {field.name for field in dataclasses.fields(LlamaConfig)}
    fields |= {f"rope_scaling.{field.name}" for field in dataclasses.fields(Llama3Scaling)}
    assert PERTURBED.keys() == fields


@pytest.mark.parametrize("field", PERTURBED)
def test_every_field_is_read(field: str) -> None:
    model = nnx.eval_shape(lambda: build(dataclasses.replace(TINY, **PERTURBED[field])))
    if shapes(model) == shapes(nnx.eval_shape(lambda: build(TINY))):
        assert jnp.abs(logits(nnx.graphdef(model)) - logits(GRAPHDEF)).max() > 1e-4


LLAMA = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5}
SIZES = {
    # vocabulary, width, inner width, layers, heads, key/value heads, head width, tied: parameters
    "LLaMA 7B": ((32000, 4096, 11008, 32, 32, 32, 128, False), 6_738_415_616),
    "Vicuna v0 7B": ((32001, 4096, 11008, 32, 32, 32, 128, False), 6_738_423_808),
    "Llama-2 13B": ((32000, 5120, 13824, 40, 40, 40, 128, False), 13_015_864_320),
    "Llama-3 8B": ((128256, 4096, 14336, 32, 32, 8, 128, False), 8_030_261_248),
    "Llama-3.2 1B": ((128256, 2048, 8192, 16, 32, 8, 64, True), 1_235_814_400),
    "Llama-3.2 3B": ((128256, 3072, 8192, 28, 24, 8, 128, True), 3_212_749_824),
}
SIZE_NAMES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
)


@pytest.mark.parametrize("name", SIZES)
def test_full_sizes_have_the_published_number_of_parameters(name: str) -> None:
    sizes, published = SIZES[name]
    config = LlamaConfig.from_json({**LLAMA, **dict(zip(SIZE_NAMES, sizes, strict=True))}, name)
    model = nnx.eval_shape(lambda: Llama(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    params = nnx.to_flat_state(nnx.state(model, nnx.Param))
    assert sum(math.prod(p.get_value().shape) for _, p in params) == published
    assert {p.get_value().dtype for _, p in params} == {jnp.dtype(jnp.bfloat16)}

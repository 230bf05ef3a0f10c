"""What the encoder promises whatever its weights: rows of a batch do not touch, padding does not count."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import Array

from mlingo_jax.models.mert import Mert, MertConfig

TINY = {
    "conv_bias": False,
    "conv_dim": [8, 8, 8],
    "conv_kernel": [10, 3, 2],
    "conv_stride": [5, 2, 2],
    "do_stable_layer_norm": True,
    "feat_extract_activation": "gelu",
    "feat_extract_norm": "group",
    "hidden_act": "gelu",
    "hidden_size": 16,
    "intermediate_size": 24,
    "layer_norm_eps": 1e-5,
    "mask_feature_prob": 0.0,
    "mask_time_prob": 0.05,
    "num_attention_heads": 2,
    "num_conv_pos_embedding_groups": 4,
    "num_conv_pos_embeddings": 8,
    "num_hidden_layers": 3,
}
# Kinds of norm, and lengths to try; the first is MERT-v1-330M's, the second MERT-v1-95M's.
KINDS = [
    ("group", True, [700, 30, 35, 333, 512, 640, 699]),
    ("group", False, [30, 700]),
    ("layer", False, [30, 700]),
]
WINDOW = 7


def tiny(*, dtype: Any = jnp.float32, **changes: Any) -> Mert:
    """A small encoder with weights from NumPy: every one of them counts, and nothing has to be compiled for them."""
    config = MertConfig.from_json(TINY | changes, "config.json")
    static, shapes = nnx.split(nnx.eval_shape(lambda: Mert(config, dtype=dtype, rngs=nnx.Rngs(0))))
    generator = np.random.default_rng(3)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> Array:
        near_one = jax.tree_util.keystr(path).find("scale") >= 0
        return jnp.asarray(near_one + 0.3 * generator.normal(size=leaf.shape), leaf.dtype)

    return nnx.merge(static, jax.tree_util.tree_map_with_path(draw, shapes))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@partial(jax.jit, static_argnames=("static", "method", "frames_per_token", "per_layer"))
def run(static: Any, state: Any, method: str, waveform: Array, lengths: Array, **options: Any) -> Array:
    return getattr(nnx.merge(static, state), method)(waveform, lengths, **options)


def call(model: Mert, method: str, waveform: np.ndarray, lengths: list[int] | None = None, **options: Any) -> Array:
    """One of the model's methods under jit; without lengths, every row is full."""
    lengths = [waveform.shape[1]] * len(waveform) if lengths is None else lengths
    return run(*nnx.split(model), method, waveform, np.asarray(lengths, np.int32), **options)


def features(model: Mert, waveform: np.ndarray, lengths: list[int] | None = None, **options: Any) -> Array:
    return call(model, "features", waveform, lengths, frames_per_token=WINDOW, **options)


def relative_error(found: Any, wanted: Any) -> float:
    return float(np.abs(np.asarray(found, np.float64) - np.asarray(wanted, np.float64)).max() / np.abs(wanted).max())


@pytest.mark.parametrize(("conv_norm", "pre_norm", "lengths"), KINDS)
def test_a_padded_batch_gives_each_clip_what_it_gets_alone(conv_norm, pre_norm, lengths):
    model = tiny(feat_extract_norm=conv_norm, do_stable_layer_norm=pre_norm)
    clips = [noise(n) for n in lengths]
    # What lies behind a clip must not count at all, were it not even a number.
    batch = np.full((len(clips), 720), np.nan, np.float32)
    for row, clip in zip(batch, clips, strict=True):
        row[: len(clip)] = clip
    together = features(model, batch, lengths, per_layer=True)
    for row, clip in zip(together, clips, strict=True):
        alone = features(model, clip[None], per_layer=True)[0]
        assert relative_error(row[:, : alone.shape[1]], alone) < 1e-5
        assert not row[:, alone.shape[1] :].any()


def test_a_row_too_short_for_one_frame_is_zero_and_leaves_the_others_alone():
    model = tiny()
    pair = features(model, noise(2, 300), [300, 5])
    assert relative_error(pair[0], features(model, noise(2, 300)[:1])[0]) < 1e-5
    assert not pair[1].any()
    assert features(model, noise(1, 20)).shape == (1, 0, model.config.embed_dim)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_features_are_the_mean_over_states_then_over_windows(pre_norm):
    model = tiny(do_stable_layer_norm=pre_norm)
    waveform, lengths = noise(2, 600), [600, 440]
    states = np.asarray(call(model, "hidden_states", waveform, lengths))
    frames = model.config.frames(np.array(lengths))
    assert states.shape == (model.config.states, 2, frames.max(), model.config.embed_dim)
    found = features(model, waveform, lengths)
    assert found.dtype == jnp.float32
    for row, count in enumerate(frames):
        mean = states.mean(0)[row, :count]
        wanted = np.stack([mean[at : at + WINDOW].mean(0) for at in range(0, count, WINDOW)])
        assert relative_error(found[row, : len(wanted)], wanted) < 1e-5
        assert not found[row, len(wanted) :].any()


def test_gain_and_offset_of_the_recording_do_not_matter():
    # The first convolution has no bias and is normed over time; of the gain, only its norm's epsilon could tell.
    model = tiny()
    assert relative_error(features(model, 2 * noise(1, 600) + 0.1), features(model, noise(1, 600))) < 1e-5


def test_one_compilation_serves_all_lengths_of_one_padded_shape():
    model = tiny()
    static, state = nnx.split(model)
    traced = []

    @jax.jit
    def run(state: Any, waveform: Array, lengths: Array) -> Array:
        traced.append(waveform.shape)
        return nnx.merge(static, state).features(waveform, lengths, frames_per_token=WINDOW)

    for lengths in ([600, 600], [31, 600], [0, 35]):
        run(state, jnp.asarray(noise(2, 600)), jnp.array(lengths)).block_until_ready()
    assert traced == [(2, 600)]


@pytest.mark.parametrize("kernel_size", [7, 8])
def test_position_convolution_keeps_the_length_and_each_tap_has_its_gain(kernel_size):
    model = tiny(num_conv_pos_embeddings=kernel_size)
    conv = model.position_conv
    conv.gain.set_value(jnp.arange(1.0, kernel_size + 1))
    np.testing.assert_allclose(
        jnp.linalg.norm(conv.kernel().reshape(kernel_size, -1), axis=1), range(1, kernel_size + 1), rtol=1e-6
    )
    assert conv(jnp.ones((2, 5, 16))).shape == (2, 5, 16)


def test_masked_frames_carry_the_mask_vector_whatever_was_heard():
    model = tiny()
    loud, quiet = noise(1, 600), noise(2, 600)[1:]
    everything = np.ones((1, model.config.frames(600)), bool)
    assert (
        relative_error(features(model, loud, mask_time=everything), features(model, quiet, mask_time=everything)) == 0
    )
    assert relative_error(features(model, loud, mask_time=~everything), features(model, loud)) == 0
    with pytest.raises(ValueError, match="masked_spec_embed"):
        features(tiny(mask_time_prob=0.0), loud, mask_time=everything)


def test_bfloat16_hears_faint_treble_over_loud_bass():
    # A bfloat16 number has 8 bits: the treble here, 60 dB below the bass, would drown in the waveform's rounding if the
    # first convolution did not run in float32. Its kernel is made to take differences, as a trained one's does.
    time = np.arange(4000) / 24_000
    bass, treble = np.sin(2 * np.pi * 60 * time), 1e-3 * np.sin(2 * np.pi * 5000 * time)
    waveform = (bass + treble).astype(np.float32)[None]

    def model(dtype: Any) -> Mert:
        made = tiny(dtype=dtype)
        kernel = made.conv_layers[0].kernel
        differences = (
            jnp.zeros((10, 1, 8)).at[jnp.array([0, 1, 2, 3]), 0].set(jnp.array([[1.0], [-3.0], [3.0], [-1.0]]))
        )
        kernel.set_value(differences.astype(dtype))
        return made

    # 8 bits leave an error of a few 2^-8 (0.007 here); with the waveform rounded to them it is 1.
    assert relative_error(features(model(jnp.bfloat16), waveform), features(model(jnp.float32), waveform)) < 0.03

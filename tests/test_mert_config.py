"""The encoder's configuration: what is read, what is refused, and what follows from it."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from transformers import HubertConfig

from mlingo_jax.errors import UserError
from mlingo_jax.models import attributes, layers
from mlingo_jax.models.encoder import EncoderArchitecture
from mlingo_jax.models.mert import Mert
from mlingo_jax.models.mert_config import RECEPTIVE_FIELD, SAMPLE_RATE, MertConfig
from mlingo_jax.planning import published
from mlingo_jax.weights import released

# What the files have besides what is published here.
IDLE = {
    "auto_map": {"AutoConfig": "configuration_MERT.MERTConfig", "AutoModel": "modeling_MERT.MERTModel"},
    "feature_extractor_cqt_bins": 336,
    "mask_channel_selection": "static",
}
MERT_330M = {**released.MERT_330M, **IDLE}
MERT_95M = {**published.MERT_95M, **IDLE}


def read(values: dict[str, Any]) -> MertConfig:
    return MertConfig.from_json(values, "config.json")


@pytest.mark.parametrize(
    ("values", "parameters", "states"), [(MERT_330M, 315_428_992, 25), (MERT_95M, 94_371_712, 13)], ids=["330M", "95M"]
)
def test_published_sizes(values, parameters, states):
    config = read(values)
    model = nnx.eval_shape(lambda: Mert(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == parameters
    assert config.states == states
    assert (config.hop, config.receptive_field) == (320, 400)


def test_frames_of_common_clips():
    config = read(MERT_330M)
    assert [config.frames(seconds * 24_000) for seconds in (5, 10, 30)] == [374, 749, 2249]
    assert [config.frames(n) for n in (0, 1, 399, 400, 719, 720)] == [0, 0, 0, 1, 1, 2]


@given(samples=st.integers(0, 3_000_000))
def test_frames_closed_form(samples):
    assert read(MERT_330M).frames(samples) == max(0, (samples - 400) // 320 + 1)


@given(
    convs=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), min_size=1, max_size=7),
    samples=st.integers(0, 20_000),
)
def test_frames_of_any_stack(convs, samples):
    kernels, strides = map(list, zip(*convs, strict=True))
    stack = {"conv_dim": [4] * len(convs), "conv_kernel": kernels, "conv_stride": strides}
    config = read(MERT_330M | stack | {"num_feat_extract_layers": len(convs)})
    length = samples
    for kernel, stride in convs:
        length = len(range(0, length - kernel + 1, stride))
    assert config.frames(samples) == length
    np.testing.assert_array_equal(config.frames(np.array([samples, 0])), [length, 0])
    assert (config.frames(samples) > 0) == (samples >= config.receptive_field)


def test_files_of_transformers_and_of_the_first_mert_are_read():
    hubert = HubertConfig().to_dict()
    assert read(hubert) == read(MERT_95M)
    assert read(json.loads(HubertConfig().to_json_string(use_diff=False))) == read(MERT_95M)
    later = ("feature_extractor_cqt", "deepnorm", "conv_pos_batch_norm", "feat_proj_layer_norm", "sample_rate")
    first = {name: value for name, value in hubert.items() if name not in later}
    assert read(first) == read(MERT_95M)


def test_mask_embedding_is_there_where_training_masks():
    assert read(MERT_330M).mask_embedding
    assert read(MERT_330M | {"mask_time_prob": 0.0, "mask_feature_prob": 0.1}).mask_embedding
    assert not read(MERT_330M | {"mask_time_prob": 0.0}).mask_embedding


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("feature_extractor_cqt", True),
        ("deepnorm", True),
        ("conv_pos_batch_norm", True),
        ("model_type", "data2vec-audio"),
        ("feat_extract_norm", "batch"),
        ("hidden_act", "mish"),
        ("feat_extract_activation", "mish"),
        ("hidden_size", "1024"),
        ("num_hidden_layers", 0),
        ("num_attention_heads", 17),
        ("num_conv_pos_embedding_groups", 3),
        ("do_stable_layer_norm", "yes"),
        ("conv_dim", [512, -1]),
        ("conv_stride", [5, 2]),
        ("conv_kernel", 10),
        ("num_feat_extract_layers", 6),
        ("pruned_heads", {"0": [1]}),
        ("rotary_base", 10_000),
    ],
)
def test_what_would_be_computed_differently_is_refused_by_name(name, value):
    with pytest.raises(UserError, match=f"config.json: {name} is "):
        read(MERT_330M | {name: value})


@pytest.mark.parametrize(
    "name", ["hidden_size", "layer_norm_eps", "do_stable_layer_norm", "conv_dim", "mask_time_prob"]
)
def test_missing_attribute_is_named(name):
    with pytest.raises(UserError, match=f"config.json: {name} is missing"):
        read({key: value for key, value in MERT_330M.items() if key != name})


def test_configurations_of_the_original(golden: Path):
    pre, post = (read(json.loads((golden / f / "mert" / "config.json").read_text())) for f in ("pre_ln", "post_ln"))
    assert (pre.pre_norm, pre.states, pre.embed_dim) == (True, 5, 64)
    assert (post.pre_norm, post.states, post.embed_dim) == (False, 4, 48)


def test_the_activations_by_name_are_those_that_are_computed():
    assert set(attributes.ACTIVATIONS) == layers.ACTIVATIONS.keys()


def test_it_is_an_encoder_s_architecture_with_the_published_numbers():
    config = MertConfig.from_json(MERT_330M, "MERT-v1-330M")
    assert isinstance(config, EncoderArchitecture)
    assert (config.sample_rate, config.receptive_field) == (SAMPLE_RATE, RECEPTIVE_FIELD)
    # Older files, and HuBERT's, state no rate.
    without = {name: value for name, value in MERT_330M.items() if name != "sample_rate"}
    assert MertConfig.from_json(without, "MERT-v1-330M").sample_rate == SAMPLE_RATE

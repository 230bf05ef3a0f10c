"""A plan's arguments are those of a real run: the same trees, shapes, dtypes and positions."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from mlingo_jax.errors import UserError
from mlingo_jax.models.llama_config import LlamaConfig
from mlingo_jax.models.mert import MertConfig
from mlingo_jax.planning.costs import encoding_operations
from mlingo_jax.planning.published import ENCODERS, LANGUAGE_MODELS, encoder_sizes, language_model_sizes
from mlingo_jax.planning.shapes import Shapes, networks, parameter_counts, split, trace_train_step, weight_bytes
from mlingo_jax.settings import Config, MeshConfig
from mlingo_jax.training.sharding import make_mesh
from mlingo_jax.weights.load import load_tower
from tests.tiny import LLAMA, MERT, tiny_llama, tiny_mert


def tiny(config: Config) -> Shapes:
    return Shapes.of(config, MertConfig.from_json(MERT, "mert"), LlamaConfig.from_json(LLAMA, "llm"), seconds=2.0)


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_towers_are_those_that_are_loaded(quantization, tmp_path):
    config = Config()
    config.llm.quantization = quantization
    mesh = make_mesh(MeshConfig())
    shapes = tiny(config)
    encoder, llm, _ = networks(shapes, mesh)
    loaded = [
        load_tower(tiny_mert(tmp_path / "mert"), role="encoder", dtype="bfloat16", mesh=mesh),
        load_tower(tiny_llama(tmp_path / "llm"), role="llm", dtype="bfloat16", quantization=quantization, mesh=mesh),
    ]
    for model, tower in zip((encoder, llm), loaded, strict=True):
        graph, params = split(model, mesh)
        seen = jax.tree.map(lambda a: (a.shape, a.dtype, a.sharding), params)
        assert seen == jax.tree.map(lambda a: (a.shape, a.dtype, a.sharding), tower.params)
        assert graph == tower.graphdef
    bits = sum(a.size * jax.dtypes.itemsize_bits(a.dtype) for a in jax.tree.leaves(loaded[1].params))
    assert weight_bytes(shapes, mesh) == bits // 8


def test_a_step_is_traced_with_the_batch_contract():
    config = Config()
    config.data.length = 24
    config.data.encode_in_step, config.data.crop_seconds = True, 2.0
    (state, frozen, batch), _ = trace_train_step(tiny(config), make_mesh(MeshConfig())).args_info
    assert frozen.keys() == {"llm", "encoder"}
    assert {name: (a.shape, a.dtype) for name, a in batch.items()} == {
        **dict.fromkeys(("tokens", "music_index", "positions", "segments"), ((2, 24), jnp.int32)),
        "loss_weights": ((2, 24), jnp.float32),
        "waveform": ((2, 48_000), jnp.float32),
        "waveform_length": ((2,), jnp.int32),
    }
    assert all(a.donated for a in jax.tree.leaves(state))


def test_lengths():
    config = Config()
    shapes = tiny(config)
    assert (shapes.frames, shapes.music) == (149, 1)
    # Without a prompt: beginning, music, answer.
    config.prompt.template, config.prompt.max_answer_tokens = "", 32
    shapes = tiny(config)
    assert (shapes.positions, shapes.length) == (2, 48)
    config.data.length = 40
    assert tiny(config).length == 40


def test_long_clips_are_heard_in_pieces_and_crops_at_once():
    config = Config()
    config.mert.frames_per_token = 325
    shapes = dataclasses.replace(tiny(config), seconds=45.0)
    # 2,249 and 1,124 frames: 7 windows and 4. In one piece 3,374 frames are 11, as well; of 65 s there are 15 or 16.
    assert (shapes.samples, shapes.music) == (45 * 24_000, 7 + 4)
    assert dataclasses.replace(shapes, seconds=65.0).music == 7 + 7 + 2
    config.data.encode_in_step, config.data.crop_seconds = True, 65.0
    shapes = dataclasses.replace(tiny(config), seconds=45.0)
    assert (shapes.samples, shapes.music) == (65 * 24_000, 15)
    config.data.encode_in_step, config.data.crops, config.data.crop_seconds = False, 3, 15.5
    shapes = dataclasses.replace(tiny(config), seconds=45.0)
    assert (shapes.encoded, shapes.music) == (15.5, 4)


def test_hearing_a_long_clip_costs_what_its_pieces_cost():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    once, twice = (dataclasses.replace(tiny(Config()), seconds=s) for s in (30.0, 60.0))
    assert encoding_operations(twice, mesh) == 2 * encoding_operations(once, mesh)


def test_published_sizes():
    for path, parameters in (("m-a-p/MERT-v1-330M", 315_428_992), ("m-a-p/MERT-v1-95M", 94_371_712)):
        shapes = Shapes.of(Config(), encoder_sizes(path).config, LlamaConfig.from_json(LLAMA, "llm"), 30.0)
        assert parameter_counts(shapes)[0] == parameters
    # Of 13B: 40 layers of four projections of 5,120 x 5,120, three of 5,120 x 13,824 and two norms, and two tables.
    thirteen = 40 * (4 * 5120**2 + 3 * 5120 * 13824 + 2 * 5120) + 2 * 32001 * 5120 + 5120
    for path, parameters in (("weights/vicuna-v0/", 6_738_423_808), ("lmsys/vicuna-13b-delta-v0", thirteen)):
        sizes = language_model_sizes(path)
        assert "published sizes" in sizes.source
        shapes = Shapes.of(Config(), MertConfig.from_json(MERT, "mert"), sizes.config, 30.0)
        assert parameter_counts(shapes)[1] == parameters
    assert all(name == name.lower() for name in (*ENCODERS, *LANGUAGE_MODELS))


def test_a_folder_comes_before_the_published_sizes(tmp_path):
    folder = tmp_path / "vicuna"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    found = language_model_sizes(str(folder))
    assert (found.config.embed_dim, found.source) == (LLAMA["hidden_size"], str(folder / "config.json"))
    with pytest.raises(UserError, match=r"config.llm.path is 'gpt': no folder with a config.json"):
        language_model_sizes("gpt")

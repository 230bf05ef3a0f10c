"""MusiLingo's own layouts: the adapter's `.pth`, the released folder, Vicuna's delta, and a run of this project."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from mlingo_jax.conversion import to_jax, to_pytorch
from mlingo_jax.errors import UserError
from mlingo_jax.models.mert import Mert, MertConfig
from mlingo_jax.runs.checkpoints import CheckpointState
from mlingo_jax.training.checkpoint import Checkpoints
from mlingo_jax.weights import released
from mlingo_jax.weights.checkpoints import read_checkpoint
from mlingo_jax.weights.load import load_adapter, load_tower
from mlingo_jax.weights.tensors import Tensors
from mlingo_jax.weights.towers import Role
from tests.tiny import LLAMA, MERT, tiny_llama, tiny_mert

torch = pytest.importorskip("torch")

ADAPTER = {
    "llama_proj.weight": np.arange(32 * 24, dtype=np.float32).reshape(32, 24),
    "llama_proj.bias": np.linspace(-1, 1, 32, dtype=np.float32),
}


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small encoder in `mert` and a small language model in `llm`."""
    folder = tmp_path_factory.mktemp("towers")
    tiny_mert(folder / "mert")
    tiny_llama(folder / "llm")
    return folder


def weights(folder: Path) -> dict[str, np.ndarray]:
    return {name: tensor.read() for name, tensor in read_checkpoint(folder).items()}


def bits(tensors: Tensors) -> dict[str, tuple[Any, ...]]:
    return {name: (tensor.shape, tensor.dtype, tensor.read().tobytes()) for name, tensor in tensors.items()}


def save_pth(path: Path) -> Path:
    """An adapter as MusiLingo's runner saves it."""
    model = {name: torch.from_numpy(array) for name, array in ADAPTER.items()}
    model["llama_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    optimizer = {
        "state": {0: {"step": 3, "exp_avg": torch.zeros(32, 24)}},
        "param_groups": [{"lr": 3e-5, "params": [0]}],
    }
    torch.save({"model": model, "optimizer": optimizer, "config": {"run": {}}, "scaler": {}, "epoch": 5}, path)
    return path


def save_released(towers: Path, folder: Path, *, published: bool) -> Path:
    """A MusiLingo in the released layout: as it was published, or with both towers' own files as we write it."""
    folder.mkdir()
    parts = {"model.audio_encoder.": weights(towers / "mert"), "model.llama_model.": weights(towers / "llm")}
    state = {f"{prefix}{name}": array for prefix, part in parts.items() for name, array in part.items()}
    state = {name: array.astype(np.float16) if "llama_model" in name else array for name, array in state.items()}
    state |= {f"model.{name}": array for name, array in ADAPTER.items()}
    state["model.llama_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    halves = [sorted(state)[0::2], sorted(state)[1::2]]
    for i, names in enumerate(halves):
        save_file({name: state[name] for name in names}, folder / f"model-{i}.safetensors", metadata={"format": "pt"})
    weight_map = {name: f"model-{i}.safetensors" for i, names in enumerate(halves) for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    values = {key: LLAMA[key] for key in released.LLAMA_KEYS if key in LLAMA}
    names = {"mert_model": "m-a-p/MERT-v1-330M", "llama_model": "lmsys/vicuna-7b-delta-v0"}
    values |= names | {"model_type": "musilingo", "end_sym": "\n", "max_txt_len": 32}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "modelling_musilingo.py").write_text("raise RuntimeError('never run')\n")
    if not published:
        for part, kept in (("mert", "audio_encoder"), ("llm", "llama_model")):
            shutil.copytree(towers / part, folder / kept, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def without_buffers(state: Tensors) -> dict[str, tuple[Any, ...]]:
    return {name: value for name, value in bits(state).items() if "inv_freq" not in name}


@pytest.mark.parametrize("folder", ["pth", "jax", "safetensors"])
def test_adapter_from_any_file(tmp_path: Path, folder: str):
    source = save_pth(tmp_path / "checkpoint_5.pth")
    if folder == "jax":
        to_jax.convert(source, tmp_path / "adapter")
        source = tmp_path / "adapter"
    if folder == "safetensors":
        source = tmp_path / "adapter.safetensors"
        save_file(ADAPTER, source)
    _, params = load_adapter(source)
    np.testing.assert_array_equal(params["projection"]["kernel"], ADAPTER["llama_proj.weight"].T)
    np.testing.assert_array_equal(params["projection"]["bias"], ADAPTER["llama_proj.bias"])
    assert list(params) == ["projection"]


def test_adapter_becomes_what_the_original_loads(tmp_path: Path):
    to_jax.convert(save_pth(tmp_path / "checkpoint_5.pth"), tmp_path / "adapter")
    to_pytorch.convert(tmp_path / "adapter", tmp_path / "back.pth")
    # As qa.py loads it, but strictly: into a Linear under the name llama_proj.
    original = torch.nn.Module()
    original.llama_proj = torch.nn.Linear(24, 32)
    original.load_state_dict(torch.load(tmp_path / "back.pth", map_location="cpu", weights_only=True)["model"])
    for name, value in original.state_dict().items():
        assert value.numpy().tobytes() == ADAPTER[name].tobytes()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "no adapter"),
        ({"llama_proj.weight": np.zeros(3, np.float32)}, "no adapter"),
        ({"llama_proj.weight": ADAPTER["llama_proj.weight"]}, r"missing: llama_proj.bias \[32\]"),
        (ADAPTER | {"llama_proj.bias": np.zeros(31, np.float32)}, r"bias is \[31\], expected \[32\]"),
        (ADAPTER | {"lora.weight": np.zeros(31, np.float32)}, "left over: lora.weight"),
    ],
)
def test_what_is_no_adapter(tmp_path: Path, state: Mapping[str, np.ndarray], message: str):
    torch.save({"model": {name: torch.from_numpy(array) for name, array in state.items()}}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=message):
        load_adapter(tmp_path / "x.pth")


def test_released_folder_with_its_towers_files(towers: Path, tmp_path: Path):
    source = save_released(towers, tmp_path / "musilingo", published=False)
    to_jax.convert(source, tmp_path / "jax")
    for made, part in (("mert", "mert"), ("llm", "llm")):
        files = [path.name for path in (towers / part).iterdir() if path.suffix != ".safetensors"]
        assert files
        assert all((tmp_path / "jax" / made / f).read_bytes() == (towers / part / f).read_bytes() for f in files)
    to_pytorch.convert(tmp_path / "jax", tmp_path / "back")
    assert bits(read_checkpoint(tmp_path / "back")) == without_buffers(read_checkpoint(source))
    for path in source.rglob("*"):
        if path.is_file() and "model" not in path.name.partition(".")[0]:
            assert (tmp_path / "back" / path.relative_to(source)).read_bytes() == path.read_bytes()
    # Each part alone, and the whole again.
    to_pytorch.convert(tmp_path / "jax", tmp_path / "adapter.pth")
    np.testing.assert_array_equal(
        load_adapter(tmp_path / "adapter.pth")[1]["projection"]["bias"], ADAPTER["llama_proj.bias"]
    )
    to_pytorch.convert(tmp_path / "jax/mert", tmp_path / "mert")
    assert bits(read_checkpoint(tmp_path / "mert")) == bits(read_checkpoint(towers / "mert"))
    to_jax.convert(tmp_path / "back", tmp_path / "jax_again")
    assert {p.relative_to(tmp_path / "jax_again"): p.read_bytes() for p in (tmp_path / "jax_again").rglob("*.*")} == {
        p.relative_to(tmp_path / "jax"): p.read_bytes() for p in (tmp_path / "jax").rglob("*.*")
    }


def test_every_part_of_a_musilingo_loads_from_the_whole(towers: Path, tmp_path: Path):
    source = save_released(towers, tmp_path / "musilingo", published=False)
    to_jax.convert(source, tmp_path / "jax")
    for whole in (source, tmp_path / "jax"):
        assert (
            load_tower(whole, role="encoder", dtype="float32").identity["weights"]
            == (load_tower(towers / "mert", role="encoder", dtype="float32").identity["weights"])
        )
        # float16 in the shards, so not the towers' own.
        assert load_tower(whole, role="llm", dtype="float32").config.embed_dim == 32
        np.testing.assert_array_equal(load_adapter(whole)[1]["projection"]["kernel"], ADAPTER["llama_proj.weight"].T)


def test_published_folder(towers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    """The published one's encoder is known by its name; its real config is too large for a test."""
    monkeypatch.setattr(released, "MERT_330M", MERT)
    source = save_released(towers, tmp_path / "musilingo", published=True)
    with pytest.raises(UserError, match=r"run python -m conversion\.to_jax"):
        load_tower(source, role="llm", dtype="float32")
    to_jax.main([str(source), str(tmp_path / "jax")])
    assert "released without a tokenizer" in capsys.readouterr().out
    to_pytorch.convert(tmp_path / "jax", tmp_path / "back")
    assert bits(read_checkpoint(tmp_path / "back")) == without_buffers(read_checkpoint(source))
    assert (tmp_path / "back/config.json").read_bytes() == (source / "config.json").read_bytes()
    assert json.loads((tmp_path / "jax/mert/preprocessor_config.json").read_text())["sampling_rate"] == 24000
    assert json.loads((tmp_path / "jax/llm/config.json").read_text())["model_type"] == "llama"


def test_published_encoder_has_its_published_size():
    config = MertConfig.from_json(released.MERT_330M, "MERT-v1-330M")
    model = nnx.eval_shape(lambda: Mert(config, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == 315_428_992


def test_released_folder_of_another_encoder(towers: Path, tmp_path: Path):
    source = save_released(towers, tmp_path / "musilingo", published=True)
    values = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(values | {"mert_model": "m-a-p/MERT-v1-95M"}))
    with pytest.raises(UserError, match=r"mert_model is m-a-p/MERT-v1-95M.*copy the encoder's config.json"):
        to_jax.convert(source, tmp_path / "jax")


def test_released_folder_with_a_tensor_too_many(towers: Path, tmp_path: Path):
    source = save_released(towers, tmp_path / "musilingo", published=False)
    state = load_file(source / "model-1.safetensors")
    save_file(state | {"model.q_former.weight": np.zeros(3)}, source / "model-1.safetensors")
    with pytest.raises(UserError, match=r"no part of MusiLingo:\n  model.q_former.weight"):
        to_jax.convert(source, tmp_path / "jax")


def test_released_folder_that_holds_a_delta(towers: Path, tmp_path: Path):
    source = save_released(towers, tmp_path / "musilingo", published=False)
    for file in source.glob("*.safetensors"):
        state = load_file(file)
        zeroed = {name: array * 0 if name.endswith("model.norm.weight") else array for name, array in state.items()}
        save_file(zeroed, file)
    with pytest.raises(UserError, match=r"its language model is a delta.*--base LLAMA_FOLDER"):
        to_jax.convert(source, tmp_path / "jax")
    assert not (tmp_path / "jax").exists()


@pytest.fixture
def delta(towers: Path, tmp_path: Path) -> Path:
    """Vicuna v0's delta over `towers/llm`: one row more, float16, and FastChat's tokenizer."""
    folder = tmp_path / "vicuna-delta-v0"
    folder.mkdir()
    rng = np.random.default_rng(1)
    state = {name: rng.normal(0, 0.01, array.shape) for name, array in weights(towers / "llm").items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = np.concatenate([state[name], rng.normal(0, 1, (1, 32))])
    state["model.norm.weight"] = np.linspace(-0.1, 0.1, 32)
    save_file({name: array.astype(np.float16) for name, array in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(LLAMA | {"vocab_size": 321, "torch_dtype": "float16"}))
    (folder / "tokenizer_config.json").write_text('{"the": "delta\'s"}')
    return folder


def test_delta(towers: Path, delta: Path, tmp_path: Path):
    to_jax.convert(delta, tmp_path / "jax", base=towers / "llm")
    to_pytorch.convert(tmp_path / "jax", tmp_path / "vicuna")
    merged, base, change = weights(tmp_path / "vicuna"), weights(towers / "llm"), weights(delta)
    for name, array in merged.items():
        before = base[name].astype(np.float16)
        if array.shape != before.shape:
            before = np.concatenate([before, np.zeros((1, 32), np.float16)])
        # FastChat adds with torch, in float16.
        expected = torch.from_numpy(before) + torch.from_numpy(change[name])
        assert array.dtype == np.float16
        assert array.tobytes() == expected.numpy().tobytes()
    assert merged["lm_head.weight"].shape == (321, 32)
    assert (tmp_path / "vicuna/tokenizer_config.json").read_text() == '{"the": "delta\'s"}'
    assert json.loads((tmp_path / "vicuna/config.json").read_text())["vocab_size"] == 321


def test_delta_alone(delta: Path, tmp_path: Path):
    for use in (
        lambda: to_jax.convert(delta, tmp_path / "x"),
        lambda: load_tower(delta, role="llm", dtype="float32"),
    ):
        with pytest.raises(UserError, match=r"is a delta.*--base LLAMA_FOLDER"):
            use()


def test_bases_that_are_none(towers: Path, delta: Path, tmp_path: Path):
    small = tiny_llama(tmp_path / "small", num_hidden_layers=1)
    for source, base, message in (
        (delta, delta, "is itself a delta"),
        (delta, small, r"missing: model.layers.1.input_layernorm.weight \[32\]"),
        (delta, towers / "mert", "expected a LLaMA folder"),
        (towers / "llm", towers / "llm", "is not a delta"),
        (towers / "mert", towers / "llm", "is no language model"),
    ):
        with pytest.raises(UserError, match=message):
            to_jax.convert(source, tmp_path / "out", base=base)
        assert not (tmp_path / "out").exists()


@pytest.fixture
def run(towers: Path, tmp_path: Path) -> Path:
    """A training run's folder with one checkpoint."""
    workdir = tmp_path / "run"
    (workdir / "checkpoints").mkdir(parents=True)
    identities = {
        "mert": load_tower(towers / "mert", role="encoder", dtype="float32").identity,
        "llm": load_tower(towers / "llm", role="llm", dtype="float32").identity,
    }
    parts = {name: {"folder": str(towers / name), "identity": identities[name]} for name in identities}
    prompt = {"template": "Q: {} A: ", "end_symbol": "\n", "max_answer_tokens": 50, "stop": ["\n"]}
    (workdir / "run.json").write_text(json.dumps(parts | {"prompt": prompt, "window": 325}))
    save_run(workdir, {})
    return workdir


def save_run(workdir: Path, more: Mapping[str, np.ndarray]) -> None:
    kernel, bias = ADAPTER["llama_proj.weight"].T.copy(), ADAPTER["llama_proj.bias"]
    adapter = {"projection": {"kernel": kernel, "bias": bias}, **more}
    with Checkpoints(workdir, keep=1, best=0, losses={}) as checkpoints:
        checkpoints.save(
            CheckpointState(
                step=7 + len(more), trained={"adapter": adapter}, optimizer={"count": np.zeros(())}, data={}
            ),
            {},
        )


def test_run_to_pytorch(run: Path, towers: Path, tmp_path: Path):
    to_pytorch.convert(run, tmp_path / "adapter.pth")
    state = torch.load(tmp_path / "adapter.pth", weights_only=True)
    assert {name: value.numpy().tobytes() for name, value in state["model"].items()} == {
        name: array.tobytes() for name, array in ADAPTER.items()
    }
    to_pytorch.convert(run, tmp_path / "musilingo")
    config = json.loads((tmp_path / "musilingo/config.json").read_text())
    assert (config["model_type"], config["mert_model"], config["llama_model"]) == ("musilingo", "mert", "llm")
    assert (config["prompt_template"], config["end_sym"], config["max_txt_len"]) == ("Q: {} A: ", "\n", 50)
    for name, part in (("mert", "audio_encoder"), ("llm", "llama_model")):
        prefix = f"model.{part}."
        whole = {n.removeprefix(prefix): t for n, t in read_checkpoint(tmp_path / "musilingo").items() if prefix in n}
        assert bits(whole) == bits(read_checkpoint(towers / name))
    roles: list[tuple[Role, str]] = [("encoder", "mert"), ("llm", "llm")]
    for role, name in roles:
        loaded = load_tower(tmp_path / "musilingo", role=role, dtype="float32")
        identity = json.loads((run / "run.json").read_text())[name]["identity"]
        assert (loaded.identity["weights"], loaded.identity["config"]) == (identity["weights"], identity["config"])


def test_run_to_jax(run: Path, tmp_path: Path):
    to_jax.convert(run, tmp_path / "adapter")
    jax.tree.map(np.testing.assert_array_equal, load_adapter(tmp_path / "adapter")[1], load_adapter(run)[1])


def test_an_adapter_s_folder_says_what_it_is_and_is_read_without_that_too(run: Path, tmp_path: Path):
    save_run(run, {"layer_weights": np.arange(3, dtype=np.float32)})
    to_jax.convert(run, tmp_path / "adapter")
    record = tmp_path / "adapter" / "conversion.json"
    values = json.loads(record.read_text())
    features, tokens = ADAPTER["llama_proj.weight"].T.shape
    described = {"kind": "linear", "features": features, "tokens": tokens, "states": 3}
    assert values["adapter_config"] == described
    config, params = load_adapter(tmp_path / "adapter")
    assert (config.to_json(), config.per_layer) == (described, True)
    # A folder of before adapters were described.
    record.write_text(json.dumps({"kind": "adapter", "format": values["format"]}))
    assert load_adapter(tmp_path / "adapter")[0] == config
    jax.tree.map(np.testing.assert_array_equal, load_adapter(tmp_path / "adapter")[1], params)
    for changes, message in (
        ({"kind": "q-former"}, "its adapter is of kind 'q-former', expected 'linear'"),
        ({"features": -1}, "its adapter's sizes are .*, expected whole numbers above 0"),
        ({"states": 4}, r"wrong shape: layer_weights is \[3\], expected \[4\]"),
    ):
        record.write_text(json.dumps({**values, "adapter_config": described | changes}))
        with pytest.raises(UserError, match=message):
            load_adapter(tmp_path / "adapter")
    record.write_text(json.dumps({**values, "adapter_config": {"kind": "linear"}}))
    with pytest.raises(UserError, match="expected an adapter's kind, features, tokens and states"):
        load_adapter(tmp_path / "adapter")


def test_learned_state_weights_have_no_place_in_the_original(run: Path, tmp_path: Path):
    save_run(run, {"layer_weights": np.arange(3, dtype=np.float32)})
    to_jax.convert(run, tmp_path / "adapter")
    np.testing.assert_array_equal(load_adapter(tmp_path / "adapter")[1]["layer_weights"], np.arange(3))
    for target in ("adapter.pth", "musilingo"):
        with pytest.raises(UserError, match="learned a weight for each of the encoder's hidden states"):
            to_pytorch.convert(run, tmp_path / target)
        assert not (tmp_path / target).exists()


def test_run_whose_tower_has_changed(run: Path, towers: Path, tmp_path: Path):
    record = json.loads((run / "run.json").read_text())
    record["llm"]["folder"] = str(tiny_llama(tmp_path / "another", num_hidden_layers=1))
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"another: its config.json is not that of the tower that"):
        to_pytorch.convert(run, tmp_path / "musilingo")

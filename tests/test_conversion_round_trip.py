"""There and back: names, dtypes and bits as they were, and transformers loads what comes back, strictly."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from mlingo_jax.conversion import to_jax, to_pytorch
from mlingo_jax.errors import UserError
from mlingo_jax.weights.checkpoints import read_checkpoint
from mlingo_jax.weights.folders import RECORD
from mlingo_jax.weights.tensors import Tensors

torch = pytest.importorskip("torch")

State = dict[str, Any]

HUBERT = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "conv_dim": [12, 16],
    "conv_kernel": [10, 3],
    "conv_stride": [5, 2],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
# What MERT's own config has beside HuBERT's, as in its released config.json.
MERT_KEYS = {
    "model_type": "mert_model",
    "architectures": ["MERTModel"],
    "auto_map": {"AutoModel": "modeling_MERT.MERTModel"},
    "attention_relax": 32.0,
    "deepnorm": False,
    "feature_extractor_cqt": False,
    "feature_extractor_cqt_bins": 336,
    "sample_rate": 24000,
}
LLAMA = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def hubert(**changes: Any) -> Any:
    torch.manual_seed(0)
    return transformers.HubertModel(transformers.HubertConfig(**HUBERT | changes)).eval()


def llama(family: str = "llama", dtype: Any = torch.float32, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **LLAMA | changes)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def save_as_mert(model: Any, folder: Path, rename: Callable[[str], str] = lambda name: name) -> State:
    """Writes an encoder as the released MERT folders are: their config, and one pickled file."""
    model.config.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    del values["conv_pos_batch_norm"]  # In no MERT config.
    (folder / "config.json").write_text(json.dumps(values | MERT_KEYS))
    (folder / "preprocessor_config.json").write_text('{"do_normalize": true, "sampling_rate": 24000}')
    state = {rename(name): value for name, value in model.state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin")
    return state


def save_sharded_bin(state: State, folder: Path, shards: int) -> None:
    """Splits a state as transformers 4 did."""
    names = sorted(state)
    weight_map = {name: f"pytorch_model-{i % shards + 1:05}-of-{shards:05}.bin" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        torch.save({name: state[name] for name in names if weight_map[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def there_and_back(folder: Path) -> Path:
    converted, back = folder.with_name(f"{folder.name}-jax"), folder.with_name(f"{folder.name}-back")
    to_jax.convert(folder, converted)
    to_pytorch.convert(converted, back)
    assert side_files(back) == side_files(folder)
    return back


def side_files(folder: Path) -> dict[str, bytes]:
    weights = (".bin", ".safetensors", ".index.json")
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.endswith(weights) and p.name != RECORD}


def bits(tensors: Tensors) -> dict[str, tuple[Any, ...]]:
    return {name: (tensor.shape, tensor.dtype, tensor.read().tobytes()) for name, tensor in tensors.items()}


def load_strictly(cls: Any, folder: Path) -> Any:
    model, report = cls.from_pretrained(folder, output_loading_info=True)
    assert {name: problems for name, problems in report.items() if problems} == {}
    return model.eval()


def assert_same_encoder(folder: Path, model: Any) -> None:
    waveform = torch.randn(1, 400)
    with torch.no_grad():
        loaded = load_strictly(transformers.HubertModel, folder)
        assert torch.equal(loaded(waveform).last_hidden_state, model(waveform).last_hidden_state)


def assert_same_llm(folder: Path, model: Any) -> None:
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        loaded = load_strictly(transformers.AutoModelForCausalLM, folder)
        assert loaded.dtype == model.dtype
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def old_spelling(name: str) -> str:
    name = name.replace("parametrizations.weight.original0", "weight_g")
    return name.replace("parametrizations.weight.original1", "weight_v")


@pytest.mark.parametrize("spelling", [old_spelling, str], ids=["weight_g", "parametrized"])
@pytest.mark.parametrize(
    "changes",
    [
        {"feat_extract_norm": "group", "do_stable_layer_norm": True},
        {"feat_extract_norm": "group", "do_stable_layer_norm": False, "mask_time_prob": 0.0},
        {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
        {"feat_extract_norm": "layer", "do_stable_layer_norm": False, "feat_proj_layer_norm": False},
    ],
    ids=["MERT-330M", "MERT-95M, never masked", "HuBERT-large", "no norm before the projection"],
)
def test_encoder(tmp_path: Path, changes: dict[str, Any], spelling: Callable[[str], str]):
    model = hubert(**changes)
    state = save_as_mert(model, tmp_path / "mert", spelling)
    back = there_and_back(tmp_path / "mert")
    assert bits(read_checkpoint(back)) == bits(read_checkpoint(tmp_path / "mert"))
    assert read_checkpoint(back).keys() == state.keys()
    assert_same_encoder(back, model)


@pytest.mark.parametrize(
    ("prefix", "kept"), [("hubert.", "hubert."), ("mert_model.", ""), ("model.audio_encoder.", ""), ("model.", "")]
)
def test_prefixed_encoder(tmp_path: Path, prefix: str, kept: str):
    """A prefix that transformers knows stays; one that it could not load again goes."""
    model = hubert()
    save_as_mert(model, tmp_path / "mert", lambda name: prefix + old_spelling(name))
    back = there_and_back(tmp_path / "mert")
    found = {name.removeprefix(prefix): tensor for name, tensor in read_checkpoint(tmp_path / "mert").items()}
    assert bits(read_checkpoint(back)) == {kept + name: value for name, value in bits(found).items()}
    assert_same_encoder(back, model)


@pytest.mark.parametrize("layout", ["safetensors", "sharded safetensors", "bin", "sharded bin"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_llm_layouts_and_dtypes(tmp_path: Path, layout: str, dtype: Any):
    model = llama(dtype=dtype)
    model.save_pretrained(tmp_path / "llm", max_shard_size="8KB" if layout == "sharded safetensors" else "5GB")
    if layout.endswith("bin"):
        (tmp_path / "llm/model.safetensors").unlink()
        # As checkpoints of transformers 4 have it.
        state = model.state_dict() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
        save_sharded_bin(state, tmp_path / "llm", 3)
        if layout == "bin":
            (tmp_path / "llm/pytorch_model.bin.index.json").unlink()
            torch.save(state, tmp_path / "llm/pytorch_model.bin")
    back = there_and_back(tmp_path / "llm")
    assert bits(read_checkpoint(back)) == bits(read_checkpoint(tmp_path / "llm"))
    assert_same_llm(back, model)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}),
        ("llama", {"head_dim": 12, "tie_word_embeddings": True}),
        ("mistral", {}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"head_dim": 12}),
    ],
)
def test_llm_families(tmp_path: Path, family: str, changes: dict[str, Any]):
    model = llama(family, **changes)
    model.save_pretrained(tmp_path / "llm")
    back = there_and_back(tmp_path / "llm")
    assert bits(read_checkpoint(back)) == bits(read_checkpoint(tmp_path / "llm"))
    assert_same_llm(back, model)


def test_llm_without_its_head(tmp_path: Path):
    """As `LlamaModel` is saved: no `model.` before the names."""
    model = llama(tie_word_embeddings=True)
    model.model.save_pretrained(tmp_path / "llm")
    back = there_and_back(tmp_path / "llm")
    assert "embed_tokens.weight" in read_checkpoint(back)
    assert bits(read_checkpoint(back)) == bits(read_checkpoint(tmp_path / "llm"))
    assert_same_llm(back, model)


def test_head_stored_beside_the_embedding_it_is_tied_to(tmp_path: Path):
    model = llama(tie_word_embeddings=True)
    model.config.save_pretrained(tmp_path / "llm")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert "lm_head.weight" in state
    torch.save(state, tmp_path / "llm/pytorch_model.bin")
    back = there_and_back(tmp_path / "llm")
    assert bits(read_checkpoint(back)) == bits(read_checkpoint(tmp_path / "llm"))
    assert_same_llm(back, model)
    # One that differs is not what the config says.
    state["lm_head.weight"][3, 5] += 1
    torch.save(state, tmp_path / "llm/pytorch_model.bin")
    with pytest.raises(UserError, match=r"left over: lm_head.weight"):
        to_jax.convert(tmp_path / "llm", tmp_path / "another")


def test_all_tensors_that_do_not_fit_are_listed(tmp_path: Path):
    state = save_as_mert(hubert(), tmp_path / "mert")
    del state["encoder.layer_norm.bias"], state["encoder.layers.1.attention.k_proj.weight"]
    state["masked_spec_embed"] = torch.zeros(25)
    state["encoder.layers.2.attention.k_proj.weight"] = torch.zeros(24, 24)
    torch.save(state, tmp_path / "mert/pytorch_model.bin")
    with pytest.raises(UserError) as caught:
        to_jax.convert(tmp_path / "mert", tmp_path / "out")
    assert str(caught.value).splitlines() == [
        f"{tmp_path / 'mert'}: 4 tensors not as config.json has them",
        "  missing: encoder.layers.1.attention.k_proj.weight [24, 24]",
        "  missing: encoder.layer_norm.bias [24]",
        "  left over: encoder.layers.2.attention.k_proj.weight [24, 24]",
        "  wrong shape: masked_spec_embed is [25], expected [24]",
    ]
    assert not (tmp_path / "out").exists()


def test_both_spellings_of_one_tensor(tmp_path: Path):
    state = save_as_mert(hubert(), tmp_path / "mert")
    state |= {old_spelling(name): value for name, value in state.items()}
    torch.save(state, tmp_path / "mert/pytorch_model.bin")
    with pytest.raises(UserError, match=r"spells the same tensors twice: .*original0.*weight_g"):
        to_jax.convert(tmp_path / "mert", tmp_path / "out")


def test_golden_towers(golden: Path, tmp_path: Path):
    for part in ("mert", "llm"):
        for model in ("pre_ln", "post_ln"):
            to_jax.convert(golden / model / part, tmp_path / f"{model}-{part}")
            to_pytorch.convert(tmp_path / f"{model}-{part}", tmp_path / f"{model}-{part}-back")
            back = read_checkpoint(tmp_path / f"{model}-{part}-back")
            assert bits(back) == bits(read_checkpoint(golden / model / part))


def test_torch_s_own_files_for_where_safetensors_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = llama()
    model.save_pretrained(tmp_path / "llm")
    to_jax.convert(tmp_path / "llm", tmp_path / "jax")
    monkeypatch.setattr(to_pytorch, "SHARD_BYTES", 20_000)
    to_pytorch.convert(tmp_path / "jax", tmp_path / "back", form="bin")
    names = {path.name for path in (tmp_path / "back").iterdir() if not path.name.endswith(".json")}
    assert {name.partition("-")[0] for name in names} == {"pytorch_model"}
    assert "pytorch_model.bin.index.json" in {path.name for path in (tmp_path / "back").iterdir()}
    assert bits(read_checkpoint(tmp_path / "back")) == bits(read_checkpoint(tmp_path / "llm"))
    assert_same_llm(tmp_path / "back", model)


def test_what_is_not_built_is_told_before_its_tensors(tmp_path: Path):
    """A batch norm's counter is an integer, which no weight is."""
    state = save_as_mert(hubert(), tmp_path / "mert")
    values = json.loads((tmp_path / "mert/config.json").read_text())
    (tmp_path / "mert/config.json").write_text(json.dumps(values | {"conv_pos_batch_norm": True}))
    counter = {"encoder.pos_conv_embed.batch_norm.num_batches_tracked": torch.tensor(0)}
    torch.save(state | counter, tmp_path / "mert/pytorch_model.bin")
    with pytest.raises(UserError, match="conv_pos_batch_norm is True"):
        to_jax.convert(tmp_path / "mert", tmp_path / "out")

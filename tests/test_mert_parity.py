"""The encoder against PyTorch: transformers' HubertModel with random weights, and the reference implementation's
numbers."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx
from jaxtyping import Array

from mlingo_jax.models.mert import Mert
from mlingo_jax.weights.load import Tower, load_tower

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BASE = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "conv_dim": [12, 16, 12],
    "conv_kernel": [10, 3, 2],
    "conv_stride": [5, 2, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
# feat_extract_norm, do_stable_layer_norm, conv_bias, kernel_size, further changes.
KINDS = [
    ("group", True, False, 8, {}),
    ("group", False, False, 8, {}),
    ("group", True, True, 7, {"feat_proj_layer_norm": False}),
    ("layer", True, True, 8, {}),
    ("layer", False, False, 7, {"layer_norm_eps": 1e-3, "mask_time_prob": 0.0}),
    ("layer", False, True, 8, {"hidden_act": "gelu_new", "feat_extract_activation": "relu"}),
]


def random_hubert(norm: str, pre_norm: bool, conv_bias: bool, kernel_size: int, changes: dict[str, Any]) -> Any:
    values = {
        "feat_extract_norm": norm,
        "do_stable_layer_norm": pre_norm,
        "conv_bias": conv_bias,
        "num_conv_pos_embeddings": kernel_size,
    }
    model = transformers.HubertModel(transformers.HubertConfig(**BASE | values | changes)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            # Every weight counts: biases not 0, norms' scales and weight norm's gains neither 1 nor what they were.
            draw = torch.randn(value.shape, generator=generator)
            scales = name.endswith(("norm.weight", "original0"))
            value.copy_(1 + draw / 4 if scales else draw * 0.3)
    return model


def loaded(tower: Tower) -> Mert:
    return nnx.merge(tower.graphdef, nnx.State(tower.params))


def hidden_states(model: Mert, waveform: np.ndarray) -> np.ndarray:
    static, state = nnx.split(model)
    run = jax.jit(lambda s, w, n: nnx.merge(static, s).hidden_states(w, n))
    return np.asarray(run(state, jnp.asarray(waveform), jnp.full(len(waveform), waveform.shape[1], jnp.int32)))


def relative_error(found: Array | np.ndarray, wanted: Any) -> float:
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]}-{'pre' if kind[1] else 'post'}-{kind[3]}")
def test_every_hidden_state_is_transformers(tmp_path, kind):
    reference = random_hubert(*kind)
    reference.save_pretrained(tmp_path)
    model = loaded(load_tower(tmp_path, role="encoder", dtype="float32"))
    waveform = np.random.default_rng(1).normal(size=(2, 1000)).astype(np.float32)
    with torch.no_grad():
        wanted = reference(torch.from_numpy(waveform), output_hidden_states=True)
    # Since version 5 transformers leaves a pre-norm encoder's last hidden state without its norm; version 4, with which
    # MusiLingo was trained, gave the last hidden state.
    wanted = [*wanted.hidden_states[:-1], wanted.last_hidden_state]
    found = hidden_states(model, waveform)
    assert len(found) == len(wanted) == model.config.states
    assert max(map(relative_error, found, wanted)) < 1e-5


def test_masked_frames_are_transformers(tmp_path):
    reference = random_hubert(*KINDS[0])
    reference.save_pretrained(tmp_path)
    model = loaded(load_tower(tmp_path, role="encoder", dtype="float32"))
    waveform = np.random.default_rng(2).normal(size=(1, 600)).astype(np.float32)
    mask = np.zeros((1, model.config.frames(600)), bool)
    mask[:, 5:12] = True
    with torch.no_grad():
        wanted = reference(torch.from_numpy(waveform), mask_time_indices=torch.from_numpy(mask)).last_hidden_state
    states = model.features(
        jnp.asarray(waveform), jnp.array([600]), frames_per_token=1, per_layer=True, mask_time=jnp.asarray(mask)
    )
    assert relative_error(states[:, -1], wanted) < 1e-5


@pytest.fixture(scope="module", params=["pre_ln", "post_ln"])
def original(request, golden: Path) -> tuple[Path, Mert]:
    folder = golden / request.param
    return folder, loaded(load_tower(folder / "mert", role="encoder", dtype="float32"))


def encoded(folder: Path, clip: str) -> np.ndarray:
    waveform, _ = soundfile.read(folder / "audio" / f"{clip}.wav", dtype="float32")
    return ((waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7))[None]


def test_hidden_states_of_the_original(original):
    folder, model = original
    found = hidden_states(model, encoded(folder, "bell_4s"))[:, 0]
    wanted = np.load(folder / "expected.npz")["bell_4s/hidden_states"]
    assert max(map(relative_error, found, wanted)) < 1e-5


def test_music_features_of_the_original_all_clips_in_one_batch(original):
    folder, model = original
    clips = {path.stem: encoded(folder, path.stem)[0] for path in sorted((folder / "audio").iterdir())}
    lengths = [len(clip) for clip in clips.values()]
    batch = np.stack([np.pad(clip, (0, max(lengths) - len(clip))) for clip in clips.values()])
    static, state = nnx.split(model)
    run = jax.jit(lambda s, w, n: nnx.merge(static, s).features(w, n, frames_per_token=325))
    found = run(state, jnp.asarray(batch), jnp.asarray(lengths))
    for row, name in zip(found, clips, strict=True):
        wanted = np.load(folder / "expected.npz")[f"{name}/layer_mean_pooled"]
        assert relative_error(row[: len(wanted)], wanted) < 1e-5
        assert not row[len(wanted) :].any()

"""The demo's encoder: a small MERT that learns to hear from the corpus's training clips, without their labels.

Its frames' last hidden states, some of them behind a mask, predict what the teachers say of the same moments.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from mlingo_jax.data.audio import normalize
from mlingo_jax.demo.synthesis import SAMPLE_RATE
from mlingo_jax.demo.teachers import describe
from mlingo_jax.demo.towers import Batch, Params, fit, write_tower
from mlingo_jax.models.mert import Mert, MertConfig

ARCHITECTURE = {
    "architectures": ["HubertModel"],
    "model_type": "mert_model",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "do_stable_layer_norm": True,
    "conv_dim": [168, 128],
    "conv_kernel": [2048, 4],
    "conv_stride": [160, 4],
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
    "sample_rate": SAMPLE_RATE,
}
PROCESSOR = {
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "do_normalize": True,
    "feature_size": 1,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
    "sampling_rate": SAMPLE_RATE,
}
ROWS = 16
RATE = 2e-3


def make_encoder(folder: Path, clips: Sequence[Float[np.ndarray, " N"]], *, steps: int, seed: int) -> None:
    """Writes an encoder trained on clips of one length as a Hugging Face folder."""
    config = MertConfig.from_json(ARCHITECTURE, "the demo's encoder")
    model = Mert(config, dtype=jnp.float32, rngs=nnx.Rngs(seed))
    graphdef, state = nnx.split(model, nnx.Param)
    params = nnx.to_pure_dict(state)
    params["conv_layers"][0]["kernel"] = tuned_filters(config.conv_kernels[0], config.conv_widths[0])
    if steps:
        targets = _targets(clips, config)
        head = {"kernel": jnp.zeros((config.width, targets.shape[-1])), "bias": jnp.zeros(targets.shape[-1])}

        def loss(params: Params, batch: Batch) -> Float[Array, ""]:
            mert = nnx.merge(graphdef, nnx.State(params["mert"]))
            lengths = jnp.full(ROWS, batch["waveform"].shape[1])
            frames = mert.hidden_states(batch["waveform"], lengths)[-1]
            guess = frames @ params["head"]["kernel"] + params["head"]["bias"]
            return jnp.square(guess - batch["target"]).mean()

        waveforms = np.stack([normalize(clip) for clip in clips])
        batches = _batches(waveforms, targets, np.random.default_rng(seed))
        params = fit({"mert": params, "head": head}, loss, batches, steps=steps, rate=RATE, title="encoder")["mert"]
    write_tower(folder, "mert", ARCHITECTURE, model, jax.device_get(params))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=2) + "\n", encoding="utf-8")


def tuned_filters(taps: int, channels: int) -> Float[Array, "T 1 O"]:
    """A first convolution to begin with: pairs of short sine and cosine waves, from 100 Hz to 8 kHz, as an ear is tuned."""
    hertz = np.repeat(np.geomspace(100, 8000, channels // 2), 2)
    time = (np.arange(taps)[:, None] - taps / 2) / SAMPLE_RATE
    width = np.minimum(taps / SAMPLE_RATE, 30 / hertz)
    envelope = np.where(np.abs(time) < width / 2, np.cos(np.pi * time / width) ** 2, 0)
    waves = envelope * np.cos(2 * np.pi * hertz * time + np.pi / 2 * (np.arange(channels) % 2))
    # Small enough for the group norm's epsilon to matter: a band that is silent throughout a clip stays small.
    return jnp.asarray(0.01 * waves / np.linalg.norm(waves, axis=0), jnp.float32)[:, None]


def _targets(clips: Sequence[Float[np.ndarray, " N"]], config: MertConfig) -> Float[np.ndarray, "C T F"]:
    """The teachers' descriptions, each number of deviation 1, each teacher of the same weight in a mean square."""
    frames, centre = config.frames(len(clips[0])), config.receptive_field // 2
    described = [describe(clip, frames, config.hop, centre) for clip in clips]
    parts = []
    for teacher in described[0]:
        part = np.stack([d[teacher] for d in described]).astype(np.float32)
        part = (part - part.mean((0, 1))) / (part.std((0, 1)) + 1e-4)
        parts.append(part / np.sqrt(part.shape[-1]))
    targets = np.concatenate(parts, -1)
    return targets * np.float32(np.sqrt(targets.shape[-1] / len(parts)))


def _batches(waveforms: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> Iterator[Batch]:
    while True:
        for chosen in np.array_split(rng.permutation(len(waveforms)), max(len(waveforms) // ROWS, 1)):
            chosen = np.resize(chosen, ROWS)
            yield {"waveform": waveforms[chosen], "target": targets[chosen]}

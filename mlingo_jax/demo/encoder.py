"""The demo's encoder: a small MERT whose convolutions are wavelets, so that it encodes without having been trained.

Two wide convolutions make a scattering transform (Andén and Mallat, "Deep Scattering Spectrum", 2014). The first is an
encoder: short waves, twelve to the octave. The second listens to how loud these get over a second and a half: some of
its channels to one place of the spectrum, some to pulses from 0.8 to 16 Hz, some to chords. The projection that follows
whitens what is encoded in the training clips, without labels; the layers above are random.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from mlingo_jax.data.audio import normalize
from mlingo_jax.demo.towers import write_tower
from mlingo_jax.models.mert import Mert, MertConfig
from mlingo_jax.models.mert_config import SAMPLE_RATE

BANDS, OCTAVES, LOWEST = 84, 7, 80.0
SHRINK = 0.03
PULSES = np.geomspace(0.8, 16, 11)
TRIADS = {"major": (0, 4, 7), "minor": (0, 3, 7)}
THIRDS = {"major": 4, "minor": 3}

ARCHITECTURE = {
    "architectures": ["HubertModel"],
    "model_type": "mert_model",
    "hidden_size": 384,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "do_stable_layer_norm": False,
    "conv_dim": [2 * BANDS, 512],
    "conv_kernel": [2048, 300],
    "conv_stride": [120, 40],
    "conv_bias": False,
    "feat_extract_norm": "group",
    "feat_extract_activation": "gelu",
    "feat_proj_layer_norm": True,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 8,
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


def make_encoder(folder: Path, clips: Iterator[Float[np.ndarray, " N"]], *, seed: int) -> None:
    """Writes the encoder as a Hugging Face folder; `clips` are the waveforms that its projection is fitted to."""
    config = MertConfig.from_json(ARCHITECTURE, "the demo's encoder")
    model = Mert(config, dtype=jnp.float32, rngs=nnx.Rngs(seed))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    rng = np.random.default_rng(seed)
    (ear_kernel_size, pulse_kernel_size), (_, channels) = config.conv_kernel_sizes, config.conv_channels
    params["conv_layers"][0]["kernel"] = encoder(ear_kernel_size)[:, None]
    params["conv_layers"][1]["kernel"] = scattering(
        pulse_kernel_size, channels, SAMPLE_RATE / config.conv_strides[0], rng
    )
    encoded = _encoded(nnx.graphdef(model), params, clips)
    params["feature_projection"]["kernel"], params["feature_projection"]["bias"] = whitening(encoded, config.embed_dim)
    write_tower(folder, "mert", ARCHITECTURE, model, jax.device_get(params))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=2) + "\n", encoding="utf-8")


def whitening(
    encoded: Float[np.ndarray, "B C"], width: int
) -> tuple[Float[np.ndarray, "C D"], Float[np.ndarray, " D"]]:
    """Kernel and bias that make the clips' means uncorrelated and of like size: the first `width` principal components.

    Small components are raised less than to size 1: they are noise.
    """
    mean = encoded.mean(axis=0)
    _, sizes, axes = np.linalg.svd(encoded - mean, full_matrices=False)
    stds = sizes / np.sqrt(len(encoded))
    scale = 1 / (stds + SHRINK * stds[0])
    kernel = np.zeros((encoded.shape[1], width), np.float32)
    kept = min(width, len(sizes))
    kernel[:, :kept] = (axes[:kept] * scale[:kept, None]).T
    return kernel, -mean @ kernel


def _encoded(
    graphdef: nnx.GraphDef[Mert], params: dict[str, Any], clips: Iterator[Float[np.ndarray, " N"]]
) -> Float[np.ndarray, "B C"]:
    """What arrives at the projection, averaged over each clip."""

    @jax.jit
    def encode(params: dict[str, Any], waveform: Float[Array, "1 N"]) -> Float[Array, " C"]:
        mert = nnx.merge(graphdef, nnx.State(params))
        x, frames = waveform[..., None], jnp.array([waveform.shape[1]])
        for layer in mert.conv_layers:
            frames = layer.frames(frames)
            x = layer(x, frames)
        assert mert.feature_norm is not None
        return mert.feature_norm(x).mean((0, 1))

    return np.stack([np.asarray(encode(params, normalize(clip)[None])) for clip in clips])


def bands() -> Float[np.ndarray, " O"]:
    """The encoder's frequencies in Hz."""
    return LOWEST * 2 ** (np.arange(BANDS) * OCTAVES / BANDS)


def encoder(kernel_size: int) -> Float[np.ndarray, "T O"]:
    """A sine and a cosine wave for each band, sixteen periods long where the kernel_size allow."""
    hertz = np.repeat(bands(), 2)
    phases = np.tile([0, np.pi / 2], BANDS)
    waves = np.stack(
        [_wave(kernel_size, h, float(SAMPLE_RATE), 16.0, phase) for h, phase in zip(hertz, phases, strict=True)], axis=1
    )
    # Small enough for the group norm's epsilon to matter: a band that is silent throughout a clip stays small.
    return (0.02 * waves).astype(np.float32)


def scattering(kernel_size: int, channels: int, rate: float, rng: np.random.Generator) -> Float[np.ndarray, "T I O"]:
    """The second convolution's kernel; `rate` is the frequency in Hz at which the encoder's bands arrive."""
    chords = [(profile, share) for profile in _chord_profiles() for share in (1, 3, 8)]
    kernels = [np.outer(_window(kernel_size, kernel_size), _bump(float(place), 1.0)) for place in range(BANDS)]
    kernels += [np.outer(_window(kernel_size, kernel_size // share), profile) for profile, share in chords]
    while len(kernels) < channels:
        pulse = _wave(kernel_size, rng.choice(PULSES), rate, 4.0, rng.uniform(0, 2 * np.pi))
        width = rng.choice([2.0, 6.0, 20.0])
        signs = rng.choice([-1, 1], BANDS) if width < 20 else np.ones(BANDS)
        kernels.append(np.outer(pulse, signs * _bump(rng.uniform(0, BANDS), width)))
    unit = [kernel / np.linalg.norm(kernel) for kernel in kernels]
    # A band's sine and cosine count alike.
    return np.stack(np.repeat(unit, 2, axis=2) / np.sqrt(2), axis=-1).astype(np.float32)


def _chord_profiles() -> list[Float[np.ndarray, " O"]]:
    """How major and minor triads on the twelve notes look over the bands; the other mode's third counts against."""
    hertz = bands()
    semitones = 12 * np.log2(hertz / LOWEST)
    encoded = (hertz > 200) & (hertz < 3000)
    profiles = []
    for mode, other in (("major", "minor"), ("minor", "major")):
        for root in range(12):
            weights = np.zeros(12)
            weights[[(root + interval) % 12 for interval in TRIADS[mode]]] = 1
            weights[(root + THIRDS[other]) % 12] = -1
            profile = weights[np.round(semitones).astype(int) % 12] * encoded
            profiles.append(np.where(encoded, profile - profile[encoded].mean(), 0))
    return profiles


def _bump(place: float, width: float) -> Float[np.ndarray, " O"]:
    return np.exp(-0.5 * ((np.arange(BANDS) - place) / width) ** 2)


def _window(kernel_size: int, length: int) -> Float[np.ndarray, " T"]:
    before = (kernel_size - length) // 2
    return np.pad(np.hanning(length), (before, kernel_size - length - before))


def _wave(kernel_size: int, hertz: float, rate: float, periods: float, phase: float) -> Float[np.ndarray, " T"]:
    """A wave of norm 1 in the middle of so many kernel_size, faded in and out."""
    time = (np.arange(kernel_size) - (kernel_size - 1) / 2) / rate
    length = min(kernel_size / rate, periods / hertz)
    wave = np.where(np.abs(time) <= length / 2, np.cos(np.pi * time / length) ** 2, 0)
    wave = wave * np.cos(2 * np.pi * hertz * time + phase)
    return wave / np.linalg.norm(wave)

"""Hears all clips of a prepared collection into the feature cache that runs on it will find, before any of them."""

import sys

import jax

from configs.base import Config
from conversion.folders import find
from conversion.towers import open_tower
from mlingo_jax.data.audio import AudioSettings
from mlingo_jax.data.datasets.prepared import Prepared
from mlingo_jax.data.hearing import count_tokens
from mlingo_jax.data.mixture import clip_name
from mlingo_jax.data.stored import StoredAudio
from mlingo_jax.models.mert import MertConfig
from mlingo_jax.training.music import cache_folder, hear_clips, load_encoder
from mlingo_jax.training.sharding import make_mesh

_BYTES = 4  # float32


def hear_collection(config: Config, dataset: str) -> str:
    """Hears the clips of the dataset's collection that the cache does not have, and says what is there then.

    The config gives encoder, window, states and folders, as a run's does. Says what it will take before it begins.

    Raises:
        UserError: the dataset is not prepared, the encoder cannot be loaded, the cache is of another kind, or too many
            clips cannot be heard.
    """
    prepared = Prepared(config.data.data_dir, dataset)
    clips = prepared.clips
    folder = cache_folder(config)
    print(f"{folder}: {expected_size(config, prepared)}", file=sys.stderr)
    audio = {
        clip_name(prepared.collection, clip): StoredAudio(prepared.collection, clip, clips.audio)
        for clip, *_ in clips.lengths()
    }
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        cache, unheard = hear_clips(config, audio, load_encoder(config, mesh))
    heard = f"{folder}: {len(audio) - len(unheard):,} clips of {prepared.collection} are heard, {len(cache):,} in all"
    return "\n".join([heard, *unheard.values()])


def expected_size(config: Config, prepared: Prepared) -> str:
    """How much there is to hear in a collection, and to keep of it."""
    encoder = open_tower(find(config.mert.path), "mert")
    assert isinstance(encoder.config, MertConfig)
    audio = AudioSettings.from_folder(encoder.files or find(config.mert.path))
    lengths = [seconds for _, seconds, _ in prepared.clips.lengths()]
    vectors = sum(
        count_tokens(round(s * audio.sample_rate), audio, encoder.config, config.mert.window) for s in lengths
    )
    states = encoder.config.states if config.adapter.learn_states else 1
    size = vectors * states * encoder.config.width * _BYTES
    return (
        f"{len(lengths):,} clips of {prepared.collection}, {sum(lengths) / 3600:.1f} hours, are {vectors:,} x {states} "
        f"vectors of {encoder.config.width:,} numbers: {size / 1e6:,.1f} MB"
    )

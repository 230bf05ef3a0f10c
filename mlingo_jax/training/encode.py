"""Encodes all clips of a prepared collection into the feature cache that runs on it will find, before any of them."""

import sys

import jax

from mlingo_jax.data.audio import AudioSettings
from mlingo_jax.data.mixture import clip_name
from mlingo_jax.data.prepared import Prepared
from mlingo_jax.features.encode import count_tokens
from mlingo_jax.features.shards import DTYPES
from mlingo_jax.processes import is_primary
from mlingo_jax.settings import Config
from mlingo_jax.training.music import cache_folder, encode_clips, encoding_settings, fixed_crops, load_encoder
from mlingo_jax.training.sharding import local_mesh
from mlingo_jax.weights.load import Tower
from mlingo_jax.wording import counted


def encode_collection(config: Config, dataset: str) -> str:
    """Encodes the clips of the dataset's collection that the cache does not have, and says what is there then.

    Several processes share the work, each on all its own devices.

    The config gives encoder, frames_per_token, states and folders, as a run's does. Says what it will take before it
    begins.

    Raises:
        UserError: the dataset is not prepared, the encoder cannot be loaded, the cache is of another kind, or too many
            clips cannot be read.
    """
    prepared = Prepared(config.data.data_dir, dataset)
    clips = prepared.clips
    folder = cache_folder(config)
    audio = {clip_name(prepared.collection, clip): clips.stored(clip) for clip, *_ in clips.lengths()}
    mesh = local_mesh()
    with jax.set_mesh(mesh):
        tower = load_encoder(config, mesh)
        if is_primary():
            print(f"{folder}: {expected_size(config, prepared, tower)}", file=sys.stderr, flush=True)
        cache, unreadable = encode_clips(config, audio, tower, mesh)
    clips = counted(len(audio) - len(unreadable), "clip")
    encoded = f"{folder}: {clips} of {prepared.collection} encoded, {len(cache):,} in all"
    return "\n".join([encoded, *unreadable.values()])


def expected_size(config: Config, prepared: Prepared, tower: Tower) -> str:
    """How much there is to encode in a collection, and to keep of it."""
    kind, crops = encoding_settings(config), fixed_crops(config)
    audio = AudioSettings.from_folder(tower.folder)
    encoded = vectors = 0
    for _, seconds, _ in prepared.clips.lengths():
        samples, count = round(seconds * audio.sample_rate), 1
        if crops:
            count = crops.distinct(samples, audio.sample_rate)
            samples = min(samples, crops.samples(audio.sample_rate))
        encoded += count * samples
        vectors += count * count_tokens(samples, audio, tower.config, kind["frames_per_token"], kind["seconds"])
    states = tower.config.states if kind["per_layer"] else 1
    size = vectors * states * tower.config.embed_dim * DTYPES[kind["stored"]].itemsize
    in_crops = f" in {counted(crops.count, 'crop')} of up to {crops.seconds:g} s" if crops else ""
    hours = encoded / audio.sample_rate / 3600
    return (
        f"{counted(len(prepared.clips), 'clip')} of {prepared.collection}{in_crops}, {hours:.1f} hours: {vectors:,} x "
        f"{states} vectors of {tower.config.embed_dim:,} numbers: {size / 1e6:,.1f} MB in {kind['stored']}"
    )

"""Hears all clips of a prepared collection into the feature cache that runs on it will find, before any of them."""

import sys

import jax

from configs.base import Config
from conversion.load import Tower
from mlingo_jax.data.audio import AudioSettings
from mlingo_jax.data.datasets.prepared import Prepared
from mlingo_jax.data.hearing import count_tokens
from mlingo_jax.data.mixture import clip_name
from mlingo_jax.data.shards import DTYPES
from mlingo_jax.data.stored import StoredAudio
from mlingo_jax.processes import is_first
from mlingo_jax.training.music import cache_folder, fixed_crops, hear_clips, listening, load_encoder
from mlingo_jax.training.sharding import local_mesh
from mlingo_jax.wording import counted


def hear_collection(config: Config, dataset: str) -> str:
    """Hears the clips of the dataset's collection that the cache does not have, and says what is there then.

    Several processes share the work, each on all its own devices.

    The config gives encoder, window, states and folders, as a run's does. Says what it will take before it begins.

    Raises:
        UserError: the dataset is not prepared, the encoder cannot be loaded, the cache is of another kind, or too many
            clips cannot be heard.
    """
    prepared = Prepared(config.data.data_dir, dataset)
    clips = prepared.clips
    folder = cache_folder(config)
    audio = {
        clip_name(prepared.collection, clip): StoredAudio(prepared.collection, clip, clips.audio)
        for clip, *_ in clips.lengths()
    }
    mesh = local_mesh()
    with jax.set_mesh(mesh):
        tower = load_encoder(config, mesh)
        if is_first():
            print(f"{folder}: {expected_size(config, prepared, tower)}", file=sys.stderr, flush=True)
        cache, unheard = hear_clips(config, audio, tower, mesh)
    clips = counted(len(audio) - len(unheard), "clip")
    heard = f"{folder}: {clips} of {prepared.collection} heard, {len(cache):,} in all"
    return "\n".join([heard, *unheard.values()])


def expected_size(config: Config, prepared: Prepared, tower: Tower) -> str:
    """How much there is to hear in a collection, and to keep of it."""
    kind, crops = listening(config), fixed_crops(config)
    audio = AudioSettings.from_folder(tower.folder)
    heard = vectors = 0
    for _, seconds, _ in prepared.clips.lengths():
        samples, count = round(seconds * audio.sample_rate), 1
        if crops:
            count = crops.distinct(samples, audio.sample_rate)
            samples = min(samples, crops.samples(audio.sample_rate))
        heard += count * samples
        vectors += count * count_tokens(samples, audio, tower.config, kind["window"], kind["seconds"])
    states = tower.config.states if kind["keep_states"] else 1
    size = vectors * states * tower.config.width * DTYPES[kind["stored"]].itemsize
    in_crops = f" in {counted(crops.count, 'crop')} of up to {crops.seconds:g} s" if crops else ""
    hours = heard / audio.sample_rate / 3600
    return (
        f"{counted(len(prepared.clips), 'clip')} of {prepared.collection}{in_crops}, {hours:.1f} hours: {vectors:,} x "
        f"{states} vectors of {tower.config.width:,} numbers: {size / 1e6:,.1f} MB in {kind['stored']}"
    )

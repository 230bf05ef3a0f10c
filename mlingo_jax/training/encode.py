"""Encodes all clips of a prepared collection into the feature cache that runs on it will find, before any of them."""

import sys

import jax

from mlingo_jax.data.mixture import clip_name
from mlingo_jax.data.prepared import Prepared
from mlingo_jax.features.encode import count_tokens
from mlingo_jax.features.shards import DTYPES
from mlingo_jax.features.spec import FeatureSpec
from mlingo_jax.processes import is_primary
from mlingo_jax.training.music import encode_clips, load_encoder
from mlingo_jax.training.sharding import local_mesh
from mlingo_jax.weights.load import Tower
from mlingo_jax.wording import counted


def encode_collection(spec: FeatureSpec, data_dir: str, dataset: str) -> str:
    """Encodes the clips of the dataset's collection that the cache does not have, and says what is there then.

    Several processes share the work, each on all its own devices.

    Says what it will take before it begins.

    Raises:
        UserError: the dataset is not prepared, the encoder cannot be loaded, the cache is of another kind, or too many
            clips cannot be read.
    """
    prepared = Prepared(data_dir, dataset)
    clips = prepared.clips
    audio = {clip_name(prepared.collection, clip): clips.stored(clip) for clip, *_ in clips.lengths()}
    mesh = local_mesh()
    with jax.set_mesh(mesh):
        tower = load_encoder(spec, mesh)
        if is_primary():
            print(f"{spec.cache}: {expected_size(spec, prepared, tower)}", file=sys.stderr, flush=True)
        cache, unreadable = encode_clips(spec, audio, tower, mesh)
    clips = counted(len(audio) - len(unreadable), "clip")
    encoded = f"{spec.cache}: {clips} of {prepared.collection} encoded, {len(cache):,} in all"
    return "\n".join([encoded, *unreadable.values()])


def expected_size(spec: FeatureSpec, prepared: Prepared, tower: Tower) -> str:
    """How much there is to encode in a collection, and to keep of it."""
    crops = spec.fixed_crops
    audio = spec.audio_settings(tower.folder)
    encoded = vectors = 0
    for _, seconds, _ in prepared.clips.lengths():
        samples, count = round(seconds * audio.sample_rate), 1
        if crops:
            count = crops.distinct(samples, audio.sample_rate)
            samples = min(samples, crops.samples(audio.sample_rate))
        encoded += count * samples
        vectors += count * count_tokens(samples, audio, tower.config, spec.frames_per_token, spec.chunk_seconds)
    states = tower.config.states if spec.per_layer else 1
    size = vectors * states * tower.config.embed_dim * DTYPES[spec.stored].itemsize
    in_crops = f" in {counted(crops.count, 'crop')} of up to {crops.seconds:g} s" if crops else ""
    hours = encoded / audio.sample_rate / 3600
    return (
        f"{counted(len(prepared.clips), 'clip')} of {prepared.collection}{in_crops}, {hours:.1f} hours: {vectors:,} x "
        f"{states} vectors of {tower.config.embed_dim:,} numbers: {size / 1e6:,.1f} MB in {spec.stored}"
    )

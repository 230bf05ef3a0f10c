"""Where a run's music comes from: features encoded once and kept, or audio encoded in every step.

Beside its features, a cache gets `encoder.json`: which files the encoder was read from. While those are the same, a run
whose clips have all been encoded does not load the encoder at all.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from mlingo_jax.data.contents import UNKNOWN, digest_audio, file_state
from mlingo_jax.data.examples import Examples
from mlingo_jax.data.rows import Music
from mlingo_jax.data.stored import Audio, duration
from mlingo_jax.data.unreadable import named
from mlingo_jax.errors import UserError
from mlingo_jax.features.cache import FINGERPRINT, FeatureCache, Fingerprint
from mlingo_jax.features.encode import AudioEncoder
from mlingo_jax.features.fill import fill_cache, find_encoded
from mlingo_jax.features.silence import keep_silence
from mlingo_jax.features.sources import CachedFeatures, OnlineAudio
from mlingo_jax.features.spec import FeatureSpec
from mlingo_jax.files import write_atomic
from mlingo_jax.models.pooling import pooled_length
from mlingo_jax.processes import broadcast, is_primary
from mlingo_jax.training.sharding import local_mesh
from mlingo_jax.weights.folders import find
from mlingo_jax.weights.load import Tower, load_tower
from mlingo_jax.wording import counted

ENCODER = "encoder.json"
# Of how many clips the mean length is taken: half a second's work, if they are clips.
_MEASURED_CLIPS = 16


@dataclasses.dataclass(frozen=True)
class RunMusic:
    """A run's music.

    music: where rows get it from.
    embed_dim: of the features, D; states: how many hidden states they keep apart (None: their mean).
    identity: the encoder's; folder: where it is ("" if that is not known any more).
    tower: the encoder itself, if it is needed in the steps.
    unreadable: clips that could not be read, and why.
    audio: a digest of the clips' audio; None if nobody knows it.
    """

    music: Music
    embed_dim: int
    states: int | None
    identity: dict[str, str]
    folder: str
    tower: Tower | None
    unreadable: dict[str, str]
    audio: str | None


def encoded_clips(spec: FeatureSpec) -> FeatureCache | tuple[()]:
    """The clips whose features are there already, so that their audio need not be."""
    used = not spec.online and (spec.cache / FINGERPRINT).exists()
    return FeatureCache(spec.cache) if used else ()


def open_music(
    spec: FeatureSpec, clips: Mapping[str, Audio], mesh: Mesh, check: Callable[[Mapping[str, Any]], None]
) -> RunMusic:
    """The music of these clips; encodes those that have not been encoded yet, unless that is the steps' work.

    check: is shown the encoder's identity before any clip is encoded; raises to refuse it.

    Raises:
        UserError: the encoder cannot be loaded or is not named; clips cannot be read; the cache is of another kind.
    """
    return _encoded_in_step(spec, clips, mesh) if spec.online else _encoded_before(spec, clips, check)


def encode_clips(
    spec: FeatureSpec, clips: Mapping[str, Audio], tower: Tower, mesh: Mesh
) -> tuple[FeatureCache, dict[str, str]]:
    """The run's cache with all clips that can be read, and why the others cannot; several processes share the work.

    The tower is on the mesh, which is of this process's own devices.

    Raises:
        UserError: see `mlingo_jax.features.fill.fill_cache`; the message names what sets a cache of another kind apart.
    """
    audio = spec.audio_settings(tower.folder)
    encoder = make_encoder(spec, tower, mesh)
    fingerprint = Fingerprint.of(tower.identity, audio, **spec.kind)
    cache, unreadable = fill_cache(
        clips,
        encoder,
        spec.cache,
        fingerprint,
        minimum=tower.config.receptive_field,
        max_bad_fraction=spec.max_bad_fraction,
    )
    if is_primary():
        keep_silence(encoder, cache.folder)
        _remember(spec.encoder, cache.folder)
    return cache, unreadable


def make_encoder(spec: FeatureSpec, tower: Tower, mesh: Mesh) -> AudioEncoder:
    """What encodes the clips of a cache."""
    return AudioEncoder(
        tower.graphdef,
        tower.params,
        tower.config,
        spec.audio_settings(tower.folder),
        frames_per_token=spec.frames_per_token,
        seconds=spec.chunk_seconds,
        per_layer=spec.per_layer,
        mesh=mesh,
    )


def _remember(encoder: str, folder: Path) -> None:
    memory = {"path": lasting(encoder), "files": _files(encoder)}
    write_atomic(folder / ENCODER, [json.dumps(memory, indent=2), "\n"])


def mean_seconds(examples: Examples, *, most: float) -> float | None:
    """The clips' mean duration (`most` each at most), of some that are decoded; None if there are none any more."""
    sampled = range(0, len(examples), max(len(examples) // _MEASURED_CLIPS, 1))
    durations = [min(d, most) for i in sampled if (d := duration(examples[i].audio, most)) is not None]
    return sum(durations) / len(durations) if durations else None


def lasting(source: str) -> str:
    """A folder's absolute path, so that it is found from elsewhere; a hub id as it is."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def _encoded_in_step(spec: FeatureSpec, clips: Mapping[str, Audio], mesh: Mesh) -> RunMusic:
    tower = load_encoder(spec, mesh)
    frames = tower.config.frames
    music = OnlineAudio(
        spec.audio_settings(tower.folder),
        spec.crop_seconds,
        tokens=lambda samples: pooled_length(frames(samples), spec.frames_per_token),
        minimum=tower.config.receptive_field,
        crops=spec.fixed_crops,
    )
    states = tower.config.states if spec.per_layer else None
    path = lasting(spec.encoder)
    return RunMusic(music, tower.config.embed_dim, states, tower.identity, path, tower, {}, _identity(clips))


def _encoded_before(
    spec: FeatureSpec, clips: Mapping[str, Audio], check: Callable[[Mapping[str, Any]], None]
) -> RunMusic:
    folder, unreadable = spec.cache, {}
    # The first process judges for all: where each has the encoder's files on a disk of its own, their times differ.
    complete, versions = broadcast(_find_complete(spec, clips) if is_primary() else (False, {}))
    if complete:
        cache = FeatureCache(folder, versions)
    else:
        mesh = local_mesh()
        with jax.set_mesh(mesh):
            tower = load_encoder(spec, mesh)
            check(tower.identity)
            cache, unreadable = encode_clips(spec, clips, tower, mesh)
    if len(unreadable) == len(clips):
        raise UserError(f"{folder}: not one clip can be read: {named(unreadable.values())}")
    encoded = [clip for clip in clips if clip not in unreadable]
    music = CachedFeatures(cache, encoded)
    states = music.shape[0] if spec.per_layer else None
    path = lasting(spec.encoder) if spec.encoder else _remembered(folder).get("path", "")
    return RunMusic(
        music, music.shape[-1], states, cache.fingerprint.encoder, path, None, unreadable, cache.audio(encoded)
    )


def _identity(clips: Mapping[str, Audio]) -> str:
    """A digest of the clips' audio; of files that of their sizes: a million are not read for it before the steps."""
    told = [_size(audio) if isinstance(audio, Path) else digest_audio(audio) for audio in clips.values()]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def _size(path: Path) -> str:
    state = file_state(path)
    return f"{state[0]} bytes" if state else "missing"


def _find_complete(spec: FeatureSpec, clips: Mapping[str, Audio]) -> tuple[bool, dict[str, str]]:
    """Whether the features of all clips, as their audio is now, are cached and of this run's kind.

    As far as that is seen without the encoder. And which are meant (`find_encoded`).
    """
    cache = encoded_clips(spec)
    if not isinstance(cache, FeatureCache) or not all(cache.encoded(list(clips))) or not is_own(spec, cache):
        return False, {}
    held, versions = find_encoded(clips, cache.folder)
    return all(held), versions


def is_own(spec: FeatureSpec, cache: FeatureCache) -> bool:
    """Whether a cache's features are of this kind and this encoder, as far as that is seen without loading it."""
    made = cache.fingerprint
    same = all(getattr(made, name) == value for name, value in spec.kind.items())
    same = same and (made.mixdown, made.resampling) == (spec.mixdown, spec.resampling)
    known = not spec.encoder or _remembered(cache.folder).get("files") == _files(spec.encoder)
    return same and known and made.encoder.get("dtype") == spec.dtype


def load_encoder(spec: FeatureSpec, mesh: Mesh) -> Tower:
    """The encoder. Raises UserError if it is not named or cannot be loaded."""
    if not spec.encoder:
        raise UserError("config.mert.path is empty: name the encoder, a folder or a hub id, to encode the clips with")
    return load_tower(spec.encoder, role="encoder", dtype=spec.dtype, mesh=mesh)


def _remembered(folder: Path) -> dict[str, Any]:
    """What `_remember` wrote; to lose it, or to find something else there, costs loading the encoder once."""
    try:
        memory = json.loads((folder / ENCODER).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return memory if isinstance(memory, dict) and isinstance(memory.get("path", ""), str) else {}


def shared_audio(music: Music, train: Sequence[str], held_out: Sequence[str]) -> list[str]:
    """A line on clips that are held out although their audio, under another name, is trained on."""
    if not isinstance(music, CachedFeatures):
        return []
    trained = dict(zip(music.cache.digests(train), train, strict=True)) | {UNKNOWN: ""}
    pairs = zip(held_out, music.cache.digests(held_out), strict=True)
    same = [f"{clip} is {other}" for clip, digest in pairs if (other := trained.get(digest)) and other != clip]
    return [f"{counted(len(same), 'clip')} held out whose very audio is trained on: {named(same)}"] if same else []


def _files(source: str) -> dict[str, list[int]]:
    """Size and times of each of a tower's files: what tells, without reading them, that they are the same."""
    folder = find(source)
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    return {path.relative_to(folder).as_posix(): list(file_state(path) or ()) for path in files}

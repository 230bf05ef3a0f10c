"""Where a run's music comes from: features heard once and kept, or audio heard in every step.

Beside its features, a cache gets `encoder.json`: which files the encoder was read from. While those are the same, a run
whose clips have all been heard does not load the encoder at all.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from configs.base import Config
from conversion.folders import find
from conversion.load import Tower, load_tower
from mlingo_jax.data.audio import AudioSettings
from mlingo_jax.data.crops import Crops
from mlingo_jax.data.examples import Examples
from mlingo_jax.data.features import FINGERPRINT, FeatureCache, Fingerprint
from mlingo_jax.data.fill import hear
from mlingo_jax.data.hearing import SECONDS, Ear
from mlingo_jax.data.pipeline import CachedMusic, HeardMusic
from mlingo_jax.data.rows import Music
from mlingo_jax.data.stored import Audio, duration
from mlingo_jax.data.unheard import named
from mlingo_jax.errors import UserError
from mlingo_jax.processes import from_first, is_first
from mlingo_jax.training.run import check_run
from mlingo_jax.training.sharding import local_mesh
from mlingo_jax.writing import write_whole

ENCODER = "encoder.json"


@dataclasses.dataclass(frozen=True)
class RunMusic:
    """A run's music.

    music: where rows get it from.
    width: of the features, D; states: how many hidden states they keep apart (None: their mean).
    identity: the encoder's; folder: where it is ("" if that is not known any more).
    tower: the encoder itself, if it is needed in the steps.
    unheard: clips that could not be heard, and why.
    """

    music: Music
    width: int
    states: int | None
    identity: dict[str, str]
    folder: str
    tower: Tower | None
    unheard: dict[str, str]


def cache_folder(config: Config) -> Path:
    """Where the run's feature cache is, or will be."""
    beside = config.data.data_dir if config.data.datasets else config.workdir
    return Path(config.data.features or Path(beside) / "features")


def heard_clips(config: Config) -> FeatureCache | tuple[()]:
    """The clips whose features are there already, so that their audio need not be."""
    folder = cache_folder(config)
    used = not config.data.hear_in_step and (folder / FINGERPRINT).exists()
    return FeatureCache(folder) if used else ()


def open_music(config: Config, clips: Mapping[str, Audio], mesh: Mesh) -> RunMusic:
    """The music of these clips; hears those that have not been heard yet, unless that is the steps' work.

    Raises:
        UserError: the encoder cannot be loaded or is not named; clips cannot be heard; the cache is of another kind.
    """
    return _heard_in_step(config, mesh) if config.data.hear_in_step else _heard_before(config, clips)


def hear_clips(
    config: Config, clips: Mapping[str, Audio], tower: Tower, mesh: Mesh
) -> tuple[FeatureCache, dict[str, str]]:
    """The run's cache with all clips that can be heard, and why the others cannot; several processes share the work.

    The tower is on the mesh, which is of this process's own devices.

    Raises:
        UserError: see `mlingo_jax.data.fill.hear`; the message names what sets a cache of another kind apart.
    """
    audio = AudioSettings.from_folder(tower.folder)
    kind = listening(config)
    ear = Ear(
        tower.graphdef,
        tower.params,
        tower.config,
        audio,
        window=kind["window"],
        seconds=kind["seconds"],
        keep_states=kind["keep_states"],
        mesh=mesh,
    )
    fingerprint = Fingerprint.of(tower.identity, audio, **kind)
    cache, unheard = hear(
        clips,
        ear,
        cache_folder(config),
        fingerprint,
        minimum=tower.config.receptive_field,
        max_bad_fraction=config.data.max_bad_fraction,
    )
    if is_first():
        _remember(config, cache.folder)
    return cache, unheard


def _remember(config: Config, folder: Path) -> None:
    memory = {"path": lasting(config.mert.path), "files": _files(config.mert.path)}
    write_whole(folder / ENCODER, [json.dumps(memory, indent=2), "\n"])


def fixed_crops(config: Config) -> Crops | None:
    """The crops that a run trains on; None if they are drawn anew or clips are heard as a whole."""
    data = config.data
    return Crops(data.crops, data.crop_seconds, data.crop_seed) if data.crops else None


def listening(config: Config) -> dict[str, Any]:
    """How a run's cached features are made, apart from the encoder: fields of `Fingerprint`."""
    data = config.data
    return {
        "window": config.mert.window,
        "seconds": piece_seconds(config),
        "keep_states": config.adapter.learn_states,
        "stored": data.store,
        "crops": data.crops,
        "crop_seed": data.crop_seed if data.crops else 0,
    }


def piece_seconds(config: Config) -> float:
    """How much of a clip is heard at once: a crop whole, in a step and before."""
    most = most_seconds(config)
    return SECONDS if most == math.inf else most


def most_seconds(config: Config) -> float:
    """How much of a clip is heard for one row, at most."""
    return config.data.crop_seconds if config.data.hear_in_step or config.data.crops else math.inf


def mean_seconds(examples: Examples, *, most: float) -> float | None:
    """The clips' mean duration (`most` each at most), from some files' headers; None if there are no files any more."""
    places = range(0, len(examples), max(len(examples) // 100, 1))
    durations = [min(d, most) for i in places if (d := duration(examples[i].audio)) is not None]
    return sum(durations) / len(durations) if durations else None


def lasting(source: str) -> str:
    """A folder's absolute path, so that it is found from elsewhere; a hub id as it is."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def _heard_in_step(config: Config, mesh: Mesh) -> RunMusic:
    tower = load_encoder(config, mesh)
    window, frames = config.mert.window, tower.config.frames
    music = HeardMusic(
        AudioSettings.from_folder(tower.folder),
        config.data.crop_seconds,
        tokens=lambda samples: -(-frames(samples) // window),
        minimum=tower.config.receptive_field,
        crops=fixed_crops(config),
    )
    states = tower.config.states if config.adapter.learn_states else None
    return RunMusic(music, tower.config.width, states, tower.identity, lasting(config.mert.path), tower, {})


def _heard_before(config: Config, clips: Mapping[str, Audio]) -> RunMusic:
    folder, unheard = cache_folder(config), {}
    # The first process judges for all: where each has the encoder's files on a disk of its own, their times differ.
    if from_first(is_first() and _is_complete(config, clips)):
        cache = FeatureCache(folder)
    else:
        mesh = local_mesh()
        with jax.set_mesh(mesh):
            tower = load_encoder(config, mesh)
            check_run(Path(config.workdir), {"mert": {"identity": tower.identity}}, ("mert.identity",))
            cache, unheard = hear_clips(config, clips, tower, mesh)
    if len(unheard) == len(clips):
        raise UserError(f"{folder}: not one clip can be heard: {named(unheard.values())}")
    music = CachedMusic(cache, clips.keys() - unheard.keys())
    states = music.shape[0] if config.adapter.learn_states else None
    path = lasting(config.mert.path) if config.mert.path else _remembered(folder).get("path", "")
    return RunMusic(music, music.shape[-1], states, cache.fingerprint.encoder, path, None, unheard)


def _is_complete(config: Config, clips: Mapping[str, Audio]) -> bool:
    """Whether all clips are cached and of this run's kind, as far as that is seen without the encoder."""
    cache = heard_clips(config)
    if not isinstance(cache, FeatureCache) or not all(clip in cache for clip in clips):
        return False
    made = cache.fingerprint
    same = all(getattr(made, name) == value for name, value in listening(config).items())
    known = not config.mert.path or _remembered(cache.folder).get("files") == _files(config.mert.path)
    return same and known and made.encoder.get("dtype") == config.mert.dtype


def load_encoder(config: Config, mesh: Mesh) -> Tower:
    """The encoder. Raises UserError if it is not named or cannot be loaded."""
    if not config.mert.path:
        raise UserError("config.mert.path is empty: name the encoder, a folder or a hub id, to hear the clips with")
    return load_tower(config.mert.path, kind="mert", dtype=config.mert.dtype, mesh=mesh)


def _remembered(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / ENCODER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _files(source: str) -> dict[str, list[int]]:
    """Size and time of change of each of a tower's files: what tells, without reading them, that they are the same."""
    folder = find(source)
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    return {path.relative_to(folder).as_posix(): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}

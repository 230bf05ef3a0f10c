"""The model that is evaluated: its language model, its adapter, and the music of the clips it is asked about.

Music comes from a feature cache that holds all the clips; then no encoder is loaded. Where there is none, the clips are
encoded once and kept beside the report.

Features are [K, D]: K music features of the encoder's width D; or [S, K, D] with hidden states kept apart.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Float32

from mlingo_jax.data.prompt import Prompt, open_prompt
from mlingo_jax.data.stored import Audio
from mlingo_jax.errors import UserError
from mlingo_jax.features.cache import FINGERPRINT, FeatureCache, Fingerprint
from mlingo_jax.features.fill import find_encoded
from mlingo_jax.features.silence import keep_silence, read_silence
from mlingo_jax.features.sources import CachedFeatures
from mlingo_jax.features.spec import FeatureSpec
from mlingo_jax.files import read_json
from mlingo_jax.models.adapter import AdapterConfig
from mlingo_jax.models.musilingo import Networks
from mlingo_jax.models.quantization import Quantization
from mlingo_jax.processes import broadcast, is_primary, run_on_primary
from mlingo_jax.runs.folder import read_run, run_of
from mlingo_jax.sources import Sources, find_sources
from mlingo_jax.training.music import is_own, load_encoder, make_encoder, open_music
from mlingo_jax.training.run import require_towers
from mlingo_jax.training.sharding import local_mesh
from mlingo_jax.weights.checksum import weights_checksum
from mlingo_jax.weights.load import Tower, fit_adapter, load_adapter, load_tower

Features = Float32[np.ndarray, "..."]


@dataclasses.dataclass(frozen=True)
class Model:
    """A language model with its adapter, and the features of the clips.

    params: what is frozen, and what was trained. encoder: where the encoder is or was. identity: all that answers
    depend on but the question.
    """

    llm: Tower
    networks: Networks
    params: tuple[dict[str, Any], dict[str, Any]]
    prompt: Prompt
    music: CachedFeatures
    spec: FeatureSpec
    encoder: str
    mesh: Mesh | None
    identity: Mapping[str, Any]

    def features(self, clip: str) -> Features:
        """The features of a clip; of one that was encoded in crops, the first crop's."""
        cache = self.music.cache
        return cache.crop(clip, 0) if self.music.random else cache[clip]

    def tokens(self, clip: str) -> int:
        """The music tokens of a clip, K."""
        return self.music.most_tokens(clip)

    @property
    def no_music(self) -> Features:
        """The features of no clip at all."""
        *states, _, width = self.music.shape
        return np.zeros((*states, 0, width), np.float32)

    def silence(self) -> Features:
        """The features of silence; an encoder is loaded for it if the cache has none.

        Raises:
            UserError: it has none, and the encoder is not there.
        """
        folder = self.spec.cache
        if broadcast(read_silence(folder) is None):
            run_on_primary("silence", lambda: self._encode_silence(folder))
        found = read_silence(folder)
        assert found is not None
        return found

    def _encode_silence(self, folder: Path) -> None:
        mesh, spec = local_mesh(), dataclasses.replace(self.spec, encoder=self.encoder)
        with jax.set_mesh(mesh):
            keep_silence(make_encoder(spec, load_encoder(spec, mesh), mesh), folder)


def caches_of(run: str | Path, given: Path | None) -> list[Path]:
    """The caches that are looked into for features: the one given, and that of the model's run.

    Raises:
        UserError: the one given is none.
    """
    if given is not None:
        if not (given / FINGERPRINT).exists():
            raise UserError(f"{given}: no feature cache there ({FINGERPRINT} is missing)")
        return [given]
    folder = run_of(run)
    if folder is None:
        return []
    named = read_json(folder / "config.json").get("data", {}) if (folder / "config.json").exists() else {}
    places = [named.get("features"), Path(named["data_dir"]) / "features" if named.get("datasets") else None]
    return [Path(place) for place in [*places, folder / "features"] if place]


class EncodedIn:
    """The clips that some feature caches hold: those whose audio need not be there."""

    def __init__(self, caches: Iterable[Path]):
        self._caches = [FeatureCache(cache) for cache in caches if (cache / FINGERPRINT).exists()]

    def __contains__(self, clip: object) -> bool:
        return any(clip in cache for cache in self._caches)


def open_model(
    adapter: str | Path | None,
    clips: Mapping[str, Audio],
    caches: Sequence[Path],
    own_cache: Path,
    *,
    dtype: DTypeLike,
    mert: str | None = None,
    llm: str | None = None,
    quantization: Quantization | None = None,
) -> Model:
    """Loads what answers questions about these clips, and encodes the clips if no cache holds them.

    Args:
        adapter: as `mlingo_jax.load` takes it. clips: the audio of each. caches: where the clips' features may be.
        own_cache: where they go otherwise. dtype: of the language model, and of an encoder that has to be loaded.
        mert, llm, quantization: as `mlingo_jax.load` takes them.

    Raises:
        UserError: as `mlingo_jax.load`; or a clip cannot be read.
    """
    if mert is None and adapter is not None and run_of(adapter):
        # Not looked for until it is needed: with cached features it may be gone.
        mert = read_run(adapter)["mert"]["folder"] or None
    sources = find_sources(mert, llm, adapter, quantization)
    given, params = (None, None) if adapter is None else load_adapter(adapter)
    per_layer = given is not None and given.per_layer
    spec = _find_cache(caches, clips, sources, per_layer) or _spec(sources, own_cache, str(dtype), per_layer)
    found = open_music(spec, clips, local_mesh(), lambda identity: _require_encoder(adapter, sources, identity))
    assert isinstance(found.music, CachedFeatures)
    # A row needs one device: all that this process has share the rows.
    mesh = local_mesh() if jax.local_device_count() > 1 else None
    tower = load_tower(sources.llm, role="llm", dtype=dtype, quantization=sources.quantization, mesh=mesh)
    if sources.run is not None:
        require_towers(adapter or "", sources.run, mert=found.identity, llm=tower.identity)
    config = AdapterConfig(found.embed_dim, tower.config.embed_dim, found.states)
    fitted = fit_adapter(params, config, source=adapter or "")
    prompt = open_prompt(tower.folder, sources.prompt, tower.config.vocab_size)
    fingerprint = found.music.cache.fingerprint
    identity = {
        "encoder": dict(found.identity),
        "llm": tower.identity,
        "adapter": weights_checksum(fitted.params),
        "prompt": sources.prompt.to_json(),
        "features": {"kind": fingerprint.kind, "crops": fingerprint.crops, "seconds": fingerprint.seconds},
    }
    networks, params = Networks(tower.graphdef, fitted.graphdef), ({"llm": tower.params}, {"adapter": fitted.params})
    return Model(tower, networks, params, prompt, found.music, spec, str(sources.mert), mesh, identity)


def _require_encoder(adapter: str | Path | None, sources: Sources, identity: Mapping[str, Any]) -> None:
    """Refuses an encoder that the adapter's run was not trained with, before any clip is encoded by it."""
    if sources.run is not None:
        require_towers(adapter or "", sources.run, mert=identity)


def _find_cache(
    caches: Sequence[Path], clips: Mapping[str, Audio], sources: Sources, per_layer: bool
) -> FeatureSpec | None:
    """How the features of the first cache were made that fits the model and holds all clips, as their audio is now.

    The same on all processes.
    """
    found = next((n for n, f in enumerate(caches) if _holds(f, clips, sources, per_layer)), None) if is_primary() else 0
    number = broadcast(found)
    return None if number is None else _spec_of(caches[number], sources)


def _holds(folder: Path, clips: Mapping[str, Audio], sources: Sources, per_layer: bool) -> bool:
    if not (folder / FINGERPRINT).exists():
        return False
    cache = FeatureCache(folder)
    made, spec = cache.fingerprint, _spec_of(folder, sources)
    if (made.frames_per_token, made.per_layer, made.resampling) != (
        sources.frames_per_token,
        per_layer,
        sources.resampling,
    ):
        return False
    fits = _is_runs(made, sources) if sources.run else is_own(spec, cache)
    return fits and all(cache.encoded(list(clips))) and all(find_encoded(clips, folder)[0])


def _is_runs(made: Fingerprint, sources: Sources) -> bool:
    """Whether a cache was made by the encoder that the adapter was trained with."""
    assert sources.run is not None
    try:
        require_towers("", sources.run, mert=made.encoder)
    except UserError:
        return False
    return True


def _spec_of(folder: Path, sources: Sources) -> FeatureSpec:
    """How the features of a cache were made. Of a run's, whose checksums are known, no encoder's files are compared."""
    made = FeatureCache(folder).fingerprint
    spec = _spec(sources, folder, made.encoder.get("dtype", "float32"), made.per_layer)
    return dataclasses.replace(
        spec,
        encoder="" if sources.run else spec.encoder,
        crops=made.crops,
        crop_seconds=made.seconds,
        crop_seed=made.crop_seed,
        stored=made.stored,
        mixdown=made.mixdown,
        like_the_original=made.crops_before_resampling,
    )


def _spec(sources: Sources, folder: Path, dtype: str, per_layer: bool) -> FeatureSpec:
    return FeatureSpec(
        encoder=str(sources.mert),
        dtype=dtype,
        frames_per_token=sources.frames_per_token,
        per_layer=per_layer,
        online=False,
        crops=0,
        crop_seconds=0.0,
        crop_seed=0,
        stored="float32",
        cache=folder,
        max_bad_fraction=0.0,
        resampling=sources.resampling,
    )

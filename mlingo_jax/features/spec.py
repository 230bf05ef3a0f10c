"""How music features are made, and where they are kept: what a run, `prepare features` and a plan have to agree on."""

import dataclasses
import math
from pathlib import Path
from typing import Any, cast

from mlingo_jax.data.audio import AudioSettings
from mlingo_jax.data.decoding import Mixdown
from mlingo_jax.data.resampling import Resampling
from mlingo_jax.errors import UserError
from mlingo_jax.features.crops import Crops
from mlingo_jax.features.encode import SECONDS
from mlingo_jax.settings import Config

# Longer than any crop: one that was cut before resampling may last longer than it is said to.
_WHOLE = 3600.0


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """How the features of a clip are made.

    encoder, dtype: the encoder's folder or hub id, and what it computes in.
    frames_per_token: encoder frames averaged into one music token.
    per_layer: whether the encoder's hidden states are kept apart, for an adapter that weighs them.
    online: encoded in every step, from audio; else once, into `cache`, with numbers of the dtype `stored`.
    crops, crop_seconds, crop_seed: how many fixed crops of each clip, their length, and which; 0: none are fixed.
    max_bad_fraction: share of clips that may be unreadable. mixdown: what becomes of a clip's channels.
    resampling: of audio at another rate than the encoder's.
    like_the_original: crops are cut, filled up and resampled as by MusiLingo's loader for MusicQA, and not normalised.
    """

    encoder: str
    dtype: str
    frames_per_token: int
    per_layer: bool
    online: bool
    crops: int
    crop_seconds: float
    crop_seed: int
    stored: str
    cache: Path
    max_bad_fraction: float
    mixdown: Mixdown = "mean"
    resampling: Resampling = "soxr"
    like_the_original: bool = False

    @classmethod
    def of(cls, config: Config) -> "FeatureSpec":
        """That of a training run. Raises UserError for settings that exclude each other."""
        data = config.data
        if data.like_the_original and (data.encode_in_step or not data.crops):
            raise UserError(
                "config.data.like_the_original: its crops are cut once and kept; give their number, "
                f"config.data.crops (found {data.crops}), and leave config.data.encode_in_step false"
            )
        beside = data.data_dir if data.datasets else config.workdir
        return cls(
            encoder=config.mert.path,
            dtype=config.mert.dtype,
            frames_per_token=config.mert.frames_per_token,
            per_layer=config.adapter.layer_weights,
            online=data.encode_in_step,
            crops=data.crops,
            crop_seconds=data.crop_seconds,
            crop_seed=data.crop_seed,
            stored=data.store,
            cache=Path(data.features or Path(beside) / "features"),
            max_bad_fraction=data.max_bad_fraction,
            mixdown=cast(Mixdown, data.mixdown),
            resampling=cast(Resampling, config.mert.resampling),
            like_the_original=data.like_the_original,
        )

    @property
    def row_seconds(self) -> float:
        """How much of a clip is encoded for one row, at most."""
        return self.crop_seconds if self.online or self.crops else math.inf

    @property
    def chunk_seconds(self) -> float:
        """How much of a clip is encoded at once: a crop whole, in a step and before."""
        if self.like_the_original:
            return _WHOLE
        return SECONDS if self.row_seconds == math.inf else self.row_seconds

    @property
    def fixed_crops(self) -> Crops | None:
        """The crops that rows are drawn from; None if they are drawn anew or clips are encoded as a whole."""
        if not self.crops:
            return None
        return Crops(self.crops, self.crop_seconds, self.crop_seed, self.like_the_original)

    @property
    def kind(self) -> dict[str, Any]:
        """What tells a cache's features from others of the same encoder: fields of `Fingerprint`."""
        return {
            "frames_per_token": self.frames_per_token,
            "seconds": self.crop_seconds if self.crops else self.chunk_seconds,
            "per_layer": self.per_layer,
            "stored": self.stored,
            "crops": self.crops,
            "crop_seed": self.crop_seed if self.crops else 0,
        }

    def audio_settings(self, folder: Path) -> AudioSettings:
        """What the encoder in a folder is given."""
        audio = AudioSettings.from_folder(folder, self.mixdown, self.resampling)
        crops = self.fixed_crops
        if crops is None or not self.like_the_original:
            return audio
        excerpts = crops.excerpts(audio.sample_rate)
        return dataclasses.replace(audio, normalize=False, resampling="sinc_hann", excerpts=excerpts)

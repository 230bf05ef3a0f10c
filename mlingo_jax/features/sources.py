"""Where the rows of a batch get their music from: features out of a cache, or audio to be encoded in the step.

Axes: M music tokens at most, K music tokens of a clip, D encoder width, S hidden states, N samples, C those of a crop.
"""

import dataclasses
from collections.abc import Callable, Collection

import numpy as np
from jaxtyping import Float32

from mlingo_jax.data.audio import AudioSettings, crop, normalize
from mlingo_jax.data.examples import Example
from mlingo_jax.data.rows import Batch
from mlingo_jax.data.stored import read_clip
from mlingo_jax.errors import UserError
from mlingo_jax.features.cache import FeatureCache
from mlingo_jax.features.crops import Crops


class CachedFeatures:
    """Music features from a cache: the field `music`, [M, D] or [S, M, D] per row, zeros after the clip's own K."""

    def __init__(self, cache: FeatureCache, clips: Collection[str]):
        """Raises UserError if a clip is not in the cache."""
        self.cache, self._crops = cache, cache.fingerprint.fixed_crops
        self.random = self._crops is not None
        # Without the axis of the crops: a row gets one of them.
        shapes = [cache.shape(clip)[1:] if self._crops else cache.shape(clip) for clip in clips]
        most = max(shape[-2] for shape in shapes)
        self.shape = (*shapes[0][:-2], most, shapes[0][-1])

    def most_tokens(self, clip: str) -> int:
        """As `Music.most_tokens`."""
        return self.cache.shape(clip)[-2]

    def load(self, example: Example | None, rng: np.random.Generator | None) -> tuple[int, Batch]:
        """As `Music.load`."""
        music = np.zeros(self.shape, np.float32)
        if example is None:
            return 0, {"music": music}
        clip, crops = example.clip, self._crops
        features = self.cache.crop(clip, crops.draw(rng)) if crops else self.cache[clip]
        tokens = features.shape[-2]
        music[..., :tokens, :] = features
        return tokens, {"music": music}


@dataclasses.dataclass(frozen=True)
class OnlineAudio:
    """Audio to be encoded in the step: the fields `waveform` [N], zeros after the clip's end, and `waveform_length`.

    A clip longer than `seconds` is cropped to it, at a start drawn anew for each row while training, at its beginning
    otherwise; or to one of its fixed `crops`, drawn for each row or the first. `tokens` gives the number of
    music tokens of so many samples. The field `unreadable` says why a clip cannot be read ("" if it can): its row is
    left empty.
    """

    audio: AudioSettings
    seconds: float
    tokens: Callable[[int], int]
    minimum: int
    crops: Crops | None = None
    random = True

    def most_tokens(self, clip: str) -> int:
        """As `Music.most_tokens`."""
        return self.tokens(self._samples)

    def load(self, example: Example | None, rng: np.random.Generator | None) -> tuple[int, Batch]:
        """As `Music.load`."""
        waveform, length, unreadable = np.zeros(self._samples, np.float32), 0, ""
        try:
            if example is not None:
                clip = read_clip(example.audio, self.audio, minimum=self.minimum)
                clip = self._crop(clip, example.clip, rng)
                length = len(clip)
                waveform[:length] = normalize(clip) if self.audio.normalize else clip
        except UserError as error:
            unreadable = str(error)
        fields = {"waveform": waveform, "waveform_length": np.array(length, np.int32)}
        return self.tokens(length) if length else 0, {**fields, "unreadable": np.array(unreadable, object)}

    def _crop(
        self, waveform: Float32[np.ndarray, "N"], clip: str, rng: np.random.Generator | None
    ) -> Float32[np.ndarray, "C"]:
        if self.crops:
            return self.crops.cut(waveform, self.audio.sample_rate, clip, self.crops.draw(rng))
        return crop(waveform, self._samples, rng)

    @property
    def _samples(self) -> int:
        return round(self.seconds * self.audio.sample_rate)

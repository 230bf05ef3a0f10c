"""From waveforms to music features: cut long clips into windows, batch what has a like length, run the encoder.

Axes: B windows in a batch, N samples, S hidden states, K (or M) features of a clip, D encoder width.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from mlingo_jax.data.audio import AudioSettings, chunks, normalize
from mlingo_jax.models.encoder import Encoder, EncoderArchitecture
from mlingo_jax.models.partition import ACTIVATION_RULES
from mlingo_jax.models.pooling import pooled_length

# Padded lengths in seconds: each is one compiled program, and padding costs a third of the work at most.
LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)

SECONDS = 30.0
# Padded audio that each part of a mesh gets in one call of the encoder, at most.
PART_SECONDS = 32.0


@dataclasses.dataclass(frozen=True)
class AudioEncoder:
    """A frozen encoder and how it listens.

    `frames_per_token` encoder frames are averaged into one feature. A clip longer
    than `seconds` is encoded in pieces of that length one after the other, so memory does not grow with the clip; a
    clip no longer than that is encoded whole. With `per_layer` the features keep the encoder's hidden states apart.
    With a `mesh` (the parameters' own) each batch is split evenly over it.
    """

    graphdef: nnx.GraphDef[Encoder]
    params: Any
    config: EncoderArchitecture
    audio: AudioSettings
    frames_per_token: int
    seconds: float = SECONDS
    per_layer: bool = False
    mesh: Mesh | None = None

    def __call__(self, waveforms: Sequence[Float[np.ndarray, "_"]]) -> list[Float[np.ndarray, "..."]]:
        """Music features [K, D] (or [S, K, D]) of each clip, float32; clips are mono at the encoder's sample rate."""
        rate = self.audio.sample_rate
        pieces = [chunks(w, round(self.seconds * rate), rate) for w in waveforms]
        encoded = self._encode([piece for clip in pieces for piece in clip])
        features, at = [], 0
        for clip in pieces:
            features.append(np.concatenate(encoded[at : at + len(clip)], axis=-2))
            at += len(clip)
        return features

    def tokens(self, samples: int) -> int:
        """The number of features of a clip of so many samples."""
        return count_tokens(samples, self.audio, self.config, self.frames_per_token, self.seconds)

    def _encode(self, pieces: Sequence[Float[np.ndarray, "_"]]) -> list[Float[np.ndarray, "..."]]:
        features: dict[int, np.ndarray] = {}
        order = sorted(range(len(pieces)), key=lambda i: len(pieces[i]))
        # Fetched one batch late: the host pads a batch while the devices encode the one before.
        waiting: tuple[list[int], Array] | None = None
        while order:
            padded = self._padded_length(len(pieces[order[-1]]))
            fits = [i for i in order if self._padded_length(len(pieces[i])) == padded]
            fits = fits[-self._most_rows(padded) :]
            order = order[: -len(fits)]
            out = self._features([pieces[i] for i in fits], padded)
            if waiting:
                features |= self._fetch(*waiting, pieces)
            waiting = fits, out
        if waiting:
            features |= self._fetch(*waiting, pieces)
        return [features[i] for i in range(len(pieces))]

    def _features(self, pieces: Sequence[Float[np.ndarray, "_"]], padded: int) -> Float[Array, "B ..."]:
        """The features of one batch, on the devices still; rows after the pieces' own mean nothing."""
        rows = self._rows(len(pieces))
        batch = np.zeros((rows, padded), np.float32)
        lengths = np.full(rows, len(pieces[0]), np.int32)
        for row, piece in enumerate(pieces):
            batch[row, : len(piece)] = normalize(piece) if self.audio.normalize else piece
            lengths[row] = len(piece)
        placed = (batch, lengths)
        if self.mesh is not None:
            placed = jax.device_put(placed, NamedSharding(self.mesh, P(self._split)))
        return _features(self.graphdef, self.params, *placed, self.frames_per_token, self.per_layer)

    def _fetch(
        self, positions: Sequence[int], out: Float[Array, "B ..."], pieces: Sequence[Float[np.ndarray, "_"]]
    ) -> dict[int, np.ndarray]:
        """The valid features of a batch's rows, by their pieces' positions."""
        kept = [pooled_length(self.config.frames(len(pieces[i])), self.frames_per_token) for i in positions]
        return {i: row[..., :k, :] for i, k, row in zip(positions, kept, np.asarray(out), strict=False)}

    @property
    def _split(self) -> tuple[str, ...]:
        return () if self.mesh is None else tuple(axis for axis in ACTIVATION_RULES["B"] if axis in self.mesh.shape)

    @property
    def _parts(self) -> int:
        return 1 if self.mesh is None else math.prod(self.mesh.shape[axis] for axis in self._split)

    def _most_rows(self, padded: int) -> int:
        """How many rows of so many samples go into one batch."""
        each = max(1, int(PART_SECONDS * self.audio.sample_rate) // padded)
        return self._parts << each.bit_length() - 1

    def _rows(self, pieces: int) -> int:
        """The rows of a batch for so many pieces: each part's a power of two, so that few programs are compiled.

        The spare rows hold silence.
        """
        each = -(-pieces // self._parts)
        return self._parts << (each - 1).bit_length()

    def _padded_length(self, samples: int) -> int:
        rate = self.audio.sample_rate
        return next((s * rate for s in LENGTHS if s * rate >= samples), samples)


def count_tokens(
    samples: int, audio: AudioSettings, config: EncoderArchitecture, frames_per_token: int, seconds: float = SECONDS
) -> int:
    """The number of features that an `AudioEncoder` with these settings encodes in a clip of so many samples."""
    rate = audio.sample_rate
    pieces = chunks(np.broadcast_to(np.float32(0), samples), round(seconds * rate), rate)
    return sum(pooled_length(config.frames(len(piece)), frames_per_token) for piece in pieces)


@partial(jax.jit, static_argnums=(0, 4, 5))
def _features(
    graphdef: nnx.GraphDef[Encoder],
    params: Any,
    waveform: Float[Array, "B N"],
    lengths: Int[Array, " B"],
    frames_per_token: int,
    per_layer: bool,
) -> Float[Array, "B ..."]:
    return nnx.merge(graphdef, nnx.State(params)).features(
        waveform, lengths, frames_per_token=frames_per_token, per_layer=per_layer
    )

"""What the house needs of an encoder, whichever it is.

Axes: B rows, N samples, S hidden states, K features, D encoder width.
"""

from collections.abc import Mapping
from typing import Protocol, TypeVar, runtime_checkable

from jaxtyping import Array, Float, Float32, Int

# Of an integer, a numpy or a JAX array.
Samples = TypeVar("Samples")


@runtime_checkable
class EncoderArchitecture(Protocol):
    """An encoder's sizes, and what follows from them. A clip is N samples at `sample_rate` Hz."""

    @property
    def sample_rate(self) -> int:
        """Of its audio, in Hz, for plans; what a run encodes has that of its folder's preprocessor."""
        ...

    @property
    def embed_dim(self) -> int:
        """D, the width of its features."""
        ...

    @property
    def states(self) -> int:
        """S, the hidden states that its features are the mean of, or keep apart."""
        ...

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees: the shortest audio that has a frame."""
        ...

    def frames(self, samples: Samples) -> Samples:
        """The frames of so many samples, for an integer or an array of them; 0 below the receptive field."""
        ...

    def more_operations(self, samples: int) -> Mapping[str, int]:
        """Operations on one clip, by name, beyond the two for each parameter and frame."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """A frozen network from audio to music features."""

    config: EncoderArchitecture

    def features(
        self,
        waveform: Float[Array, "B N"],
        lengths: Int[Array, " B"],
        *,
        frames_per_token: int,
        per_layer: bool = False,
    ) -> Float32[Array, "B *S K D"]:
        """Features of each row's first `lengths` samples, one for `frames_per_token` frames; 0 behind the row's own.

        The mean over the hidden states, or with `per_layer` all of them. A row's features do not depend on the others.
        """
        ...

"""From examples to batches: where their music is from, an endless shuffled stream, one pass to evaluate.

Axes: B rows, L positions in a row, M music tokens at most, K music tokens of a clip, D encoder width, S hidden states,
N samples.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Float32

from mlingo_jax.data.audio import AudioSettings, crop, normalize
from mlingo_jax.data.examples import Example, Examples
from mlingo_jax.data.packing import Packing
from mlingo_jax.data.prompt import Prompt
from mlingo_jax.data.rows import Batch, Music, PackedRows, Rows
from mlingo_jax.data.stored import read_clip
from mlingo_jax.errors import UserError
from mlingo_jax.features.cache import FeatureCache
from mlingo_jax.features.crops import Crops

Stream = Any  # A grain.MapDataset: its type parameter changes along the way.


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
                encoded = read_clip(example.audio, self.audio, minimum=self.minimum)
                encoded = self._crop(encoded, example.clip, rng)
                length = len(encoded)
                waveform[:length] = normalize(encoded) if self.audio.normalize else encoded
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


def make_dataset(
    examples: Examples,
    prompt: Prompt,
    music: Music,
    *,
    length: int,
    batch: int,
    seed: int,
    process: int = 0,
    processes: int = 1,
    threads: int = 2,
    parts: Sequence[range] = (),
    weights: Sequence[float] = (),
    apart: bool = False,
    packing: Packing | None = None,
) -> grain.DatasetIterator[Batch]:
    """An endless stream of batches of `batch` rows for this process; its state can be saved and set again at any batch.

    All examples come once, in an order drawn for each epoch, before any comes again. The stream is dealt out to the
    processes row by row: taken together, their batches are the same whatever the number of processes.

    The examples may be a mixture: `parts` says which positions belong together, `weights` how often each part is drawn
    from; each has epochs of its own. Every batch has rows of all parts, or, with `apart`, of one.

    With `packing`, rows hold several examples, `parts` is the packing's, and `example` is [B, E], filled up with -1.
    """
    if packing is None:
        rows, parts = Rows(examples, prompt, music, length), parts or [range(len(examples))]
    else:
        rows, parts = PackedRows(examples, prompt, music, length, packing), packing.parts

    def draw(stream: Stream) -> Stream:
        if not music.random:
            return stream.map(lambda row: (row, None))
        # A row's seed is drawn before the rows are dealt out: it is the same whatever the number of processes.
        return stream.random_map(lambda row, rng: (row, int(rng.integers(1 << 63))), seed=seed)

    def deal(stream: Stream) -> Stream:
        return stream[process::processes].batch(batch, drop_remainder=True, batch_fn=rows.load)

    streams = [grain.MapDataset.range(part.start, part.stop).shuffle(seed).repeat() for part in parts]
    weights = weights or [1.0] * len(streams)
    if apart:
        batches = grain.MapDataset.mix([deal(draw(stream)) for stream in streams], weights)
    else:
        batches = deal(draw(grain.MapDataset.mix(streams, weights)))
    return iter(batches.to_iter_dataset(_ahead(threads)))


def evaluation_batches(
    examples: Examples,
    prompt: Prompt,
    music: Music,
    *,
    length: int,
    batch: int,
    process: int = 0,
    processes: int = 1,
    threads: int = 2,
) -> Iterator[Batch]:
    """One pass over all examples in order, dealt out to the processes row by row.

    Every process gets the same number of batches; the last ones are filled up with empty rows (segment 0, weight 0).
    """
    rows, whole = Rows(examples, prompt, music, length), batch * processes
    positions = grain.MapDataset.range(-(-len(examples) // whole) * whole)[process::processes]
    drawn = positions.map(lambda position: (position if position < len(examples) else -1, None))
    return iter(drawn.batch(batch, batch_fn=rows.load).to_iter_dataset(_ahead(threads)))


def _ahead(threads: int) -> grain.ReadOptions:
    """Each thread makes whole batches; with audio in them some are 100 MB, so that few wait."""
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads + 4)

"""From examples to batches: an endless shuffled stream to train on, one pass to evaluate."""

from collections.abc import Iterator, Sequence
from typing import Any

import grain

from mlingo_jax.data.examples import Examples
from mlingo_jax.data.packing import Packing
from mlingo_jax.data.prompt import Prompt
from mlingo_jax.data.rows import Batch, Music, PackedRows, Rows

Stream = Any  # A grain.MapDataset: its type parameter changes along the way.


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

"""Which examples a run trains on and which it holds out, of a manifest or prepared datasets; how they lie in rows."""

import dataclasses
import os

import grain

from mlingo_jax.data.manifest import read_manifest, split_examples
from mlingo_jax.data.mixture import Mixture, evenly, parse_wanted, read_mixture
from mlingo_jax.data.packing import ROW_LENGTH, Packing, pack
from mlingo_jax.data.pipeline import make_dataset
from mlingo_jax.data.prompt import Prompt
from mlingo_jax.data.rows import Batch, Music
from mlingo_jax.data.statistics import RowSizes, row_length
from mlingo_jax.errors import UserError
from mlingo_jax.features.spec import FeatureSpec
from mlingo_jax.settings import Config
from mlingo_jax.training.music import encoded_clips


def read_examples(config: Config) -> tuple[Mixture, Mixture]:
    """(to train on, held out).

    Raises:
        UserError: there are none, they are damaged or not prepared; or both a manifest and datasets are named.
    """
    data = config.data
    if data.manifest and data.datasets:
        raise UserError("config.data.manifest and config.data.datasets are both given: name one of them")
    if not data.manifest and not data.datasets:
        raise UserError(
            "config.data.manifest is empty: name the examples' file, with --config.data.manifest=…, or what was "
            "prepared, with --config.data.datasets=…"
        )
    if data.datasets:
        train = read_mixture(data.data_dir, parse_wanted(data.datasets, "config.data.datasets"))
        wanted = parse_wanted(data.evaluate, "config.data.evaluate") if data.evaluate else []
        held_out = read_mixture(data.data_dir, wanted)
    else:
        own, apart = split_examples(
            read_manifest(data.manifest, encoded=encoded_clips(FeatureSpec.of(config))), data.eval_share
        )
        if not own:
            raise UserError(f"{data.manifest}: no examples to train on; all are held out for evaluation")
        train, held_out = Mixture([own]), Mixture([apart])
    return train, Mixture([evenly(held_out, data.eval_most)])


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a run's examples lie in rows.

    whole: L of a row that holds one example; length: L of a row to train on, longer than `whole` where rows are packed.
    row_examples: in a row to train on, on average.
    """

    whole: int
    length: int
    packing: Packing | None
    row_examples: float


def lay_out(config: Config, train: Mixture, held_out: Mixture, sizes: RowSizes) -> Layout:
    """The rows of these examples, whose `sizes` are those of both in this order.

    Raises:
        UserError: a row is longer than config.data.length.
    """
    whole = row_length(sizes, Mixture([train, held_out]), config.data.length or None)
    if not config.data.packed:
        return Layout(whole, whole, None, 1.0)
    length = config.data.length or max(whole, ROW_LENGTH)
    own, music = sizes.lengths[: len(train)], sizes.music[: len(train)]
    packing = pack(own, music, train.ranges, length=length, seed=config.seed)
    return Layout(whole, length, packing, len(train) / len(packing))


def train_batches(
    config: Config,
    train: Mixture,
    prompt: Prompt,
    music: Music,
    layout: Layout,
    *,
    process: int = 0,
    processes: int = 1,
) -> grain.DatasetIterator[Batch]:
    """The endless stream of batches of a run, or a process's share of it: see `make_dataset`."""
    return make_dataset(
        train,
        prompt,
        music,
        length=layout.length,
        batch=config.batch_size // processes,
        process=process,
        processes=processes,
        seed=config.seed,
        parts=train.ranges,
        weights=train.weights,
        apart=config.data.mixing == "step",
        packing=layout.packing,
        threads=reading_threads(config),
    )


def reading_threads(config: Config) -> int:
    """How many threads make batches: decoding audio needs many and leaves Python's lock alone, the rest needs few."""
    return min(os.cpu_count() or 1, 8) if config.data.encode_in_step else 2

"""What a run trains on and what it holds out, of a manifest or prepared datasets; how the examples lie in rows."""

import dataclasses
import os
from collections.abc import Collection, Container, Iterator
from typing import Any

import grain
import numpy as np

from mlingo_jax.data.manifest import read_manifest, split_examples
from mlingo_jax.data.mixture import Mixture, evenly, parse_wanted, read_mixture
from mlingo_jax.data.packing import ROW_LENGTH, Packing, pack
from mlingo_jax.data.pipeline import evaluation_batches, make_dataset
from mlingo_jax.data.prompt import Prompt, PromptSettings, open_prompt, read_context
from mlingo_jax.data.rows import Batch, Music
from mlingo_jax.data.statistics import (
    ExampleStatistics,
    RowSizes,
    example_statistics,
    round_up,
    row_length,
    row_sizes,
)
from mlingo_jax.errors import UserError
from mlingo_jax.models.llama_config import LlamaConfig
from mlingo_jax.settings import DataConfig
from mlingo_jax.training.other_clips import OtherClips, others
from mlingo_jax.weights.load import open_with_files
from mlingo_jax.wording import counted


@dataclasses.dataclass(frozen=True)
class RunData:
    """A run's examples, and how they are put to the language model.

    Attributes:
        train: to train on.
        held_out: to evaluate on.
        prompt: makes rows of tokens of them.
        context: the tokens that the language model was made for; None if it does not say.
        statistics: of both, those to train on first.
    """

    train: Mixture
    held_out: Mixture
    prompt: Prompt
    context: int | None
    statistics: ExampleStatistics

    def without(self, clips: Collection[str]) -> "RunData":
        """Leaves out the examples about these clips."""
        if not clips:
            return self
        kept = np.array([clip not in clips for clip in self.statistics.clips])[self.statistics.clip]
        split = len(self.train)
        train, held_out = self.train.where(kept[:split]), self.held_out.where(kept[split:])
        return dataclasses.replace(self, train=train, held_out=held_out, statistics=self.statistics.where(kept))

    def clips_by_side(self) -> list[list[str]]:
        """The names of the clips that are trained on, and of those that are held out."""
        names = list(self.statistics.clips)
        sides = np.split(self.statistics.clip, [len(self.train)])
        return [[names[n] for n in np.unique(clips)] for clips in sides]

    def notes(self, longest: int) -> list[str]:
        """What the user should know, a line each; `longest` is the tokens of the longest row."""
        return [*self.statistics.notes(), *_too_long(longest, self.context), *_no_begin(self.prompt)]


def open_data(data: DataConfig, llm: str, prompt: PromptSettings, encoded: Container[str]) -> RunData:
    """Reads the examples, and the tokenizer of the language model `llm`; its weights are not read.

    encoded: clips whose features are there already, so that their audio need not be.

    Raises:
        UserError: there are no examples, they are damaged or not prepared, or the language model is none.
    """
    # Opened before what takes long: a wrong path is told at once.
    opened, files = open_with_files(llm, "llm")
    assert isinstance(opened.config, LlamaConfig)
    rows = open_prompt(files, prompt, opened.config.vocab_size)
    train, held_out = read_examples(data, encoded)
    statistics = example_statistics(Mixture([train, held_out]), rows)
    return RunData(train, held_out, rows, read_context(files), statistics)


def read_examples(data: DataConfig, encoded: Container[str]) -> tuple[Mixture, Mixture]:
    """(to train on, held out).

    Raises:
        UserError: there are none, they are damaged or not prepared; or both a manifest and datasets are named.
    """
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
        own, apart = split_examples(read_manifest(data.manifest, encoded=encoded), data.eval_share)
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

    def notes(self) -> list[str]:
        """How many rows there are, where several examples lie in one."""
        packing = self.packing
        if packing is None:
            return []
        return [f"{counted(len(packing), 'row')} of up to {counted(packing.examples, 'example')} each"]


def lay_out(data: RunData, sizes: RowSizes, *, length: int, packed: bool, seed: int) -> Layout:
    """The rows of a run's examples, whose `sizes` are those of both sides.

    length: L; 0 for what the longest example needs. seed: of the order in which packed rows are filled.

    Raises:
        UserError: a row is longer than `length`.
    """
    train = data.train
    whole = row_length(sizes, Mixture([train, data.held_out]), length or None)
    if not packed:
        return Layout(whole, whole, None, 1.0)
    own, music = sizes.lengths[: len(train)], sizes.music[: len(train)]
    length = length or max(whole, ROW_LENGTH)
    packing = pack(own, music, train.ranges, length=length, seed=seed)
    return Layout(whole, length, packing, len(train) / len(packing))


@dataclasses.dataclass(frozen=True)
class Batches:
    """Makes a run's batches, or one process's share of them.

    Attributes:
        batch_size: rows in a batch, over all processes.
        seed: of the order of the examples and of random crops.
        mixing: several datasets in each batch ("row") or in turn ("step").
        threads: that make batches.
        process, processes: which share, of how many.
    """

    data: RunData
    music: Music
    layout: Layout
    batch_size: int
    seed: int
    mixing: str
    threads: int
    process: int = 0
    processes: int = 1

    def train(self) -> grain.DatasetIterator[Batch]:
        """The endless stream of batches to train on: see `mlingo_jax.data.pipeline.make_dataset`."""
        train = self.data.train
        return make_dataset(
            train,
            length=self.layout.length,
            seed=self.seed,
            parts=train.ranges,
            weights=train.weights,
            apart=self.mixing == "step",
            packing=self.layout.packing,
            **self._shared,
        )

    def held_out(self) -> Iterator[Batch]:
        """One pass over the held-out examples."""
        return evaluation_batches(self.data.held_out, length=self.layout.whole, **self._shared)

    def other_clips(self) -> Iterator[Batch] | None:
        """One pass over the held-out examples, each with another one's music; None if all are about one clip."""
        statistics, split = self.data.statistics, len(self.data.train)
        dealt = others(statistics.clip[split:].tolist())
        if dealt is None:
            return None
        sizes = row_sizes(statistics, self.music)
        text, music = (sizes.lengths - sizes.music)[split:], sizes.music[split:][dealt]
        length = max(self.layout.whole, round_up(int((text + music).max())))
        return evaluation_batches(OtherClips(self.data.held_out, dealt), length=length, **self._shared)

    @property
    def _shared(self) -> dict[str, Any]:
        return {
            "prompt": self.data.prompt,
            "music": self.music,
            "batch": self.batch_size // self.processes,
            "threads": self.threads,
            "process": self.process,
            "processes": self.processes,
        }


def reading_threads(encode_in_step: bool) -> int:
    """How many threads make batches: decoding audio needs many and leaves Python's lock alone, the rest needs few."""
    return min(os.cpu_count() or 1, 8) if encode_in_step else 2


def _too_long(longest: int, context: int | None) -> list[str]:
    """A note if rows are longer than the language model's context; none if they are not."""
    if context is None or longest <= context:
        return []
    return [
        f"rows of up to {longest:,} tokens are longer than the {context:,} that the language model was made for (its "
        "max_position_embeddings): it may be of little use past these"
    ]


def _no_begin(prompt: Prompt) -> list[str]:
    """A note if rows begin without a begin-of-sequence token, as most language models do not expect."""
    if prompt.tokenizer.bos_token_id is not None:
        return []
    return ["rows have no begin-of-sequence token: neither the tokenizer nor config.json names one"]

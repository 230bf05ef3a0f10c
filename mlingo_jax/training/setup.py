"""Everything that a run needs before its first step: towers on the devices, music, examples, rows, adapter."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import grain
import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mlingo_jax.data.examples import Examples
from mlingo_jax.data.mixture import Mixture
from mlingo_jax.data.packing import Packing
from mlingo_jax.data.pipeline import evaluation_batches
from mlingo_jax.data.prompt import Prompt, open_prompt, read_context
from mlingo_jax.data.rows import Batch
from mlingo_jax.data.statistics import example_statistics, row_sizes
from mlingo_jax.data.unreadable import LISTED, named
from mlingo_jax.errors import UserError
from mlingo_jax.features.spec import FeatureSpec
from mlingo_jax.models.adapter import Adapter, AdapterConfig
from mlingo_jax.models.llama_config import LlamaConfig
from mlingo_jax.models.musilingo import Networks
from mlingo_jax.models.quantization import Quantization
from mlingo_jax.runs.folder import read_run, run_of
from mlingo_jax.settings import Config
from mlingo_jax.training.examples import lay_out, read_examples, reading_threads, train_batches
from mlingo_jax.training.music import RunMusic, lasting, mean_seconds, open_music, shared_audio
from mlingo_jax.training.optim import Params
from mlingo_jax.training.run import check_encoder, describe_data, describe_run, prompt_settings, require_towers
from mlingo_jax.training.sharding import check_batch, reading_share
from mlingo_jax.weights.checksum import weights_checksum
from mlingo_jax.weights.load import Tower, fit_adapter, load_adapter, load_tower, open_with_files
from mlingo_jax.wording import counted


@dataclasses.dataclass(frozen=True)
class RunSetup:
    """A run that is ready to start.

    networks, frozen: the static halves, and the towers' parameters on the devices, as the step takes them.
    trained: the trained parameters before the first step, by the names of their parts.
    run: the contents of run.json.
    examples: those to train on; a batch's `example` says which ones are in it.
    train_batches, eval_batches: make the endless stream of batches, and one pass over the held-out examples.
    seconds: of audio in an example, on average; None if the audio is not there any more.
    row_examples: examples in a row, on average; clips: that the examples are about.
    notes: what the user should know of the data, a line each.
    """

    networks: Networks
    frozen: dict[str, Params]
    trained: Params
    run: dict[str, Any]
    examples: Examples
    train_batches: Callable[[], grain.DatasetIterator[Batch]]
    eval_batches: Callable[[], Iterator[Batch]]
    seconds: float | None
    row_examples: float
    clips: int
    notes: list[str]


def set_up(config: Config, mesh: Mesh) -> RunSetup:
    """Loads and checks everything; encodes the clips that have not been encoded yet.

    Raises:
        UserError: for everything that the user can have got wrong, the cheapest checks first.
    """
    check_batch(mesh, config.batch_size)
    if not config.llm.path:
        raise UserError("config.llm.path is empty: name the language model, a folder or a hub id")
    if config.data.packed and config.data.encode_in_step:
        raise UserError(
            "config.data.packed: rows of several examples need music that is encoded before; "
            "set config.data.encode_in_step to false"
        )
    # Opened, not loaded: a wrong path is told before hours of encoding.
    opened, files = open_with_files(config.llm.path, "llama")
    assert isinstance(opened.config, LlamaConfig)
    prompt = open_prompt(files, prompt_settings(config), opened.config.vocab_size)
    train, held_out = read_examples(config)
    statistics = example_statistics(Mixture([train, held_out]), prompt)
    spec = FeatureSpec.of(config)
    music = open_music(spec, statistics.clips, mesh, lambda identity: check_encoder(Path(config.workdir), identity))
    if music.unreadable:
        encoded = np.array([clip not in music.unreadable for clip in statistics.clips])[statistics.clip]
        train, held_out = train.where(encoded[: len(train)]), held_out.where(encoded[len(train) :])
        statistics = statistics.where(encoded)
    if not len(train):
        raise UserError(f"{config.data.manifest or config.data.datasets}: no examples to train on")

    quantization = cast(Quantization, config.llm.quantization)
    llm = load_tower(config.llm.path, kind="llama", dtype=config.llm.dtype, quantization=quantization, mesh=mesh)
    sizes = row_sizes(statistics, music.music)
    layout = lay_out(config, train, held_out, sizes)
    graph, adapter = _make_adapter(config, music, llm)
    networks = Networks(llm.graphdef, graph, None, spec.frames_per_token, config.llm.remat)
    frozen = {"llm": llm.params}
    if music.tower is not None:
        networks = dataclasses.replace(networks, encoder=music.tower.graphdef)
        frozen["encoder"] = music.tower.params

    run = describe_run(
        config,
        mert={"folder": music.folder, "identity": music.identity},
        llm={"folder": lasting(config.llm.path), "identity": llm.identity},
        adapter=weights_checksum(adapter),
        architecture=AdapterConfig(music.embed_dim, llm.config.embed_dim, music.states),
        data=describe_data(statistics, len(train), layout.length, music.audio),
    )

    names = list(statistics.clips)
    sides = [[names[n] for n in np.unique(clips)] for clips in np.split(statistics.clip, [len(train)])]
    process, processes = reading_share(mesh)
    place = {"process": process, "processes": processes}
    return RunSetup(
        networks=networks,
        frozen=frozen,
        trained={"adapter": adapter},
        run=run,
        examples=train,
        train_batches=lambda: train_batches(config, train, prompt, music.music, layout, **place),
        eval_batches=lambda: evaluation_batches(
            held_out,
            prompt,
            music.music,
            length=layout.whole,
            batch=config.batch_size // processes,
            threads=reading_threads(config),
            **place,
        ),
        clips=len(statistics.clips),
        row_examples=layout.row_examples,
        seconds=mean_seconds(train, most=spec.row_seconds),
        notes=[
            *_notes(
                len(train),
                len(held_out),
                int(statistics.truncated.sum()),
                sizes.mean,
                layout.length,
                music,
                spec.cache,
            ),
            *statistics.notes(),
            *too_long(sizes.longest, read_context(files)),
            *no_begin(prompt),
            *_packed(layout.packing),
            *shared_audio(music.music, *sides),
        ],
    )


def overview(setup: RunSetup) -> list[str]:
    """What is trained and what is frozen, a line each, with numbers of parameters."""
    trees = [("trained", *part) for part in setup.trained.items()]
    trees += [("frozen", *tower) for tower in setup.frozen.items()]
    lines = []
    for state, name, params in trees:
        arrays = jax.tree.leaves(params)
        dtypes = ", ".join(sorted({str(a.dtype) for a in arrays}))
        lines.append(f"{state:8}{name:8}{sum(a.size for a in arrays):>15,} parameters, {dtypes}")
    if "encoder" not in setup.frozen:
        lines.append(f"{'frozen':8}{'encoder':8}{'':>15} not needed: every clip has been encoded")
    return lines


def _make_adapter(config: Config, music: RunMusic, llm: Tower) -> tuple[nnx.GraphDef[Adapter], Params]:
    """The adapter's static half and its first parameters: drawn from the seed, or those of `config.adapter.start`."""
    start = config.adapter.start
    if start and run_of(start):
        require_towers(start, read_run(start), mert=music.identity, llm=llm.identity)
    return fit_adapter(
        load_adapter(start)[1] if start else None,
        AdapterConfig(music.embed_dim, llm.config.embed_dim, music.states),
        seed=config.seed,
        source=start,
    )


def _packed(packing: Packing | None) -> list[str]:
    return [f"{counted(len(packing), 'row')} of up to {counted(packing.examples, 'example')} each"] if packing else []


def too_long(longest: int, context: int | None) -> list[str]:
    """A note if rows are longer than the language model's context; none if they are not."""
    if context is None or longest <= context:
        return []
    return [
        f"rows of up to {longest:,} tokens are longer than the {context:,} that the language model was made for (its "
        "max_position_embeddings): it may be of little use past these"
    ]


def no_begin(prompt: Prompt) -> list[str]:
    """A note if rows begin without a begin-of-sequence token, as most language models do not expect."""
    if prompt.tokenizer.bos_token_id is not None:
        return []
    return ["rows have no begin-of-sequence token: neither the tokenizer nor config.json names one"]


def _notes(
    train: int, held_out: int, truncated: int, mean: float, length: int, music: RunMusic, folder: Path
) -> list[str]:
    examples = f"{counted(train, 'example')} to train on, {held_out:,} held out"
    notes = [f"{examples}; rows of {length} tokens, {mean:.0f} used"]
    if truncated:
        notes.append(f"{counted(truncated, 'answer')} longer than prompt.max_answer_tokens, and cut")
    if music.unreadable:
        lost, listed = counted(len(music.unreadable), "clip"), folder / LISTED
        notes.append(f"{lost} left out that cannot be read: {named(music.unreadable.values())}; see {listed}")
    if not held_out:
        notes.append("no examples are held out: there will be no evaluation")
    return notes

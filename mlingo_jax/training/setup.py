"""Everything that a run needs before its first step: examples, music, towers on the devices, adapter, rows."""

import dataclasses
from pathlib import Path
from typing import Any, cast

import jax
from jax.sharding import Mesh

from mlingo_jax.data.mixture import evenly
from mlingo_jax.data.statistics import RowSizes, row_sizes
from mlingo_jax.data.unreadable import LISTED, named
from mlingo_jax.errors import UserError
from mlingo_jax.features.spec import FeatureSpec
from mlingo_jax.models.adapter import AdapterConfig
from mlingo_jax.models.musilingo import Networks
from mlingo_jax.models.quantization import Quantization
from mlingo_jax.runs.folder import read_run, run_of
from mlingo_jax.settings import Config, DataConfig, LanguageModelConfig
from mlingo_jax.training.examples import Batches, Layout, RunData, lay_out, open_data, reading_threads
from mlingo_jax.training.held_out_answers import HeldOutAnswers
from mlingo_jax.training.music import RunMusic, encoded_clips, lasting, mean_seconds, open_music, shared_audio
from mlingo_jax.training.optim import Params
from mlingo_jax.training.run import check_encoder, describe_data, describe_run, prompt_settings, require_towers
from mlingo_jax.training.sharding import check_batch, reading_share
from mlingo_jax.weights.checksum import weights_checksum
from mlingo_jax.weights.load import LoadedAdapter, Tower, fit_adapter, load_adapter, load_tower
from mlingo_jax.wording import counted


@dataclasses.dataclass(frozen=True)
class RunSetup:
    """A run that is ready to start.

    Attributes:
        networks, frozen: the static halves, and the towers' parameters on the devices, as the step takes them.
        trained: the trained parameters before the first step, by the names of their parts.
        run: the contents of run.json.
        batches: makes batches to train on and to evaluate on; a batch's `example` says which ones are in it.
        answers: a few of the held-out questions, to be answered.
        seconds: of audio in an example, on average; None if the audio is not there any more.
        notes: what the user should know of the data, a line each.
    """

    networks: Networks
    frozen: dict[str, Params]
    trained: dict[str, Params]
    run: dict[str, Any]
    batches: Batches
    answers: HeldOutAnswers
    seconds: float | None
    notes: list[str]


def set_up(config: Config, mesh: Mesh) -> RunSetup:
    """Reads the data, opens the music (encoding the clips that have not been encoded yet), loads the networks.

    Raises:
        UserError: for everything that the user can have got wrong, the cheapest checks first.
    """
    check_batch(mesh, config.batch_size)
    _check_settings(config.llm.path, config.data)
    spec, workdir = FeatureSpec.of(config), Path(config.workdir)
    encoded = encoded_clips(spec) if config.data.manifest else ()
    data = open_data(config.data, config.llm.path, prompt_settings(config.prompt), encoded)
    music = open_music(spec, data.statistics.clips, mesh, lambda identity: check_encoder(workdir, identity))
    data = data.without(music.unreadable)
    if not len(data.train):
        raise UserError(f"{config.data.manifest or config.data.datasets}: no examples to train on")
    llm = _load_llm(config.llm, mesh)
    adapter = _begin_adapter(config.adapter.start, music, llm, config.seed)
    sizes = row_sizes(data.statistics, music.music)
    layout = lay_out(data, sizes, length=config.data.length, packed=config.data.packed, seed=config.seed)
    networks, frozen = _networks(llm, adapter, music.tower, spec.frames_per_token, config.llm.remat)
    asked = evenly(data.held_out, config.log.eval_answers) if config.log.eval_answers else ()
    process, processes = reading_share(mesh)
    threads = reading_threads(spec.online)
    return RunSetup(
        networks=networks,
        frozen=frozen,
        trained={"adapter": adapter.params},
        run=describe_run(
            config,
            mert={"folder": music.folder, "identity": music.identity},
            llm={"folder": lasting(config.llm.path), "identity": llm.identity},
            adapter=weights_checksum(adapter.params),
            architecture=adapter.config,
            data=describe_data(data.statistics, len(data.train), layout.length, music.audio),
        ),
        batches=Batches(
            data, music.music, layout, config.batch_size, config.seed, config.data.mixing, threads, process, processes
        ),
        answers=HeldOutAnswers(asked, data.prompt, music.music, llm, networks, frozen, mesh),
        seconds=mean_seconds(data.train, most=spec.row_seconds),
        notes=_notes(data, sizes, layout, music, spec.cache),
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


def _check_settings(llm: str, data: DataConfig) -> None:
    if not llm:
        raise UserError("config.llm.path is empty: name the language model, a folder or a hub id")
    if data.packed and data.encode_in_step:
        raise UserError(
            "config.data.packed: rows of several examples need music that is encoded before; "
            "set config.data.encode_in_step to false"
        )


def _load_llm(settings: LanguageModelConfig, mesh: Mesh) -> Tower:
    quantization = cast(Quantization, settings.quantization)
    return load_tower(settings.path, role="llm", dtype=settings.dtype, quantization=quantization, mesh=mesh)


def _begin_adapter(start: str, music: RunMusic, llm: Tower, seed: int) -> LoadedAdapter:
    """The adapter before the first step: drawn from the seed, or the one that is named to start from."""
    if start and run_of(start):
        require_towers(start, read_run(start), mert=music.identity, llm=llm.identity)
    config = AdapterConfig(music.embed_dim, llm.config.embed_dim, music.states)
    return fit_adapter(load_adapter(start)[1] if start else None, config, seed=seed, source=start)


def _networks(
    llm: Tower, adapter: LoadedAdapter, encoder: Tower | None, frames_per_token: int, remat: str
) -> tuple[Networks, dict[str, Params]]:
    """The static halves of a step's networks, and the frozen parameters."""
    frozen = {"llm": llm.params}
    if encoder is None:
        return Networks(llm.graphdef, adapter.graphdef, None, frames_per_token, remat), frozen
    networks = Networks(llm.graphdef, adapter.graphdef, encoder.graphdef, frames_per_token, remat)
    return networks, {**frozen, "encoder": encoder.params}


def _notes(data: RunData, sizes: RowSizes, layout: Layout, music: RunMusic, cache: Path) -> list[str]:
    train, held_out, truncated = len(data.train), len(data.held_out), int(data.statistics.truncated.sum())
    examples = f"{counted(train, 'example')} to train on, {held_out:,} held out"
    notes = [f"{examples}; rows of {layout.length} tokens, {sizes.mean:.0f} used"]
    if truncated:
        notes.append(f"{counted(truncated, 'answer')} longer than prompt.max_answer_tokens, and cut")
    if music.unreadable:
        lost, listed = counted(len(music.unreadable), "clip"), cache / LISTED
        notes.append(f"{lost} left out that cannot be read: {named(music.unreadable.values())}; see {listed}")
    if not held_out:
        notes.append("no examples are held out: there will be no evaluation")
    return [
        *notes,
        *data.notes(sizes.longest),
        *layout.notes(),
        *shared_audio(music.music, *data.clips_by_side()),
    ]

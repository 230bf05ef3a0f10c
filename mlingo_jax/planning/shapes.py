"""A run's programs and their arguments, by shapes alone: no weights, no data, nothing on a device.

Axes: B rows, L positions in a row, M music tokens, N samples, D encoder width, P positions of a prompt, A automaton
states, V vocabulary.
"""

import dataclasses
import math
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import ShapeDtypeStruct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.stages import Compiled, Traced

from mlingo_jax.data.audio import AudioSettings
from mlingo_jax.data.statistics import round_up
from mlingo_jax.features.encode import count_tokens
from mlingo_jax.features.spec import FeatureSpec
from mlingo_jax.inference.decode import Prompts, decode, prefill
from mlingo_jax.inference.stopping import START
from mlingo_jax.models.adapter import Adapter, AdapterConfig
from mlingo_jax.models.encoder import EncoderArchitecture
from mlingo_jax.models.llama import Llama, stacks_layers
from mlingo_jax.models.llama_config import LlamaConfig
from mlingo_jax.models.musilingo import Networks
from mlingo_jax.models.partition import check_divides, partition
from mlingo_jax.models.quantization import Quantization
from mlingo_jax.settings import Config, LanguageModelConfig
from mlingo_jax.training.sharding import BATCH
from mlingo_jax.training.step import Schedule, compile_train_step, init_state
from mlingo_jax.weights.towers import network

# A question and the words around it, where a config has a prompt: the longest of MusicQA take about as many tokens.
QUESTION = 96


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What a run's arrays measure.

    Attributes:
        encoder, llm: the towers' architectures.
        seconds: of audio in a clip; a run that crops encodes no more than a crop of it, and a step just that.
        spec: how the run's features are made.
        llm_settings: what the language model is kept as, and what its backward pass recomputes.
        schedule: the optimiser's settings and the numbers of steps.
        batch_size: rows in a micro-batch, over all devices.
        question: P without music and opening token: a question and the words around it.
        answer: tokens of an answer at most.
        row: L as it was set; 0 for what prompt and answer need.
    """

    encoder: EncoderArchitecture
    llm: LlamaConfig
    seconds: float
    spec: FeatureSpec
    llm_settings: LanguageModelConfig
    schedule: Schedule
    batch_size: int
    question: int
    answer: int
    row: int

    @classmethod
    def of(cls, config: Config, encoder: EncoderArchitecture, llm: LlamaConfig, seconds: float) -> "Shapes":
        """Those of a run with these towers, on clips of so many seconds."""
        return cls(
            encoder,
            llm,
            seconds,
            FeatureSpec.of(config),
            config.llm,
            Schedule(config.optim, config.steps, config.accumulate),
            config.batch_size,
            question=QUESTION if config.prompt.template else 0,
            answer=config.prompt.max_answer_tokens,
            row=config.data.length,
        )

    @property
    def encoded(self) -> float:
        """Seconds of a clip that are encoded for a row."""
        spec = self.spec
        return spec.row_seconds if spec.online else min(self.seconds, spec.row_seconds)

    @property
    def samples(self) -> int:
        """N: of a clip, as far as it is encoded."""
        return round(self.encoded * self.encoder.sample_rate)

    @property
    def frames(self) -> int:
        """The encoder's, of these samples."""
        return self.encoder.frames(self.samples)

    @property
    def music(self) -> int:
        """M: music tokens of a clip."""
        audio = AudioSettings(self.encoder.sample_rate, normalize=True)
        return count_tokens(self.samples, audio, self.encoder, self.spec.frames_per_token, self.spec.chunk_seconds)

    @property
    def length(self) -> int:
        """L: as the config says, or what its prompt's longest answer needs."""
        return self.row or round_up(self.positions + self.answer)

    @property
    def positions(self) -> int:
        """P: of a prompt, the row without its answer."""
        return 1 + self.music + self.question


def networks(shapes: Shapes, mesh: Mesh | None = None) -> tuple[nnx.Module, Llama, Adapter]:
    """The three networks in the abstract, as they are loaded for a mesh."""
    settings, encoder = shapes.llm_settings, shapes.encoder
    adapter = AdapterConfig(encoder.embed_dim, shapes.llm.embed_dim, encoder.states if shapes.spec.per_layer else None)
    language = partial(
        Llama,
        shapes.llm,
        dtype=jnp.dtype(settings.dtype),
        quantization=cast(Quantization, settings.quantization),
        stacked=stacks_layers(mesh),
    )
    return (
        nnx.eval_shape(lambda: network(encoder)(encoder, dtype=jnp.dtype(shapes.spec.dtype), rngs=nnx.Rngs(0))),
        nnx.eval_shape(lambda: language(rngs=nnx.Rngs(0))),
        nnx.eval_shape(lambda: Adapter(adapter, rngs=nnx.Rngs(0))),
    )


def parameter_counts(shapes: Shapes) -> tuple[int, int]:
    """The encoder's and the language model's numbers of parameters; a quantised one's scales are none."""
    plain = dataclasses.replace(shapes, llm_settings=dataclasses.replace(shapes.llm_settings, quantization="none"))
    encoder, llm, _ = networks(plain)
    return _count(encoder), _count(llm)


def weight_bytes(shapes: Shapes, mesh: Mesh) -> int:
    """What the towers that a train step needs take on each device.

    Raises:
        UserError: a tower cannot be split over the mesh.
    """
    encoder, llm, _ = networks(shapes, mesh)
    check_divides(llm, "the language model", mesh)
    if shapes.spec.online:
        check_divides(encoder, "the encoder", mesh)
    trees = [split(llm, mesh)[1], *([split(encoder, mesh)[1]] if shapes.spec.online else [])]
    bits = (
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * jax.dtypes.itemsize_bits(leaf.dtype)
        for leaf in jax.tree.leaves(trees)
    )
    return sum(bits) // 8


def trace_train_step(shapes: Shapes, mesh: Mesh) -> Traced:
    """The run's train step on a mesh: traced, ready to be lowered and compiled."""
    mert, llm, adapter = networks(shapes, mesh)
    graph, params = split(adapter, mesh)
    state = _whole(jax.eval_shape(partial(init_state, optim=shapes.schedule.optim), {"adapter": params}), mesh)
    llm_graph, llm_params = split(llm, mesh)
    frozen = {"llm": llm_params}
    batch = text_batch(shapes.batch_size, shapes.length, mesh)
    rows = partial(_rows, shapes.batch_size, mesh)
    if shapes.spec.online:
        encoder_graph, frozen["encoder"] = split(mert, mesh)
        batch |= {"waveform": rows((shapes.samples,), jnp.float32), "waveform_length": rows((), jnp.int32)}
    else:
        encoder_graph = None
        states = (shapes.encoder.states,) if shapes.spec.per_layer else ()
        batch["music"] = rows((*states, shapes.music, shapes.encoder.embed_dim), jnp.float32)
    static = Networks(llm_graph, graph, encoder_graph, shapes.spec.frames_per_token, shapes.llm_settings.remat)
    step: Any = compile_train_step(static, shapes.schedule, mesh)
    with jax.set_mesh(mesh):
        return step.trace(state, frozen, batch)


def trace_encoding(shapes: Shapes, mesh: Mesh, rows: int) -> Traced:
    """Encoding pieces of that many clips at once, as the feature cache is filled."""
    graph, params = split(networks(shapes, mesh)[0], mesh)
    spec = shapes.spec

    def encode(params: Any, waveform: Any, lengths: Any) -> Any:
        return nnx.merge(graph, nnx.State(params)).features(
            waveform, lengths, frames_per_token=spec.frames_per_token, per_layer=spec.per_layer
        )

    samples = round(min(shapes.encoded, shapes.spec.chunk_seconds) * shapes.encoder.sample_rate)
    with jax.set_mesh(mesh):
        return jax.jit(encode).trace(
            params, _rows(rows, mesh, (samples,), jnp.float32), _rows(rows, mesh, (), jnp.int32)
        )


def trace_reading(shapes: Shapes, mesh: Mesh, rows: int) -> Traced:
    """Reading the prompts of `rows` questions at once."""
    graph, params = split(networks(shapes, mesh)[1], mesh)
    whole = partial(_array, mesh, P())

    def empty() -> Prompts:
        embeddings = jnp.zeros((rows, shapes.positions, shapes.llm.embed_dim), shapes.llm_settings.dtype)
        index = jnp.zeros((rows, shapes.positions), jnp.int32)
        return Prompts(embeddings, index, index)

    prompts = jax.tree.map(lambda leaf: whole(leaf.shape, leaf.dtype), jax.eval_shape(empty))
    keys = whole((rows,), jax.eval_shape(lambda: jax.random.key(0)).dtype)
    with jax.set_mesh(mesh):
        return prefill.trace(graph, params, prompts, _table(shapes, mesh), keys, None, max_new_tokens=shapes.answer)


def trace_writing(shapes: Shapes, mesh: Mesh, read: Traced, compiled: Compiled) -> Traced:
    """The loop over the answers' tokens, from the state that reading the prompts leaves, where that leaves it."""
    graph, params = split(networks(shapes, mesh)[1], mesh)
    state = jax.tree.map(
        lambda leaf, sharding: ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        read.out_info,
        compiled.output_shardings,
    )
    with jax.set_mesh(mesh):
        return decode.trace(graph, params, state, _table(shapes, mesh), None, _array(mesh, P(), (), jnp.int32))


def _table(shapes: Shapes, mesh: Mesh) -> ShapeDtypeStruct:
    return _array(mesh, P(), (START + 1, shapes.llm.vocab_size), jnp.int32)


def _count(model: nnx.Module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def text_batch(batch: int, length: int, mesh: Mesh) -> dict[str, ShapeDtypeStruct]:
    """The text fields of the batch contract, [B, L]."""
    fields: dict[str, Any] = dict.fromkeys(("tokens", "music_index", "positions", "segments"), jnp.int32)
    fields["loss_weights"] = jnp.float32
    return {name: _rows(batch, mesh, (length,), dtype) for name, dtype in fields.items()}


def split(model: nnx.Module, mesh: Mesh) -> tuple[Any, Any]:
    """An abstract network's graphdef, and its parameters' shapes with where each lies on the mesh."""
    graph, state = nnx.split(model, nnx.Param)
    params = {
        path: _array(
            mesh, partition(value.get_metadata("axes"), mesh), value.get_value().shape, value.get_value().dtype
        )
        for path, value in nnx.to_flat_state(state)
    }
    return graph, nnx.to_pure_dict(nnx.from_flat_state(params))


def _rows(batch: int, mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> ShapeDtypeStruct:
    return _array(mesh, BATCH, (batch, *shape), dtype)


def _whole(tree: Any, mesh: Mesh) -> Any:
    return jax.tree.map(lambda leaf: _array(mesh, P(), leaf.shape, leaf.dtype), tree)


def _array(mesh: Mesh, spec: P, shape: tuple[int, ...], dtype: Any) -> ShapeDtypeStruct:
    return ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

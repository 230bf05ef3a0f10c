"""A run's programs and their arguments, by shapes alone: no weights, no data, nothing on a device.

Axes: B rows, L places in a row, M music tokens, N samples, D encoder width, P places of a prompt, A automaton states,
V vocabulary.
"""

import copy
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
from jax.stages import Traced

from configs.base import Config
from mlingo_jax.inference.decode import decode, prefill
from mlingo_jax.inference.stopping import START
from mlingo_jax.models.adapter import Adapter
from mlingo_jax.models.llama import Llama
from mlingo_jax.models.llama_config import LlamaConfig
from mlingo_jax.models.mert import Mert, MertConfig
from mlingo_jax.models.partition import check_divides, partition
from mlingo_jax.models.quantization import Quantization
from mlingo_jax.training.sharding import BATCH
from mlingo_jax.training.step import Networks, compile_train_step, init_state

# MERT's, MusicFM's and HuBERT's preprocessors differ; a plan takes MERT's.
SAMPLE_RATE = 24_000
# A question and the words around it, where a config has a prompt: the longest of MusicQA take about as many tokens.
QUESTION = 96
MULTIPLE = 16


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What a run's arrays measure.

    Attributes:
        config: the run's settings.
        encoder, llm: the towers' architectures.
        seconds: of audio in a clip.
    """

    config: Config
    encoder: MertConfig
    llm: LlamaConfig
    seconds: float

    @property
    def samples(self) -> int:
        """N: of a clip."""
        return round(self.seconds * SAMPLE_RATE)

    @property
    def frames(self) -> int:
        """The encoder's, of a clip."""
        return self.encoder.frames(self.samples)

    @property
    def music(self) -> int:
        """M: music tokens of a clip."""
        return -(-self.frames // self.config.mert.window)

    @property
    def length(self) -> int:
        """L: as the config says, or what its prompt's longest answer needs."""
        needed = self.places + self.config.prompt.max_answer_tokens
        return self.config.data.length or -(-needed // MULTIPLE) * MULTIPLE

    @property
    def places(self) -> int:
        """P: of a prompt, the row without its answer."""
        return 1 + self.music + (QUESTION if self.config.prompt.template else 0)


def networks(shapes: Shapes) -> tuple[Mert, Llama, Adapter]:
    """The three networks in the abstract."""
    config = shapes.config
    states = shapes.encoder.states if config.adapter.learn_states else None
    quantization = cast(Quantization, config.llm.quantization)
    dtype = jnp.dtype(config.llm.dtype)
    return (
        nnx.eval_shape(lambda: Mert(shapes.encoder, dtype=jnp.dtype(config.mert.dtype), rngs=nnx.Rngs(0))),
        nnx.eval_shape(lambda: Llama(shapes.llm, dtype=dtype, quantization=quantization, rngs=nnx.Rngs(0))),
        nnx.eval_shape(lambda: Adapter(shapes.encoder.width, shapes.llm.width, states=states, rngs=nnx.Rngs(0))),
    )


def parameter_counts(shapes: Shapes) -> tuple[int, int]:
    """The encoder's and the language model's numbers of parameters; a quantised one's scales are none."""
    plain = dataclasses.replace(shapes, config=copy.deepcopy(shapes.config))
    plain.config.llm.quantization = "none"
    encoder, llm, _ = networks(plain)
    return _count(encoder), _count(llm)


def weight_bytes(shapes: Shapes, mesh: Mesh) -> int:
    """What the towers that a train step needs take on each device.

    Raises:
        UserError: a tower cannot be split over the mesh.
    """
    encoder, llm, _ = networks(shapes)
    check_divides(llm, "the language model", mesh)
    if shapes.config.data.hear_in_step:
        check_divides(encoder, "the encoder", mesh)
    trees = [split(llm, mesh)[1], *([split(encoder, mesh)[1]] if shapes.config.data.hear_in_step else [])]
    bits = (
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * jax.dtypes.itemsize_bits(leaf.dtype)
        for leaf in jax.tree.leaves(trees)
    )
    return sum(bits) // 8


def trace_train_step(shapes: Shapes, mesh: Mesh) -> Traced:
    """The run's train step on a mesh: traced, ready to be lowered and compiled."""
    config = shapes.config
    mert, llm, adapter = networks(shapes)
    graph, params = split(adapter, mesh)
    state = _whole(jax.eval_shape(partial(init_state, config=config), params), mesh)
    llm_graph, llm_params = split(llm, mesh)
    frozen = {"llm": llm_params}
    batch = text_batch(config.batch_size, shapes.length, mesh)
    rows = partial(_rows, config.batch_size, mesh)
    if config.data.hear_in_step:
        mert_graph, frozen["mert"] = split(mert, mesh)
        batch |= {"waveform": rows((shapes.samples,), jnp.float32), "waveform_length": rows((), jnp.int32)}
    else:
        mert_graph = None
        states = (shapes.encoder.states,) if config.adapter.learn_states else ()
        batch["music"] = rows((*states, shapes.music, shapes.encoder.width), jnp.float32)
    static = Networks(adapter=graph, llm=llm_graph, mert=mert_graph, keep_states=config.adapter.learn_states)
    step: Any = compile_train_step(static, config, mesh)
    with jax.set_mesh(mesh):
        return step.trace(state, frozen, batch)


def trace_hearing(shapes: Shapes, mesh: Mesh, clips: int) -> Traced:
    """Hearing that many clips at once, as the feature cache is filled."""
    graph, params = split(networks(shapes)[0], mesh)
    window, keep = shapes.config.mert.window, shapes.config.adapter.learn_states

    def hear(params: Any, waveform: Any, lengths: Any) -> Any:
        return nnx.merge(graph, nnx.State(params)).features(waveform, lengths, window=window, keep_states=keep)

    rows = partial(_rows, clips, mesh)
    with jax.set_mesh(mesh):
        return jax.jit(hear).trace(params, rows((shapes.samples,), jnp.float32), rows((), jnp.int32))


def trace_answering(shapes: Shapes, mesh: Mesh, rows: int, tokens: int) -> tuple[Traced, Traced]:
    """Answering `rows` questions at once with up to `tokens` tokens: reading the prompts, and the loop over tokens."""
    llm = networks(shapes)[1]
    graph, params = split(llm, mesh)
    whole = partial(_array, mesh, P())
    prompt = (
        whole((rows, shapes.places, shapes.llm.width), jnp.dtype(shapes.config.llm.dtype)),
        whole((rows, shapes.places), jnp.int32),
        whole((rows, shapes.places), jnp.int32),
        whole((START + 1, shapes.llm.vocabulary), jnp.int32),
        whole((rows,), jax.eval_shape(lambda: jax.random.key(0)).dtype),
    )
    with jax.set_mesh(mesh):
        first = prefill.trace(graph, params, *prompt, None, max_new_tokens=tokens)
        state = jax.tree.map(lambda leaf: whole(leaf.shape, leaf.dtype), first.out_info)
        return first, decode.trace(graph, params, state, prompt[3], None, whole((), jnp.int32))


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

"""Prints what the compiled programs of a small MusiLingo do on meshes of eight devices, as JSON; nothing is run.

    python -m tests.mesh_programs cpu|tpu

A process of its own, for the number of devices is set before JAX starts. {mesh: {program: {"collectives", "donated"}}}
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from configs.base import Config
from mlingo_jax.inference.decode import decode, prefill
from mlingo_jax.inference.stopping import START
from mlingo_jax.models.adapter import Adapter
from mlingo_jax.models.llama import Llama
from mlingo_jax.models.llama_config import LlamaConfig
from mlingo_jax.models.mert import Mert, MertConfig
from mlingo_jax.planning.program import collectives, donated
from mlingo_jax.planning.shapes import split, text_batch
from mlingo_jax.training.sharding import AXES, BATCH
from mlingo_jax.training.step import Networks, compile_train_step, init_state
from tests.tiny import LLAMA, MERT

MESHES = {"8x1x1": ("train", "hear"), "1x8x1": ("train",), "2x2x2": ("train", "hear", "decode")}
ROWS, PLACES, MUSIC, SAMPLES, FEATURES = 8, 128, 3, 8000, 256
LLAMA_SIZES = LLAMA | {
    "vocab_size": 1024,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
MERT_SIZES = MERT | {
    "hidden_size": FEATURES,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "conv_dim": [64] * 7,
}
LLAMA_CONFIG, MERT_CONFIG = LlamaConfig.from_json(LLAMA_SIZES, "llama"), MertConfig.from_json(MERT_SIZES, "mert")
# Numbers in the adapter, and in the matrices of a layer of the language model.
ADAPTER = (FEATURES + 1) * LLAMA_CONFIG.width
LAYER = 4 * LLAMA_CONFIG.width**2 + 3 * LLAMA_CONFIG.width * LLAMA_CONFIG.inner


def network(make: Any, mesh: Mesh) -> tuple[Any, Any]:
    return split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))), mesh)


def llama(dtype: Any, mesh: Mesh) -> tuple[Any, Any]:
    return network(lambda rngs: Llama(LLAMA_CONFIG, dtype=dtype, rngs=rngs), mesh)


def laid(tree: Any, mesh: Mesh, spec: P) -> Any:
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def train_program(mesh: Mesh, dtype: Any) -> jax.stages.Compiled:
    """A step from kept features, every step an update."""
    config = dataclasses.replace(Config(), accumulate=1, steps=10)
    graph, params = llama(dtype, mesh)
    adapter_graph, adapter = network(lambda rngs: Adapter(FEATURES, LLAMA_CONFIG.width, rngs=rngs), mesh)
    shapes = jax.eval_shape(lambda a: init_state(a, config), adapter)
    music = laid(jax.ShapeDtypeStruct((ROWS, MUSIC, FEATURES), jnp.float32), mesh, BATCH)
    batch = {**text_batch(ROWS, PLACES, mesh), "music": music}
    step: Any = compile_train_step(Networks(adapter_graph, graph, None, False), config, mesh)
    return step.lower(laid(shapes, mesh, P()), {"llm": params}, batch).compile()


def hear_program(mesh: Mesh, dtype: Any) -> jax.stages.Compiled:
    graph, params = network(lambda rngs: Mert(MERT_CONFIG, dtype=dtype, rngs=rngs), mesh)
    clips = jax.ShapeDtypeStruct((ROWS, SAMPLES), jnp.float32), jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    listen = jax.jit(
        lambda params, waveform, lengths: nnx.merge(graph, nnx.State(params)).features(waveform, lengths, window=10),
        out_shardings=NamedSharding(mesh, BATCH),
    )
    return listen.lower(params, *laid(clips, mesh, BATCH)).compile()


def decode_program(mesh: Mesh, dtype: Any) -> jax.stages.Compiled:
    (graph, params), new = llama(dtype, mesh), 64
    places = jax.ShapeDtypeStruct((ROWS, PLACES), jnp.int32)
    embeddings = jax.ShapeDtypeStruct((*places.shape, LLAMA_CONFIG.width), dtype)
    table = jax.ShapeDtypeStruct((START + 1, LLAMA_CONFIG.vocabulary), jnp.int32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), ROWS))
    prompt = (params, *laid((embeddings, places, places, table), mesh, P()), keys, None)
    read = prefill.lower(graph, *prompt, max_new_tokens=new).compile()
    shapes = jax.eval_shape(lambda *p: prefill(graph, *p, max_new_tokens=new), *prompt)
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, read.output_shardings
    )
    return decode.lower(graph, params, state, laid(table, mesh, P()), None, jnp.int32(new)).compile()


PROGRAMS: Mapping[str, Callable[[Mesh, Any], jax.stages.Compiled]] = {
    "train": train_program,
    "hear": hear_program,
    "decode": decode_program,
}


def describe(compiled: jax.stages.Compiled) -> dict[str, Any]:
    text = compiled.as_text()
    assert text is not None
    return {"collectives": [dataclasses.asdict(c) for c in collectives(text)], "donated": sorted(donated(text))}


def main(platform: str) -> None:
    dtype: Any = jnp.float32
    devices: Any = jax.devices()
    if platform == "tpu":
        from jax.experimental import topologies

        dtype, devices = jnp.bfloat16, topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    found: dict[str, Any] = {"item": jnp.dtype(dtype).itemsize}
    for name, programs in MESHES.items():
        sizes = [int(n) for n in name.split("x")]
        mesh = Mesh(np.array(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * 3)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            found[name] = {program: describe(PROGRAMS[program](mesh, dtype)) for program in programs}
    print(json.dumps(found))


if __name__ == "__main__":
    # The suite's way of compiling little leaves collectives uncombined.
    os.environ.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_num_cpu_devices", 8)
    # Machine code that is never run need not be good.
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    main(sys.argv[1])

"""Prints what the compiled programs of a small MusiLingo do on meshes of eight devices, as JSON; nothing is run.

    python -m tests.mesh_programs cpu:8|v5e:2x4|h100:8

A process of its own, for the number of devices is set before JAX starts. {mesh: {program: {"collectives", "donated",
"temporaries"}}}
"""

import dataclasses
import json
import os
import sys
from typing import Any

import jax
from jax.sharding import Mesh
from jax.stages import Compiled

from mlingo_jax.models.llama_config import LlamaConfig
from mlingo_jax.models.mert import MertConfig
from mlingo_jax.planning.costs import compile_program
from mlingo_jax.planning.devices import devices, prepare
from mlingo_jax.planning.machines import parse
from mlingo_jax.planning.program import collectives, donated
from mlingo_jax.planning.shapes import Shapes, trace_encoding, trace_reading, trace_train_step, trace_writing
from mlingo_jax.settings import Config, MeshConfig
from mlingo_jax.training.sharding import make_mesh
from tests.tiny import LLAMA, MERT

MESHES = {"8x1x1": ("train", "encode"), "1x8x1": ("train",), "2x2x2": ("train", "encode", "decode")}
ROWS, PLACES, SECONDS, FEATURES = 8, 128, 1 / 3, 256
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
ADAPTER = (FEATURES + 1) * LLAMA_CONFIG.embed_dim
LAYER = 4 * LLAMA_CONFIG.embed_dim**2 + 3 * LLAMA_CONFIG.embed_dim * LLAMA_CONFIG.mlp_dim


def small(dtype: str) -> Shapes:
    """Steps from kept features, each an update."""
    config = dataclasses.replace(Config(), batch_size=ROWS, accumulate=1, steps=10)
    config.mert.dtype = config.llm.dtype = dtype
    config.data.length = PLACES
    return Shapes.of(config, MERT_CONFIG, LLAMA_CONFIG, SECONDS)


def compiled(program: str, shapes: Shapes, mesh: Mesh) -> Compiled:
    if program == "train":
        return compile_program(trace_train_step(shapes, mesh))
    if program == "encode":
        return compile_program(trace_encoding(shapes, mesh, ROWS))
    reading = trace_reading(shapes, mesh, ROWS)
    return compile_program(trace_writing(shapes, mesh, reading, compile_program(reading)))


def describe(compiled: Compiled) -> dict[str, Any]:
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None
    assert memory is not None
    found = [dataclasses.asdict(c) for c in collectives(text)]
    return {"collectives": found, "donated": sorted(donated(text)), "temporaries": memory.temp_size_in_bytes}


def main(name: str) -> None:
    machine = parse(name)
    prepare(machine)
    shapes = small("bfloat16" if machine.kind else "float32")
    found: dict[str, Any] = {"item": 2 if machine.kind else 4}
    for mesh, programs in MESHES.items():
        data, fsdp, tensor = (int(n) for n in mesh.split("x"))
        laid = make_mesh(MeshConfig(data, fsdp, tensor), devices(machine))
        found[mesh] = {program: describe(compiled(program, shapes, laid)) for program in programs}
    print(json.dumps(found))


if __name__ == "__main__":
    # The suite's way of compiling little leaves collectives uncombined.
    os.environ.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)
    jax.config.update("jax_disable_most_optimizations", False)
    # Machine code that is never run need not be good.
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    main(sys.argv[1])

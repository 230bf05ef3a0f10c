"""A tiny language model, and random requests to the engine about a dozen clips of random features.

`python -m tests.asking 2x2x2` prints the answers to a hundred of them on a mesh of eight devices, as JSON.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from mlingo_jax.inference.answering import answers
from mlingo_jax.inference.engine import Engine
from mlingo_jax.inference.generate import Answer, Options
from mlingo_jax.inference.layout import Layout, layout
from mlingo_jax.inference.requests import Piece, Request
from mlingo_jax.inference.stopping import StopRule, stop_rule
from mlingo_jax.models.adapter import Adapter, AdapterConfig
from mlingo_jax.models.llama import Llama
from mlingo_jax.models.llama_config import LlamaConfig
from mlingo_jax.models.musilingo import Networks
from mlingo_jax.models.partition import partition
from mlingo_jax.settings import MeshConfig
from mlingo_jax.training.sharding import make_mesh
from tests.tiny import LLAMA, tiny_tokenizer

OPENING = [1, 7, 8]
FEATURES, CLIPS, LONGEST = 8, 12, 30
EOS = (5, 92)


def tiny_networks(dtype: Any = jnp.float32, stacked: bool = True) -> tuple[Llama, Adapter]:
    llm = Llama(LlamaConfig.from_json(LLAMA, "tiny"), dtype=dtype, stacked=stacked, rngs=nnx.Rngs(3))
    # With larger logits the margins between tokens are far above the noise of float32.
    assert llm.head is not None
    llm.head.set_value(5 * llm.head[...])
    return llm, Adapter(AdapterConfig(FEATURES, llm.config.embed_dim), rngs=nnx.Rngs(1))


def tiny_rule(folder: Path) -> StopRule:
    return stop_rule(tiny_tokenizer(folder), (), EOS, LLAMA["vocab_size"])


def tiny_layout(rows: int, *, question: int = 16) -> Layout:
    """Of prompts three are read at once, which is never all that there are."""
    return dataclasses.replace(
        layout(rows, len(OPENING), prefix=16, question=question, answer=LONGEST), admitted=3, prefixes=6
    )


def make_engine(networks: tuple[Llama, Adapter], rule: StopRule, sizes: Layout, mesh: Mesh | None = None) -> Engine:
    (llm, llm_params), (adapter, adapter_params) = (nnx.split(network, nnx.Param) for network in networks)
    params = {"llm": nnx.to_pure_dict(llm_params)}, {"adapter": nnx.to_pure_dict(adapter_params)}
    return Engine(Networks(llm, adapter), params, sizes, OPENING, rule, mesh)  # pyright: ignore[reportArgumentType]


def request(number: int, clip: int, tokens: Sequence[int], options: Options) -> Request:
    music = np.random.default_rng(clip).normal(size=(1 + clip, FEATURES)).astype(np.float32)
    text, question = [9, 10], np.array(tokens, np.int32)
    prefix = Piece(np.array([0] * len(music) + text, np.int32), np.array([*range(len(music)), -1, -1], np.int32), music)
    return Request(clip, prefix, Piece(question, np.full_like(question, -1), music[:0]), options, seed=3, salt=number)


def random_requests(count: int, seed: int) -> list[Request]:
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        draw: dict[str, Any] = {}
        if rng.random() < 0.5:
            draw = {"temperature": float(rng.uniform(0.3, 2))}
            draw |= {"top_k": int(rng.integers(1, 60))} if rng.random() < 0.5 else {}
            draw |= {"top_p": float(rng.uniform(0.2, 1))} if rng.random() < 0.5 else {}
        options = Options(int(rng.integers(1, LONGEST + 1)), **draw)
        tokens = rng.integers(3, 320, int(rng.integers(1, 17))).tolist()
        found.append(request(number, int(rng.integers(CLIPS)), tokens, options))
    return found


def in_order(engine: Engine, requests: Sequence[Request]) -> list[Answer]:
    found = dict(answers(engine, requests))
    return [found[place] for place in range(len(requests))]


def main(shape: str) -> None:
    jax.config.update("jax_num_cpu_devices", 8)
    mesh = make_mesh(MeshConfig(*(int(n) for n in shape.split("x"))), jax.devices())
    llm, adapter = tiny_networks()
    for _, parameter in nnx.to_flat_state(nnx.state(llm, nnx.Param)):
        laid = NamedSharding(mesh, partition(parameter.get_metadata("axes"), mesh))
        parameter.set_value(jax.device_put(parameter[...], laid))
    with TemporaryDirectory() as folder:
        engine = make_engine((llm, adapter), tiny_rule(Path(folder)), tiny_layout(8), mesh)
    print(json.dumps([dataclasses.asdict(answer) for answer in in_order(engine, random_requests(100, seed=0))]))


if __name__ == "__main__":
    main(sys.argv[1])

"""What hearing, a training step and decoding take on this device, beside what the arithmetic and the memory allow.

    python -m benchmarks.device --size=full --peak_tflops=990 --peak_gbs=4800     (an H200 in bfloat16)
    python -m benchmarks.device --size=tiny                                       (anywhere, to see that it runs)

Weights are random, shapes are MERT-v1-330M's and Vicuna v0 7B's. Floors: hearing 2 N operations a frame, an
adapter-only training step 4 N a token (forward, and the activations' gradient), decoding one reading of the weights
a token.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs.base import QUANTIZATIONS, Config
from conversion.released import MERT_330M
from mlingo_jax.inference.decode import decode, prefill
from mlingo_jax.inference.stopping import START
from mlingo_jax.models.adapter import Adapter
from mlingo_jax.models.llama import Llama
from mlingo_jax.models.llama_config import LlamaConfig
from mlingo_jax.models.mert import Mert, MertConfig
from mlingo_jax.planning.published import VICUNA_7B
from mlingo_jax.training.sharding import make_mesh
from mlingo_jax.training.step import Networks, compile_train_step, init_state

TINY_MERT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY_VICUNA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
RATE, WINDOW, MUSIC = 24_000, 325, 7


def hearing(config: MertConfig, dtype: str, batch: int, seconds: int, repeats: int) -> dict[str, Any]:
    """The encoder over `batch` clips; an operation count of 2 N a frame leaves out the attention's own products."""
    graph, params = random_network(Mert, config, dtype)
    waveform = jax.random.normal(jax.random.key(0), (batch, seconds * RATE))
    lengths = jnp.full(batch, waveform.shape[1], jnp.int32)
    listen = jax.jit(lambda p, w, n: nnx.merge(graph, nnx.State(p)).features(w, n, window=WINDOW))
    spent = median_seconds(lambda: listen(params, waveform, lengths), repeats)
    frames = batch * config.frames(waveform.shape[1])
    work = f"hear {batch} x {seconds} s"
    return {
        "work": work,
        "seconds": spent,
        "operations": 2 * count(params) * frames,
        "units": batch * seconds,
        "unit": "audio-s",
    }


def training_step(
    graph: nnx.GraphDef, params: Any, features: int, config: LlamaConfig, batch: int, places: int, repeats: int
) -> dict[str, Any]:
    """One adapter-only step from kept features, its rows full."""
    settings = Config(batch_size=batch, accumulate=1)
    adapter_graph, state = nnx.split(Adapter(features, config.width, rngs=nnx.Rngs(0)), nnx.Param)
    mesh = make_mesh(settings.mesh)
    step = compile_train_step(Networks(adapter_graph, graph, None, False), settings, mesh)
    place = np.broadcast_to(np.arange(places, dtype=np.int32), (batch, places))
    rows = {
        "tokens": np.where(place % 7 == 0, 1, place % config.vocabulary).astype(np.int32),
        "music_index": np.where((place >= 1) & (place <= MUSIC), place - 1, -1).astype(np.int32),
        "positions": place,
        "segments": np.ones_like(place),
        "loss_weights": (place >= places // 2).astype(np.float32),
        "music": np.random.default_rng(0).normal(size=(batch, MUSIC, features)).astype(np.float32),
    }
    rows = jax.device_put(rows)
    holder = [init_state(nnx.to_pure_dict(state), settings)]

    def run() -> Any:
        holder[0], metrics = step(holder[0], {"llm": params}, rows)
        return metrics

    spent = median_seconds(run, repeats)
    tokens = batch * places
    work = f"train step, {batch} x {places} tokens"
    return {"work": work, "seconds": spent, "operations": 4 * count(params) * tokens, "units": tokens, "unit": "tokens"}


def decoding(
    graph: nnx.GraphDef, params: Any, config: LlamaConfig, batch: int, tokens: int, repeats: int
) -> dict[str, Any]:
    """Greedy decoding of `tokens` tokens in each row, after a prompt of 64; the prompt's reading is not counted."""
    dtype = jax.tree.leaves(params)[0].dtype
    embeddings = jax.random.normal(jax.random.key(1), (batch, 64, config.width)).astype(dtype)
    positions = jnp.broadcast_to(jnp.arange(64, dtype=jnp.int32), (batch, 64))
    table = jnp.full((START + 1, config.vocabulary), START, jnp.int32)
    keys = jax.random.split(jax.random.key(0), batch)
    prompt = (embeddings, positions, jnp.ones_like(positions), table, keys, None)
    state = partial(prefill, graph, params, *prompt, max_new_tokens=tokens + 1)
    times = []
    for _ in range(repeats + 1):
        ready = jax.block_until_ready(state())
        start = time.perf_counter()
        jax.block_until_ready(decode(graph, params, ready, table, None, jnp.int32(tokens + 1)))
        times.append(time.perf_counter() - start)
    # Not nbytes, which counts an int4 as a byte.
    size = sum(leaf.size * jax.dtypes.itemsize_bits(leaf.dtype) for leaf in jax.tree.leaves(params)) // 8
    work = f"decode {batch} x {tokens} tokens"
    spent = float(np.median(times[1:]))
    return {"work": work, "seconds": spent, "moved": size * tokens, "units": batch * tokens, "unit": "tokens"}


def random_network(
    network: type[Mert] | type[Llama], config: Any, dtype: str, **options: Any
) -> tuple[nnx.GraphDef, Any]:
    """A network's graphdef and random parameters, made on the device one by one."""
    abstract = nnx.eval_shape(lambda: network(config, dtype=dtype, rngs=nnx.Rngs(0), **options))
    graph, state = nnx.split(abstract, nnx.Param)

    @partial(jax.jit, static_argnums=(1, 2))
    def make(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        if jnp.issubdtype(dtype, jnp.integer):
            return jax.random.randint(key, shape, -8, 8, jnp.int8).astype(dtype)
        return 0.02 * jax.random.normal(key, shape, dtype)

    shapes = nnx.to_pure_dict(state)
    leaves, tree = jax.tree.flatten(shapes)
    made = [
        make(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(jax.random.split(jax.random.key(0), len(leaves)), leaves, strict=True)
    ]
    return graph, jax.tree.unflatten(tree, made)


def count(params: Any) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def median_seconds(run: Callable[[], Any], repeats: int) -> float:
    """Of several calls after one that compiles."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def report(measured: dict[str, Any], peak_tflops: float | None, peak_gbs: float | None) -> None:
    """One line: time, throughput, rate reached, and its share of the device's limit."""
    spent = measured["seconds"]
    line = f"{measured['work']:30} {1e3 * spent:10.1f} ms {measured['units'] / spent:12.1f} {measured['unit']}/s"
    if "operations" in measured:
        rate = measured["operations"] / spent / 1e12
        line += f" {rate:8.2f} TFLOP/s" + (f" = {rate / peak_tflops:5.1%} of the peak" if peak_tflops else "")
    else:
        rate = measured["moved"] / spent / 1e9
        line += f" {rate:8.1f} GB/s" + (f" = {rate / peak_gbs:5.1%} of the peak" if peak_gbs else "")
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "full"), default="tiny")
    parser.add_argument("--peak_tflops", type=float, default=None, help="the device's dense bfloat16 rate")
    parser.add_argument("--peak_gbs", type=float, default=None, help="the device's memory bandwidth")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization", default="none", choices=QUANTIZATIONS, help="of the language model's layers")
    flags = parser.parse_args()
    tiny = flags.size == "tiny"
    mert = MertConfig.from_json({**MERT_330M, **(TINY_MERT if tiny else {})}, "MERT-v1-330M")
    llama = LlamaConfig.from_json({**VICUNA_7B, **(TINY_VICUNA if tiny else {})}, "Vicuna v0 7B")
    device = jax.devices()[0]
    kinds = f"{flags.dtype}, quantization {flags.quantization}"
    print(f"{device.device_kind}, jax {jax.__version__}, {kinds}, {flags.size}, medians of {flags.repeats}")
    limits = (flags.peak_tflops, flags.peak_gbs)
    for batch in (1, 2) if tiny else (1, 8, 32):
        report(hearing(mert, flags.dtype, batch, 2 if tiny else 30, flags.repeats), *limits)
    graph, params = random_network(Llama, llama, flags.dtype, quantization=flags.quantization)
    for batch in (2,) if tiny else (2, 8, 32):
        report(training_step(graph, params, mert.width, llama, batch, 256, flags.repeats), *limits)
    for batch in (1, 4) if tiny else (1, 8, 32):
        report(decoding(graph, params, llama, batch, 8 if tiny else 64, flags.repeats), *limits)
    print(json.dumps({"memory_stats": device.memory_stats() or {}}))


if __name__ == "__main__":
    main()

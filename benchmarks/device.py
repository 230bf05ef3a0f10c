"""What encoding, a training step and answering take on this device, beside what their plan says: time and memory.

    python -m benchmarks.device                 (the paper's towers: MERT-330M and Vicuna 7B, in bfloat16 and int8)
    python -m benchmarks.device --size=tiny     (anywhere, to see that it runs)

Prints a table for docs/performance.md. The programs are those of `mlingo_jax.plan`, compiled for the device that is
there and really run, on random weights and batches of the paper's pre-training; each in a process of its own, so that
the greatest memory is its own. Times are medians of --repeats after one run that does not count.
"""

import argparse
import dataclasses
import datetime
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.stages import Traced

from mlingo_jax.inference.stopping import START
from mlingo_jax.models.llama_config import LlamaConfig
from mlingo_jax.models.mert import MertConfig
from mlingo_jax.planning.costs import Costs, compile_program, costs_of
from mlingo_jax.planning.machines import GIB, KINDS
from mlingo_jax.planning.published import VICUNA_7B
from mlingo_jax.planning.roofline import roofline
from mlingo_jax.planning.shapes import Shapes, trace_encoding, trace_reading, trace_train_step, trace_writing
from mlingo_jax.recipes import load_config
from mlingo_jax.settings import QUANTIZATIONS, MeshConfig, PromptConfig
from mlingo_jax.training.sharding import make_mesh
from mlingo_jax.weights.released import MERT_330M

TINY_MERT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY_VICUNA = {**TINY_MERT, "num_key_value_heads": 4}
# What is measured, and in what the language model is kept.
WORK = {
    "encode": ("none",),
    "train": ("none", "int8"),
    "train, encoding": ("none", "int8"),
    "answer": ("none", "int8", "int4"),
}
HEAD = """\
| work | language model | measured, ms | plan: at least, ms | reached | memory at most, GiB | plan, GiB |
|---|---|---|---|---|---|---|"""


@dataclasses.dataclass(frozen=True)
class Measured:
    """One program: what was done, its plan, and the seconds of one execution."""

    work: str
    costs: Costs
    seconds: float


def measure(work: str, shapes: Shapes, mesh: Mesh, repeats: int) -> Iterator[Measured]:
    """Compiles and runs the programs of a kind of work."""
    rows = shapes.batch_size
    if work == "answer":
        yield from answering(shapes, mesh, rows, repeats)
        return
    if work == "encode":
        traced = trace_encoding(shapes, mesh, rows)
        compiled = compile_program(traced)
        params, waveform, lengths = filled(traced)
        lengths = jnp.full_like(lengths, waveform.shape[1])
        spent = median(lambda: compiled(params, waveform, lengths), repeats)
        yield Measured(f"encode {rows} x {shapes.encoded:g} s", costs_of(traced, compiled), spent)
        return
    traced = trace_train_step(shapes, mesh)
    compiled = compile_program(traced)
    state, frozen, batch = filled(traced)
    if "waveform" in batch:
        batch["waveform_length"] = jnp.full_like(batch["waveform_length"], shapes.samples)
    # Of a run's first step; random moments would be those of none.
    states = [jax.tree.map(jnp.zeros_like, state)]

    def step() -> Any:
        state, metrics = compiled(states.pop(), frozen, batch)
        states.append(state)
        return metrics

    encoded = f", encoding {shapes.encoded:g} s" if "waveform" in batch else ""
    yield Measured(f"train {rows} x {shapes.length} tokens{encoded}", costs_of(traced, compiled), median(step, repeats))


def answering(shapes: Shapes, mesh: Mesh, rows: int, repeats: int) -> Iterator[Measured]:
    """Reading the prompts, and writing a token in every row."""
    traced = trace_reading(shapes, mesh, rows)
    read = compile_program(traced)
    params, embeddings, positions, segments, table, keys, sampling = filled(traced)
    # No token leads out of the automaton's first state: no answer ends early.
    table = jnp.full_like(table, START)
    prompt = (params, embeddings, positions, segments, table, keys, sampling)
    spent = median(lambda: read(*prompt), repeats)
    yield Measured(f"read {rows} prompts of {shapes.positions} tokens", costs_of(traced, read), spent)
    writing = trace_writing(shapes, mesh, traced, read)
    write = compile_program(writing)
    tokens = shapes.answer
    # Writing takes over the memory of what reading leaves.
    spent = median(
        lambda state: write(params, state, table, sampling, jnp.int32(tokens)), repeats, prepare=lambda: read(*prompt)
    )
    # The first token is the reading's.
    yield Measured(f"write a token in {rows} rows", costs_of(writing, write), spent / (tokens - 1))


def filled(traced: Traced) -> Any:
    """Arguments of a program, one by one on the device: small random numbers, and ones for ids and positions."""
    leaves, tree = jax.tree.flatten(traced.args_info[0])

    @partial(jax.jit, static_argnums=(1, 2))
    def make(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            return jax.random.split(key, shape)
        if dtype == jnp.int32:
            return jnp.ones(shape, dtype)
        if jnp.issubdtype(dtype, jnp.integer):
            return jax.random.randint(key, shape, -8, 8, jnp.int8).astype(dtype)
        return 0.02 * jax.random.normal(key, shape, dtype)

    keys = jax.random.split(jax.random.key(0), len(leaves))
    return jax.tree.unflatten(tree, [make(key, a.shape, a.dtype) for key, a in zip(keys, leaves, strict=True)])


def median(run: Callable[..., Any], repeats: int, prepare: Callable[[], Any] | None = None) -> float:
    """Seconds that `run` takes, given what `prepare` makes; of several calls after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        given = [jax.block_until_ready(prepare())] if prepare else []
        start = time.perf_counter()
        jax.block_until_ready(run(*given))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def row(measured: Measured, kept: str, device: Any) -> str:
    """A line of the table."""
    costs = measured.costs
    kind = next((kind for kind in KINDS.values() if kind.product == device.device_kind), None)
    least = roofline(costs, kind, 1).seconds if kind else None
    limit = f"{1e3 * least:.1f} | {least / measured.seconds:.0%}" if least else "unknown | "
    stats = device.memory_stats() or {}
    most = f"{stats['peak_bytes_in_use'] / GIB:.2f}" if "peak_bytes_in_use" in stats else "unknown"
    return f"| {measured.work} | {kept} | {1e3 * measured.seconds:.1f} | {limit} | {most} | {costs.memory / GIB:.2f} |"


def shapes_of(size: str, quantization: str, work: str) -> Shapes:
    """The paper's pre-training, with its towers or tiny ones; answers are those to questions."""
    config, tiny = load_config("pretrain"), size == "tiny"
    encode = work == "train, encoding"
    config.prompt = PromptConfig() if work == "answer" else config.prompt
    config.llm.quantization = quantization
    config.data.encode_in_step, config.data.crop_seconds = encode, 2.0 if tiny else 30.0
    config.batch_size = 2 if tiny else config.batch_size
    mert = MertConfig.from_json({**MERT_330M, **(TINY_MERT if tiny else {})}, "MERT-v1-330M")
    llama = LlamaConfig.from_json({**VICUNA_7B, **(TINY_VICUNA if tiny else {})}, "Vicuna v0 7B")
    return Shapes.of(config, mert, llama, config.data.crop_seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "full"), default="full")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=WORK, help="this work alone, in this process")
    parser.add_argument(
        "--quantization", choices=QUANTIZATIONS, default="none", help="of the language model, with --only"
    )
    flags = parser.parse_args()
    if flags.only:
        device = jax.devices()[0]
        shapes = shapes_of(flags.size, flags.quantization, flags.only)
        kept = "" if flags.only == "encode" else flags.quantization.replace("none", "bfloat16")
        for measured in measure(flags.only, shapes, make_mesh(MeshConfig(), [device]), flags.repeats):
            print(row(measured, kept, device), flush=True)
        return
    print(f"{datetime.date.today()}, jax {jax.__version__}, {flags.size}\n\n{HEAD}", flush=True)
    command = [sys.executable, "-m", "benchmarks.device", f"--size={flags.size}", f"--repeats={flags.repeats}"]
    # One that fails says why, and the others are measured all the same.
    ends = [
        subprocess.run([*command, f"--only={work}", f"--quantization={quantization}"], check=False).returncode
        for work, kinds in WORK.items()
        for quantization in kinds
    ]
    raise SystemExit(max(ends))


if __name__ == "__main__":
    main()

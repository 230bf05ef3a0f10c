"""What a token costs, here and in transformers, with the same random weights and on the same machine, in turns.

    python -m benchmarks.against_pytorch --models 160m 1b --rows 1 8 --dtypes float32 bfloat16

Both write greedily, eight tokens at a time, without a stop; the table gives the median of a token's time over the
repeats, and the times of loading the same safetensors file, checksums included here.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import torch
import transformers
from flax import nnx

from mlingo_jax.models.llama import KVCache, Llama
from mlingo_jax.weights.load import Tower, load_tower

PROMPT, TOKENS, REPEATS = 16, 8, 5
SIZES: dict[str, dict[str, Any]] = {
    "160m": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SIZES, default=["160m", "1b"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    arguments = parser.parse_args()
    print("| work | mlingo_jax | transformers | ratio |\n|---|---:|---:|---:|", flush=True)
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            write_model(SIZES[name], Path(folder))
            for dtype in arguments.dtypes:
                compare(name, Path(folder), dtype, arguments.rows)


def write_model(sizes: dict[str, Any], folder: Path) -> None:
    """A LLaMA of these sizes and random weights, as a Hugging Face folder with an empty tokenizer."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**sizes, vocab_size=32000)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({}))


def compare(name: str, folder: Path, dtype: str, rows: list[int]) -> None:
    load = partial(load_tower, folder, role="llm", dtype=dtype)
    here, tower = timed(load)
    there, model = timed(
        lambda: transformers.LlamaForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    )
    tell(f"load {name}, {dtype}", here, there)
    for count in rows:
        write, generate = writer(tower, count), partial(torch_write, model, count)
        write()
        generate()
        pairs = [(timed(write)[0] / TOKENS, timed(generate)[0] / TOKENS) for _ in range(REPEATS)]
        tell(f"write {name}, {dtype}, {count} rows, a token", *map(statistics.median, zip(*pairs, strict=True)))


def writer(tower: Tower, rows: int) -> Callable[[], Any]:
    """Writes `TOKENS` tokens behind a prompt that is in the cache already."""

    @partial(jax.jit, donate_argnums=1)
    def write(params: Any, cache: KVCache, token: jax.Array, start: jax.Array) -> tuple[jax.Array, KVCache]:
        llm = nnx.merge(tower.graphdef, nnx.State(params))
        assert isinstance(llm, Llama)

        def step(at: jax.Array, carry: tuple[jax.Array, KVCache]) -> tuple[jax.Array, KVCache]:
            token, cache = carry
            positions = jnp.full((rows, 1), start + at, jnp.int32)
            hidden, cache = llm.extend(
                llm.embed(token[:, None]), positions, jnp.ones((rows, 1), jnp.int32), cache, start + at
            )
            return llm.logits(hidden[:, 0]).argmax(-1).astype(jnp.int32), cache

        return jax.lax.fori_loop(0, TOKENS, step, (token, cache))

    llm = nnx.merge(tower.graphdef, nnx.State(tower.params))
    assert isinstance(llm, Llama)
    state = [llm.init_cache(rows, PROMPT + TOKENS, llm.embedding.dtype)]

    def run() -> None:
        token, state[0] = write(tower.params, state[0], jnp.ones(rows, jnp.int32), jnp.int32(PROMPT))
        token.block_until_ready()

    return run


def torch_write(model: Any, rows: int) -> None:
    """The same, behind a prompt of one token."""
    prompt = torch.ones((rows, 1), dtype=torch.long)
    length = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
    with torch.inference_mode():
        model.generate(prompt, attention_mask=prompt, pad_token_id=0, do_sample=False, use_cache=True, **length)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = run()
    return time.perf_counter() - begin, result


def tell(work: str, here: float, there: float) -> None:
    print(f"| {work} | {here * 1e3:,.0f} ms | {there * 1e3:,.0f} ms | {there / here:.2f} |", flush=True)


if __name__ == "__main__":
    main()

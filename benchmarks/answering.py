"""The engine against a batch that is written to its longest row's end, and against transformers' generate.

    python -m benchmarks.answering                             (a model of the demo's size: 300 clips)
    python -m benchmarks.answering --size=160m --clips=64      (12 layers of width 768)

Random weights and music; each answer's length is fixed, from 5 to 120 tokens: `even` draws every length alike, `skewed`
short ones more often (log-uniform), as with several kinds of question.
Prints a Markdown row for docs/performance.md for each: row-steps are a count, seconds are of one run after a warm one.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlingo_jax.inference.answering import answers
from mlingo_jax.inference.decode import Prompts, decode, prefill
from mlingo_jax.inference.engine import Engine
from mlingo_jax.inference.generate import Options
from mlingo_jax.inference.layout import layout
from mlingo_jax.inference.requests import Piece, Request
from mlingo_jax.inference.sampling import row_keys
from mlingo_jax.inference.stopping import START, StopRule
from mlingo_jax.models.adapter import Adapter, AdapterConfig
from mlingo_jax.models.llama import Llama
from mlingo_jax.models.llama_config import LlamaConfig
from mlingo_jax.models.musilingo import Networks

SIZES = {
    "demo": {"vocab_size": 524, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4},
    "160m": {"vocab_size": 32_000, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12},
}
HEADS = {"demo": 4, "160m": 12}
FEATURES, MUSIC, OPENING, PROMPT = 64, 7, [1, 5, 6], 32
SHORTEST, LONGEST = 5, 120


def config(size: str) -> dict[str, Any]:
    heads = {"num_attention_heads": HEADS[size], "num_key_value_heads": HEADS[size]}
    rest = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "model_type": "llama"}
    return {**SIZES[size], **heads, **rest}


def draw_lengths(kind: str, clips: int, rng: np.random.Generator) -> list[int]:
    if kind == "even":
        return rng.integers(SHORTEST, LONGEST + 1, clips).tolist()
    return np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST + 1), clips)).astype(int).tolist()


def requests(lengths: Sequence[int], rng: np.random.Generator) -> list[Request]:
    found = []
    for clip, length in enumerate(lengths):
        music = rng.normal(size=(MUSIC, FEATURES)).astype(np.float32)
        question = rng.integers(3, 500, PROMPT - len(OPENING) - MUSIC).astype(np.int32)
        prefix = Piece(np.zeros(MUSIC, np.int32), np.arange(MUSIC, dtype=np.int32), music)
        text = Piece(question, np.full_like(question, -1), music[:0])
        found.append(Request(clip, prefix, text, Options(length)))
    return found


def timed(work: Callable[[], int]) -> tuple[int, float]:
    """What a second run of it returns, and its seconds: the first one compiles."""
    work()
    began = time.perf_counter()
    found = work()
    return found, time.perf_counter() - began


def by_engine(llm: Llama, rows: int, asked: Sequence[Request]) -> int:
    (graph, params), (other, rest) = nnx.split(llm, nnx.Param), nnx.split(adapter(llm), nnx.Param)
    sizes = layout(rows, len(OPENING), prefix=8, question=PROMPT, answer=LONGEST)
    both = {"llm": nnx.to_pure_dict(params)}, {"adapter": nnx.to_pure_dict(rest)}
    engine = Engine(Networks(graph, other), both, sizes, OPENING, never(llm))
    written = sum(len(answer.tokens) for _, answer in answers(engine, asked))
    assert written == sum(request.options.max_new_tokens for request in asked)
    return engine.counts.row_steps


def by_batches(llm: Llama, rows: int, lengths: Sequence[int]) -> int:
    """As captions were made before: a batch is written until its longest row ends."""
    graph, params = nnx.split(llm, nnx.Param)
    flat, table, steps = nnx.to_pure_dict(params), never(llm).table, 0
    embeddings = jax.random.normal(jax.random.key(0), (rows, PROMPT, llm.config.embed_dim))
    positions = jnp.broadcast_to(jnp.arange(PROMPT), (rows, PROMPT))
    prompts = Prompts(embeddings, positions, jnp.ones_like(positions))
    keys = row_keys(0, np.arange(rows, dtype=np.uint32))
    for start in range(0, len(lengths), rows):
        longest = max(lengths[start : start + rows])
        state = prefill(graph, flat, prompts, table, keys, None, max_new_tokens=LONGEST)
        state = decode(graph, flat, state, table, None, jnp.int32(longest))
        assert int(state.step) == longest
        steps += rows * longest
    return steps


def by_transformers(size: str, rows: int, lengths: Sequence[int]) -> float:
    """Seconds of the same batches by transformers, in float32; a short one before does not count."""
    import torch
    from transformers import LlamaConfig as ReferenceConfig
    from transformers import LlamaForCausalLM

    model: Any = LlamaForCausalLM(ReferenceConfig(**config(size), eos_token_id=None, bos_token_id=None)).eval()
    prompt = torch.randint(3, 500, (rows, PROMPT))
    settings = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "pad_token_id": 0}
    with torch.inference_mode():
        model.generate(prompt, max_new_tokens=2, **settings)
        began = time.perf_counter()
        for start in range(0, len(lengths), rows):
            longest = max(lengths[start : start + rows])
            assert model.generate(prompt, max_new_tokens=longest, **settings).shape[1] == PROMPT + longest
        return time.perf_counter() - began


def never(llm: Llama) -> StopRule:
    """Nothing ends an answer but its length."""
    vocabulary = llm.config.vocab_size
    return StopRule((), (b"",) * vocabulary, jnp.full((START + 1, vocabulary), START, jnp.int32))


def adapter(llm: Llama) -> Adapter:
    return Adapter(AdapterConfig(FEATURES, llm.config.embed_dim), rngs=nnx.Rngs(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="demo")
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--lengths", choices=("even", "skewed"), nargs="*", default=("even", "skewed"))
    arguments = parser.parse_args()
    llm = Llama(LlamaConfig.from_json(config(arguments.size), arguments.size), dtype=jnp.float32, rngs=nnx.Rngs(0))
    print("| answers | row-steps: engine | batch | ratio | seconds: engine | batch | ratio | transformers | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for kind in arguments.lengths:
        rng = np.random.default_rng(0)
        lengths = draw_lengths(kind, arguments.clips, rng)
        asked, rows = requests(lengths, rng), arguments.rows
        own, seconds = timed(lambda: by_engine(llm, rows, asked))  # noqa: B023
        batch, longer = timed(lambda: by_batches(llm, rows, lengths))  # noqa: B023
        torch_seconds = by_transformers(arguments.size, rows, lengths)
        counts = f"{own:,} | {batch:,} | {batch / own:.2f}"
        ratios = f"{longer:.1f} | {longer / seconds:.2f} | {torch_seconds:.1f} | {torch_seconds / seconds:.2f}"
        print(
            f"| {arguments.clips} {kind}, {sum(lengths):,} tokens, {rows} rows | {counts} | {seconds:.1f} | {ratios} |",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())

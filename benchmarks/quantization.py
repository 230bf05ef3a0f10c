"""What keeping the language model's layers as integers costs a trained adapter: the run's held-out loss in each kind.

    python -m benchmarks.quantization runs/demo

Loads the run's language model in bfloat16, int8 and int4, with the one adapter, and evaluates as the run does. What a
quantised model takes in memory, `python -m mlingo_jax.plan` tells.
"""

import argparse
import json
from pathlib import Path

import jax

from mlingo_jax.flags import fields
from mlingo_jax.settings import QUANTIZATIONS, Config
from mlingo_jax.training.loop import HOST_FIELDS
from mlingo_jax.training.setup import set_up
from mlingo_jax.training.sharding import make_mesh, put_batch, replicate
from mlingo_jax.training.step import compile_eval_step
from mlingo_jax.weights.load import load_adapter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a training run's folder, its examples and towers still in place")
    run = parser.parse_args().run
    config = read_run_config(run)
    before = None
    for quantization in QUANTIZATIONS:
        config.llm.dtype, config.llm.quantization = "bfloat16", quantization
        loss, tokens, size = held_out_loss(config, run)
        before = before or loss
        kept = "bfloat16" if quantization == "none" else quantization
        print(f"{kept:10} loss {loss:.5f} ({loss / before - 1:+.2%}) over {tokens:,.0f} tokens, {size / 1e6:,.2f} MB")


def read_run_config(run: Path) -> Config:
    """The settings that a run was trained with; those that did not exist then have their defaults."""
    values = json.loads((run / "config.json").read_text(encoding="utf-8"))
    config = Config()
    for field in fields(config):
        *sections, name = field.name.split(".")
        held = values
        for section in sections:
            held = held.get(section) or {}
        setattr(field.owner, field.attribute, held.get(name, field.value))
    return config


def held_out_loss(config: Config, run: Path) -> tuple[float, float, float]:
    """The mean over the held-out answers' tokens, their number, and the language model's bytes."""
    mesh = make_mesh(config.mesh)
    setup = set_up(config, mesh)
    evaluate = compile_eval_step(setup.networks, mesh)
    trained = replicate({"adapter": load_adapter(run)[1]}, mesh)
    total = tokens = 0.0
    for batch in setup.batches.held_out():
        rows = put_batch({name: values for name, values in batch.items() if name not in HOST_FIELDS}, mesh)
        loss, weight = evaluate(trained, setup.frozen, rows)
        total, tokens = total + float(loss), tokens + float(weight)
    return total / tokens, tokens, sum(map(bits, jax.tree.leaves(setup.frozen["llm"]))) / 8


def bits(leaf: jax.Array) -> int:
    """What an array takes; `nbytes` counts an int4 as a byte."""
    return leaf.size * jax.dtypes.itemsize_bits(leaf.dtype)


if __name__ == "__main__":
    main()

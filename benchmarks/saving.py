"""What saving costs a training step: how long it holds the step up, and how long it then works beside the steps.

    python -m benchmarks.saving --step_seconds=0.1 --steps=200 --every=50

The state is that of the paper's adapter (1,024 x 4,096) with its moments and gathered gradient. The step adds one to
all of it and then sleeps: the host is as free as it is while an accelerator computes. A checkpoint costs the steps

    share = held up / (every x step)     held up = copy of the state to the host + what Orbax does before it returns

The copy here is one within the host's memory; from an accelerator it takes its bytes / the link's rate on top.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mlingo_jax.runs.checkpoints import CheckpointState
from mlingo_jax.training.checkpoint import Checkpoints, to_host

FEATURES, TOKENS = 1024, 4096
PARTS = ("adapter", "mu", "nu", "gradient")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step_seconds", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=50)
    arguments = parser.parse_args()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(first_state()))
    with tempfile.TemporaryDirectory() as folder:
        alone, _, _ = run(Path(folder) / "none", arguments.steps, arguments.step_seconds, every=0)
        whole, held, beside = run(Path(folder) / "some", arguments.steps, arguments.step_seconds, arguments.every)
    print(f"state {size / 1e6:.0f} MB; {len(held)} checkpoints in {arguments.steps} steps of {1e3 * alone:.1f} ms")
    middle, ends = statistics.median(held), f"least {1e3 * min(held):.1f}, most {1e3 * max(held):.1f}"
    print(f"held up {1e3 * middle:.1f} ms a checkpoint, the median ({ends})")
    print(f"written in {beside:.2f} s beside the steps")
    for every in (arguments.every, 1000):
        print(f"every {every:>5} steps: {middle / (every * alone):.3%} of the step")
    print(f"measured as a whole: {whole / alone - 1:.3%}")


def run(folder: Path, steps: int, step_seconds: float, every: int) -> tuple[float, list[float], float]:
    """Seconds per step, saving included; those that each checkpoint held the steps up; those that writing one takes."""
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state, held, beside = step(first_state()), [], 0.0
    with Checkpoints(folder, keep=3, best=0, losses={}) as checkpoints:
        jax.block_until_ready(state)
        begin = time.perf_counter()
        for number in range(1, steps + 1):
            due = time.perf_counter() + step_seconds
            state = jax.block_until_ready(step(state))
            time.sleep(max(due - time.perf_counter(), 0))
            if every and number % every == 0:
                began = time.perf_counter()
                checkpoints.save(CheckpointState(number, *split(state), {}), {})
                held.append(time.perf_counter() - began)
        seconds = time.perf_counter() - begin
        if every:
            # Once more, alone, to see how long the writing takes.
            checkpoints.wait()
            began = time.perf_counter()
            checkpoints.save(CheckpointState(steps + 1, *split(state), {}), {})
            checkpoints.wait()
            beside = time.perf_counter() - began
    return seconds / steps, held, beside


def split(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is trained and the rest, on the host, as a run saves them."""
    return {"adapter": to_host(state["adapter"])}, to_host(
        {name: part for name, part in state.items() if name != "adapter"}
    )


def first_state() -> dict[str, Any]:
    one = {"kernel": jnp.zeros((FEATURES, TOKENS)), "bias": jnp.zeros(TOKENS)}
    return {part: jax.tree.map(jnp.copy, one) for part in PARTS}


if __name__ == "__main__":
    main()

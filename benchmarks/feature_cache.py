"""What encoding once saves: the demo's training from audio, and from caches of its features in float32 and in bfloat16.

    python -m benchmarks.feature_cache --materials runs/demo-materials

The demo's models and clips, made first if they are not there. All ways train on the same batches in one process, in
turns; a step's time includes reading, tokenising and putting its batch on the device. Losses are compared step by step.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np

from mlingo_jax.demo.materials import prepare
from mlingo_jax.recipes import recipe
from mlingo_jax.settings import Config
from mlingo_jax.training.loop import HOST_FIELDS
from mlingo_jax.training.setup import set_up
from mlingo_jax.training.sharding import make_mesh, put_batch, replicate
from mlingo_jax.training.step import Schedule, compile_train_step, init_state

WAYS = {
    "audio": {"encode_in_step": True},
    "cache, float32": {"store": "float32"},
    "cache, bfloat16": {"store": "bfloat16"},
}
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--materials", default="runs/demo-materials", help="folder of the demo's clips and towers")
    parser.add_argument("--steps", type=int, default=8, help="steps of each way in a round (default %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: training(config_of(name, arguments.materials, folder)) for name in WAYS}
        first = {name: [next(run) for _ in range(2)] for name, run in runs.items()}
        seconds: dict[str, list[float]] = {name: [] for name in WAYS}
        losses = {name: values.copy() for name, values in first.items()}
        for _, (name, run) in itertools.product(range(ROUNDS), runs.items()):
            begun = time.perf_counter()
            losses[name] += itertools.islice(run, arguments.steps)
            seconds[name].append((time.perf_counter() - begun) / arguments.steps)
    for name in WAYS:
        best = min(seconds[name])
        difference = np.abs(np.array(losses[name]) / np.array(losses["audio"]) - 1)
        print(f"{name:16} {1e3 * best:8,.1f} ms a step, {min(seconds['audio']) / best:5.1f} times as fast; ", end="")
        print(f"losses differ by at most {difference.max():.1e}, {difference.mean():.1e} on average")


def config_of(name: str, materials: str, folder: str) -> Config:
    """The demo's config for one of the ways."""
    config = recipe("demo")
    config.demo.materials = materials
    prepare(config)
    config.workdir = f"{folder}/{name}"
    # Clips are no longer than this: both ways encode them whole, and without more padding than they need.
    config.data.crop_seconds = config.demo.seconds
    for field, value in WAYS[name].items():
        setattr(config.data, field, value)
    return config


def training(config: Config) -> Iterator[float]:
    """Trains step by step, and gives each step's loss."""
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        begun = time.perf_counter()
        setup = set_up(config, mesh)
        print(f"{config.workdir}: ready to train after {time.perf_counter() - begun:.1f} s", flush=True)
        step = compile_train_step(setup.networks, Schedule(config.optim, config.steps, config.accumulate), mesh)
        state, batches = replicate(init_state(setup.trained, config.optim), mesh), setup.batches.train()
    while True:
        with jax.set_mesh(mesh):
            batch = {name: values for name, values in next(batches).items() if name not in HOST_FIELDS}
            state, metrics = step(state, setup.frozen, put_batch(batch, mesh))
            yield float(metrics["loss"])


if __name__ == "__main__":
    main()

"""A whole run of the train command on tiny towers and real audio files: what to train on, its settings, its command."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import soundfile

from mlingo_jax.settings import Config
from tests.tiny import tiny_llama, tiny_mert

STEPS, WINDOW = 120, 20
ROOT = Path(__file__).parents[1]


def make_corpus(folder: Path) -> Path:
    """Writes towers, twelve clips of different lengths, and a manifest."""
    tiny_mert(folder / "mert")
    tiny_llama(folder / "llm")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(12):
        soundfile.write(folder / f"{i}.wav", rng.normal(0, 0.1, int(24000 * (0.3 + 0.05 * i))), 24000)
        split = "eval" if i % 4 == 0 else "train"
        lines.append({"audio": f"{i}.wav", "question": "What plays?", "answer": f"A bell, number {i}.", "split": split})
    (folder / "music.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def settings(corpus: Path, workdir: Path) -> dict[str, object]:
    return {
        "workdir": workdir,
        "steps": STEPS,
        "batch_size": 4,
        "accumulate": 3,
        "mert.path": corpus / "mert",
        "mert.dtype": "float32",
        "mert.frames_per_token": WINDOW,
        "llm.path": corpus / "llm",
        "llm.dtype": "float32",
        "data.manifest": corpus / "music.jsonl",
        "optim.lr": 0.02,
        "optim.min_lr": 0.001,
        "optim.warmup_steps": 10,
        "optim.epoch_steps": 0,
        "checkpoint.every": 20,
        "checkpoint.keep": 2,
        "log.eval_every": 40,
        # To write them, the engine's programs are compiled.
        "log.eval_answers": 0,
        "log.print_every": 10,
    }


def command(values: dict[str, object]) -> list[str]:
    flags = [f"--config.{name}={value}" for name, value in values.items()]
    return [sys.executable, "-W", "error", "-m", "mlingo_jax.train", "--config=base", *flags]


def as_config(values: dict[str, object]) -> Config:
    config = Config()
    for name, value in values.items():
        *parents, last = name.split(".")
        owner = config
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, last, str(value) if isinstance(value, Path) else value)
    return config


def quick_environment(programs: Path) -> dict[str, str]:
    """Programs are compiled lightly and shared among the processes: most of a tiny run is compiling."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    return {**os.environ, **cache}

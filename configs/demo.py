"""The newcomer's five minutes: everything is made on the spot, then the adapter is trained and asked about new clips.

    python -m mlingo_jax.train --config=demo

The first run synthesises short pieces of music, makes a small MERT and a small LLaMA, and converts both. These
materials are kept beside the run; a second run, with other settings of the training perhaps, starts from them.
"""

import dataclasses

from mlingo_jax.settings import Config, setting
from mlingo_jax.settings import get_config as base_config


@dataclasses.dataclass
class DemoConfig:
    """What the demo makes before it trains."""

    materials: str = setting("runs/demo-materials", "folder of the clips and towers that the demo makes")
    seed: int = setting(0, "of the music, the texts and both towers", least=0)
    seconds: float = setting(5.0, "length of a clip", least=3, most=20)
    train_takes: int = setting(6, "clips to train on for each of the 144 kinds of piece", least=1)
    held_out_takes: int = setting(2, "clips to ask about for each kind, never seen in training", least=1)
    instruments: int = setting(8, "how many of the eight instruments play", least=2, most=8)
    llm_steps: int = setting(150, "steps in which the language model learns to read and to answer", least=1)


def get_config() -> Config:
    config = base_config()
    config.demo = DemoConfig()
    config.workdir = "runs/demo"
    config.steps = 500
    config.batch_size = 32
    config.accumulate = 1
    # Small towers on a CPU: bfloat16 would be slower there, not faster.
    config.mert.dtype = "float32"
    config.llm.dtype = "float32"
    config.llm.remat = "none"
    config.optim.lr = 1e-2
    config.optim.min_lr = 1e-4
    config.optim.warmup_steps = 20
    config.optim.epoch_steps = 0
    config.optim.weight_decay = 0.01
    config.checkpoint.every = 250
    config.log.eval_every = 100
    return config

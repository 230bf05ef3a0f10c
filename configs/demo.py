"""The newcomer's five minutes: everything is made on the spot, then the adapter is trained and asked about new clips.

    python -m mlingo_jax.train --config=demo

The first run synthesises short pieces of music, makes a small MERT and a small LLaMA, and converts both. These
materials are kept beside the run; a second run, with other settings of the training perhaps, starts from them.
"""

from mlingo_jax.settings import Config, DemoConfig


def get_config() -> Config:
    config = Config()
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

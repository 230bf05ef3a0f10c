"""Stage 2 on MusicInstruct's long questions: 6 x 3,000 steps.

python -m mlingo_jax.train --config=finetune_mi_long --config.adapter.start=runs/pretrain
"""

from mlingo_jax.recipes import recipe
from mlingo_jax.settings import Config


def get_config() -> Config:
    config = recipe("finetune_mi")
    config.workdir = "runs/finetune_mi_long"
    config.steps = 18_000
    config.data.datasets = "music_instruct/long:train"
    config.data.evaluate = "music_instruct/long:test"
    config.optim.warmup_steps = 3000
    config.optim.epoch_steps = 3000
    return config

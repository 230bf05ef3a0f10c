"""Stage 2 on MusicInstruct's short questions: 6 x 2,500 steps.

python -m mlingo_jax.train --config=finetune_mi_short --config.adapter.start=runs/pretrain
"""

from mlingo_jax.recipes import recipe
from mlingo_jax.settings import Config


def get_config() -> Config:
    config = recipe("finetune_mi")
    config.workdir = "runs/finetune_mi_short"
    config.steps = 15_000
    config.data.datasets = "music_instruct/short:train"
    config.data.evaluate = "music_instruct/short:test"
    config.optim.warmup_steps = 2500
    config.optim.epoch_steps = 2500
    return config

"""Stage 2 on MusicCaps: 6 x 1,000 steps, an update every 8.

python -m mlingo_jax.train --config=finetune_musiccaps --config.adapter.start=runs/pretrain
"""

from mlingo_jax.recipes import recipe
from mlingo_jax.settings import Config


def get_config() -> Config:
    config = recipe("finetune_mi")
    config.workdir = "runs/finetune_musiccaps"
    config.steps = 6000
    config.accumulate = 8
    config.data.datasets = "music_caps:train"
    config.data.evaluate = "music_caps:eval"
    config.optim.warmup_steps = 1000
    config.optim.epoch_steps = 1000
    return config

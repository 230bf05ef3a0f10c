"""Stage 1 on MusicCaps, whose captions are by musicians: 4 x 1,000 steps of 2, from the adapter of the run pretrain.

python -m mlingo_jax.train --config=pretrain_musiccaps

With --config.adapter.start= the adapter is drawn at random instead.
"""

from mlingo_jax.recipes import recipe
from mlingo_jax.settings import Config


def get_config() -> Config:
    config = recipe("pretrain")
    config.workdir = "runs/pretrain_musiccaps"
    config.steps = 4000
    config.batch_size = 2
    config.adapter.start = "runs/pretrain"
    config.data.datasets = "music_caps:train"
    config.data.evaluate = "music_caps:eval"
    config.optim.warmup_steps = 1000
    config.optim.epoch_steps = 1000
    return config

"""Stage 1 on LP-MusicCaps-MC, whose audio is MusicCaps': the way for those who cannot get MSD's.

    python -m mlingo_jax.train --config=pretrain_lpmc

The reference implementation has no such run. Its stage 1 sees a part of MSD's 445,000 clips once; here are 2,663, each
seen ten times: 3,330 steps of 8, with one pass as the warm-up.
"""

from mlingo_jax.recipes import recipe
from mlingo_jax.settings import Config


def get_config() -> Config:
    config = recipe("pretrain")
    config.workdir = "runs/pretrain_lpmc"
    config.steps = 3330
    config.batch_size = 8
    config.data.datasets = "lp_music_caps/mc:train"
    config.data.evaluate = "lp_music_caps/mc:test"
    config.optim.warmup_steps = 333
    config.optim.epoch_steps = 0
    return config

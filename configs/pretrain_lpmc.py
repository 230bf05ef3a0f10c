"""Stage 1 on LP-MusicCaps-MC, whose audio is MusicCaps': the way for those who cannot get MSD's.

python -m mlingo_jax.train --config=pretrain_lpmc
"""

from mlingo_jax.recipes import recipe
from mlingo_jax.settings import Config


def get_config() -> Config:
    config = recipe("pretrain")
    config.workdir = "runs/pretrain_lpmc"
    config.data.datasets = "lp_music_caps/mc:train"
    config.data.evaluate = "lp_music_caps/mc:test"
    return config

"""Stage 1 on MusicCaps, whose captions are by musicians.

python -m mlingo_jax.train --config=pretrain_musiccaps
"""

from mlingo_jax.recipes import recipe
from mlingo_jax.settings import Config


def get_config() -> Config:
    config = recipe("pretrain")
    config.workdir = "runs/pretrain_musiccaps"
    config.data.datasets = "music_caps:train"
    config.data.evaluate = "music_caps:eval"
    return config

"""MusicQA, its audio cut as for the released adapter: 372,000 samples at a file's own rate, as they are.

python -m mlingo_jax.train --config=finetune_musicqa_like_the_original --config.adapter.start=runs/pretrain
"""

from mlingo_jax.recipes import recipe
from mlingo_jax.settings import Config


def get_config() -> Config:
    config = recipe("finetune_musicqa")
    config.workdir = "runs/finetune_musicqa_like_the_original"
    config.data.like_the_original = True
    # Sixteen fixed ones of each clip stand for a new one each time; an evaluation takes the first.
    config.data.crops = 16
    config.data.crop_seconds = 15.5
    config.data.features = "data/features_like_the_original"
    return config

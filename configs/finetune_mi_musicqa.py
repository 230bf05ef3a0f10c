"""Stage 2 on MusicInstruct and MusicQA, a step of one and then of the other: 7 x 5,000 steps.

    python -m mlingo_jax.train --config=finetune_mi_musicqa --config.adapter.start=runs/pretrain

The reference implementation draws one of the two for each step, at even odds; turns are as many of each without the
luck.
"""

from mlingo_jax.recipes import recipe
from mlingo_jax.settings import Config


def get_config() -> Config:
    config = recipe("finetune_mi")
    config.workdir = "runs/finetune_mi_musicqa"
    config.steps = 35_000
    config.data.datasets = "music_instruct/all:train=1, music_qa:finetune=1"
    config.data.evaluate = "music_instruct/all:test, music_qa:eval"
    config.data.mixing = "step"
    return config

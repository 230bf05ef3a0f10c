"""Stage 2 on MusicQA's fine-tuning split: 6 x 5,000 steps.

python -m mlingo_jax.train --config=finetune_musicqa --config.adapter.start=runs/pretrain
"""

from mlingo_jax.recipes import recipe
from mlingo_jax.settings import Config


def get_config() -> Config:
    config = recipe("finetune_mi")
    config.workdir = "runs/finetune_musicqa"
    config.data.datasets = "music_qa:finetune"
    config.data.evaluate = "music_qa:eval"
    return config

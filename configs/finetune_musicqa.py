"""Stage 2 on MusicQA's fine-tuning split: 6 x 5,000 steps.

python -m mlingo_jax.train --config=finetune_musicqa --config.adapter.start=runs/pretrain
"""

from configs.finetune_mi import get_config as finetune_mi_config
from mlingo_jax.settings import Config


def get_config() -> Config:
    config = finetune_mi_config()
    config.workdir = "runs/finetune_musicqa"
    config.data.datasets = "music_qa:finetune"
    config.data.evaluate = "music_qa:eval"
    return config

"""MusicInstruct's short questions after MusicQA: begins from the adapter of the run finetune_musicqa.

python -m mlingo_jax.train --config=finetune_musicqa_then_mi_short
"""

from configs.finetune_mi_short import get_config as finetune_mi_short_config
from mlingo_jax.settings import Config


def get_config() -> Config:
    config = finetune_mi_short_config()
    config.workdir = "runs/finetune_musicqa_then_mi_short"
    config.adapter.start = "runs/finetune_musicqa"
    return config

"""MusicInstruct's short questions after MusicQA: begins from the adapter of the run finetune_musicqa.

python -m mlingo_jax.train --config=finetune_musicqa_then_mi_short
"""

from mlingo_jax.recipes import recipe
from mlingo_jax.settings import Config


def get_config() -> Config:
    config = recipe("finetune_mi_short")
    config.workdir = "runs/finetune_musicqa_then_mi_short"
    config.adapter.start = "runs/finetune_musicqa"
    return config

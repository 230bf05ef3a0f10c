"""The defaults: fine-tuning as the reference implementation does it, 6 x 5,000 micro-batches.

    python -m mlingo_jax.train --config=base --config.workdir=runs/first --config.data.manifest=my.jsonl \
        --config.mert.path=m-a-p/MERT-v1-330M --config.llm.path=weights/vicuna-7b-v0

A file of this folder (or any Python file) is a config if it has `get_config() -> Config`.
"""

from mlingo_jax.settings import Config


def get_config() -> Config:
    return Config()

"""Stage 2 on MusicInstruct, short and long questions together: the reference implementation's 6 x 5,000 steps of 2
examples.

    python -m mlingo_jax.train --config=finetune_mi --config.adapter.start=runs/pretrain

Without a start the adapter is drawn at random. On d devices the reference implementation took 2 examples on each:
batch_size = 2 d.
"""

from mlingo_jax.settings import Config


def get_config() -> Config:
    config = Config()
    config.workdir = "runs/finetune_mi"
    config.mert.path = "m-a-p/MERT-v1-330M"
    config.llm.path = "weights/vicuna-v0"
    config.data.datasets = "music_instruct/all:train"
    config.data.evaluate = "music_instruct/all:test"
    config.data.eval_most = 1000
    return config

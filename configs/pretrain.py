"""Stage 1 of the paper: captions of LP-MusicCaps-MSD without a prompt, 4 x 5,000 steps of 32 clips.

    python -m mlingo_jax.train --config=pretrain

The reference implementation takes 8 clips on each GPU and does not say on how many: 32 are those of four.

Stopped at any moment, the same command resumes. Without the data or the weights it says what is missing.
"""

from mlingo_jax.settings import Config


def get_config() -> Config:
    config = Config()
    config.workdir = "runs/pretrain"
    config.mert.path = "m-a-p/MERT-v1-330M"
    config.llm.path = "weights/vicuna-v0"
    config.steps = 20_000
    config.batch_size = 32
    config.accumulate = 1
    config.prompt.template = ""
    config.prompt.end_symbol = "\n"
    config.prompt.max_answer_tokens = 32
    config.data.datasets = "lp_music_caps/msd:train"
    config.data.evaluate = "lp_music_caps/msd:valid"
    config.data.eval_most = 1000
    config.optim.lr = 1e-4
    config.optim.min_lr = 8e-5
    return config

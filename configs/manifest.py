"""Training on one's own music: a jsonl whose lines are {"audio": "song.mp3", "question": "...", "answer": "..."}.

    python -m mlingo_jax.train --config=manifest --config.data.manifest=my.jsonl \
        --config.mert.path=m-a-p/MERT-v1-330M --config.llm.path=models/vicuna-7b-v0

Every clip is encoded once; after that neither the audio nor the encoder is needed. Paths are relative to the jsonl.
"""

from mlingo_jax.settings import Config


def get_config() -> Config:
    config = Config()
    config.workdir = "runs/manifest"
    config.steps = 5000
    config.batch_size = 8
    config.accumulate = 1
    config.optim.lr = 1e-4
    config.optim.warmup_steps = 250
    config.optim.epoch_steps = 0
    config.checkpoint.every = 500
    config.log.eval_every = 500
    return config

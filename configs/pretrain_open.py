"""Stage 1 on audio that anybody may download, in place of MSD's: MTG-Jamendo, FMA, MusicBench, MagnaTagATune.

    python -m mlingo_jax.train --config=pretrain_open

docs/recipes.md makes these datasets, command by command: captions from tags by `mlingo_jax.instruct`, evaluation clips
left out. Every caption comes as often as any other; in the paper's number of steps each of some 220,000 about three
times.
"""

from mlingo_jax.recipes import recipe
from mlingo_jax.settings import Config


def get_config() -> Config:
    config = recipe("pretrain")
    config.workdir = "runs/pretrain_open"
    config.data.datasets = (
        "mtg_jamendo/captions:train*1, fma/captions:train*1, music_bench:train*1, lp_music_caps/mtt:train*1"
    )
    config.data.evaluate = "lp_music_caps/mtt:valid"
    # Half of the audio is whole tracks.
    config.data.crops = 1
    return config

"""The datasets that can be prepared."""

from mlingo_jax.datasets.examples import Examples
from mlingo_jax.datasets.fma import FMA
from mlingo_jax.datasets.lp_music_caps import LPMusicCaps
from mlingo_jax.datasets.manifest import Manifest
from mlingo_jax.datasets.mtg_jamendo import MTGJamendo
from mlingo_jax.datasets.music_bench import MusicBench
from mlingo_jax.datasets.music_caps import MusicCaps
from mlingo_jax.datasets.music_instruct import MusicInstruct
from mlingo_jax.datasets.music_qa import MusicQA
from mlingo_jax.datasets.song_describer import SongDescriber

DATASETS: tuple[type[Examples], ...] = (
    MusicCaps,
    MusicInstruct,
    MusicQA,
    LPMusicCaps,
    SongDescriber,
    MTGJamendo,
    FMA,
    MusicBench,
    Manifest,
)

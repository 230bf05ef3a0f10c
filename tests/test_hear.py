"""Hearing a prepared collection before any run, and the run that finds what was heard."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs.base import Config
from mlingo_jax.data.datasets.music_caps import MusicCaps
from mlingo_jax.data.features import FeatureCache
from mlingo_jax.errors import UserError
from mlingo_jax.training.hear import hear_collection
from mlingo_jax.training.loop import train
from mlingo_jax.training.record import read_metrics
from tests.collections_of_music import MUSIC_CAPS, built, music_caps
from tests.tiny import tiny_llama, tiny_mert

CLIPS = {f"music_caps/{row['ytid']}" for row in MUSIC_CAPS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("heard")
    tiny_mert(folder / "mert")
    tiny_llama(folder / "llm")
    annotations, audio = music_caps(folder / "caps")
    built(MusicCaps, annotations, audio, folder / "data")
    return folder


def settings(folder: Path, workdir: Path) -> Config:
    config = Config()
    config.workdir = str(workdir)
    config.mert.path, config.llm.path = str(folder / "mert"), str(folder / "llm")
    config.mert.dtype = config.llm.dtype = "float32"
    config.data.datasets, config.data.evaluate = "music_caps:train", "music_caps:eval"
    config.data.data_dir = str(folder / "data")
    config.steps, config.accumulate = 3, 1
    return config


@pytest.fixture(scope="module")
def heard(folder) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlingo_jax.prepare", "features", "music_caps", "--mert", str(folder / "mert")]
    command += ["--data_dir", str(folder / "data"), "--dtype", "float32"]
    return subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)


def test_the_door_says_what_it_takes_and_hears_all(heard, folder):
    assert heard.returncode == 0, heard.stderr
    features = folder / "data" / "features"
    size, progress = heard.stderr.splitlines()
    assert size == (
        f"{features}: 4 clips of music_caps, 0.0 hours, are 12 x 1 vectors of 24 numbers: 0.0 MB in float32"
    )
    assert re.fullmatch(r"heard 4 of 4 clips, [\d.]+ clips/s, 00:00 left", progress)
    assert heard.stdout == f"{features}: 4 clips of music_caps are heard, 4 in all\n"
    cache = FeatureCache(features)
    assert {clip for clip in CLIPS if cache.shape(clip) == (3, 24)} == CLIPS


def test_a_run_finds_what_was_heard(heard, folder, tmp_path, capsys):
    train(settings(folder, tmp_path / "run"))
    assert "not needed: every clip has been heard" in capsys.readouterr().err
    *steps, last = read_metrics(tmp_path / "run")
    assert [record["step"] for record in steps] == [1, 2, 3]
    assert last["eval_tokens"] > 0
    assert not (tmp_path / "run" / "features").exists()


def test_a_cache_of_another_kind_is_refused_by_name(heard, folder, tmp_path):
    config = settings(folder, tmp_path / "run")
    config.mert.window = 100
    with pytest.raises(UserError, match=r"not this run's; there and here are window: 325 and 100; name another cache"):
        hear_collection(config, "music_caps")
    with pytest.raises(UserError, match=r"there and here are window: 325 and 100"):
        train(config)

"""Encoding a prepared collection before any run, and the run that finds what was encoded."""

import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mlingo_jax.datasets.manifest import Manifest
from mlingo_jax.datasets.music_caps import MusicCaps
from mlingo_jax.errors import UserError
from mlingo_jax.features.cache import FeatureCache
from mlingo_jax.features.shards import read_shard, shard_paths
from mlingo_jax.features.spec import FeatureSpec
from mlingo_jax.settings import Config
from mlingo_jax.training.encode import encode_collection
from mlingo_jax.training.loop import train
from mlingo_jax.training.record import read_metrics
from tests.collections_of_music import MUSIC_CAPS, built, music_caps, write_jsonl
from tests.tiny import tiny_llama, tiny_mert
from tests.two_processes import run_two

ROOT = Path(__file__).parents[1]
CLIPS = {f"music_caps/{row['ytid']}" for row in MUSIC_CAPS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoded")
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


def command(folder: Path, dataset: str, *options: object) -> list[str]:
    command = [sys.executable, "-W", "error", "-m", "mlingo_jax.prepare", "features", dataset]
    command += ["--mert", str(folder / "mert"), "--data_dir", str(folder / "data"), "--dtype", "float32"]
    return [*command, *map(str, options)]


@pytest.fixture(scope="module")
def encoded(folder) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, "music_caps"), cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_door_says_what_it_takes_and_hears_all(encoded, folder):
    assert encoded.returncode == 0, encoded.stderr
    features = folder / "data" / "features"
    size, progress = encoded.stderr.splitlines()
    assert size == (f"{features}: 4 clips of music_caps, 0.0 hours: 12 x 1 vectors of 24 numbers: 0.0 MB in float32")
    assert re.fullmatch(r"encoded 4 of 4 clips, [\d.]+ clips/s, 00:00 left", progress)
    assert encoded.stdout == f"{features}: 4 clips of music_caps encoded, 4 in all\n"
    cache = FeatureCache(features)
    assert {clip for clip in CLIPS if cache.shape(clip) == (3, 24)} == CLIPS


def test_a_run_finds_what_was_heard(encoded, folder, tmp_path, capsys):
    train(settings(folder, tmp_path / "run"))
    assert "not needed: every clip has been encoded" in capsys.readouterr().err
    *steps, last = read_metrics(tmp_path / "run")
    assert [record["step"] for record in steps] == [1, 2, 3]
    assert last["eval_tokens"] > 0
    assert not (tmp_path / "run" / "features").exists()


def test_a_cache_of_another_kind_is_refused_by_name(encoded, folder, tmp_path):
    config = settings(folder, tmp_path / "run")
    config.mert.frames_per_token = 100
    with pytest.raises(
        UserError, match=r"not this run's; there and here are frames_per_token: 325 and 100; name another cache"
    ):
        encode_collection(FeatureSpec.of(config), config.data.data_dir, "music_caps")
    with pytest.raises(UserError, match=r"there and here are frames_per_token: 325 and 100"):
        train(config)


def test_two_processes_of_two_devices_hear_what_one_hears(encoded, folder, tmp_path):
    words = command(folder, "music_caps", "--features", tmp_path)
    said = run_two(words, {**os.environ, "JAX_NUM_CPU_DEVICES": "2"})
    assert f"{tmp_path}: 4 clips of music_caps encoded, 4 in all\n" in said[0][0]
    assert "encoded 4 of 4 clips" in said[0][1]
    # The first one speaks for both.
    assert "clips" not in said[1][0] + said[1][1]
    ours, theirs = FeatureCache(tmp_path), FeatureCache(folder / "data" / "features")
    shards = [read_shard(path) for path in shard_paths(tmp_path)]
    assert [len(shard.names) for shard in shards if shard] == [2, 2]
    for clip in CLIPS:
        np.testing.assert_allclose(ours[clip], theirs[clip], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """A collection of three shards of clips, each half a second at a rate of 1,000 Hz, and an encoder for them."""
    folder = tmp_path_factory.mktemp("shards")
    tiny_mert(folder / "mert", sample_rate=1000)
    rng = np.random.default_rng(0)
    names = [f"{i}.wav" for i in range(1100)]
    (folder / "audio").mkdir()
    for name in names:
        soundfile.write(folder / "audio" / name, rng.normal(0, 0.1, 500), 1000)
    manifest = write_jsonl(
        folder / "music.jsonl", [{"audio": name, "question": "What plays?", "answer": "A bell."} for name in names]
    )
    built(Manifest, manifest, folder / "audio", folder / "data")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """A cache's files, but for the lock, the encoder's place and what it remembers of the audio's."""
    others = (".lock", "encoder.json", "audio.npy")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in others}


@pytest.fixture(scope="module")
def alone(shards) -> tuple[Path, float]:
    """The cache of a encoding left alone, and the seconds that it took after it had begun."""
    process = start(shards, shards / "alone")
    begun = time.monotonic()
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert len(list((shards / "alone").glob("*.array_record"))) == 3
    return shards / "alone", time.monotonic() - begun


def start(shards: Path, features: Path) -> subprocess.Popen[str]:
    """An encoding that has begun."""
    words = command(shards, "manifest/own", "--features", features, "--store", "bfloat16")
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (features / "fingerprint.json").exists():
        time.sleep(0.001)
    return process


def test_a_hearing_that_is_killed_leaves_what_one_left_alone_does(shards, alone, kills, tmp_path):
    """kill -9 at random moments of the encoding, each time gone on from; a cache that is whole is begun anew."""
    moments, killed = random.Random(0), tmp_path / "killed"
    whole, seconds = alone
    for _ in range(kills):
        process = start(shards, killed)
        time.sleep(moments.uniform(0, seconds))
        process.kill()
        process.communicate()
        if len(list(killed.glob("*.array_record"))) == 3:
            shutil.rmtree(killed)
    process = start(shards, killed)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert contents(killed) == contents(whole)

"""The feature cache: what is written is read, foreign features are refused, a killed encoding resumes."""

import dataclasses
import json
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mlingo_jax.data.audio import AudioSettings
from mlingo_jax.errors import UserError
from mlingo_jax.features.cache import FeatureCache, Fingerprint
from mlingo_jax.features.fill import fill_cache
from mlingo_jax.files import exclusive_lock
from tests.full_disk import full_disk
from tests.two_processes import run_two

AUDIO = AudioSettings(sample_rate=8000, normalize=True)
ENCODER = {"name": "small", "config": "c0", "weights": "w0", "dtype": "float32"}
FINGERPRINT = Fingerprint.of(ENCODER, AUDIO, frames_per_token=325, seconds=30.0)


def encoder(waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
    """One feature of four numbers for each 1,000 samples begun."""
    starts = [np.arange(0, len(w), 1000) for w in waveforms]
    scales = np.array([1, 2, 3, 4], np.float32)
    return [np.add.reduceat(w, s)[:, None] * scales for w, s in zip(waveforms, starts, strict=True)]


class CountingEncoder:
    def __init__(self):
        self.encoded = 0

    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        self.encoded += len(waveforms)
        return encoder(waveforms)


def write_clips(folder: Path, count: int) -> dict[str, Path]:
    """Clips of rising lengths, from 1,000 samples on."""
    rng = np.random.default_rng(0)
    paths = {f"clip {i}": folder / f"{i}.wav" for i in range(count)}
    for i, path in enumerate(paths.values()):
        soundfile.write(path, rng.uniform(-1, 1, 1000 + 300 * i), 8000)
    return paths


def expected(path: Path) -> np.ndarray:
    return encoder([soundfile.read(path, dtype="float32")[0]])[0]


@pytest.mark.parametrize("shard_clips", [1, 4, 100])
def test_what_is_heard_is_read(tmp_path, shard_clips):
    clips = write_clips(tmp_path, 10)
    cache, bad = fill_cache(clips, encoder, tmp_path / "cache", FINGERPRINT, shard_clips=shard_clips)
    assert not bad
    assert len(cache) == 10
    for name in reversed(clips):
        np.testing.assert_array_equal(cache[name], expected(clips[name]))
        assert cache.shape(name) == cache[name].shape
    assert "clip 10" not in cache
    with pytest.raises(UserError, match="no music features of 'clip 10'"):
        cache["clip 10"]


def test_threads_and_other_processes_may_read(tmp_path):
    clips = write_clips(tmp_path, 8)
    cache, _ = fill_cache(clips, encoder, tmp_path / "cache", FINGERPRINT, shard_clips=3)
    with ThreadPoolExecutor(4) as pool:
        for name, features in zip(list(clips) * 20, pool.map(cache.__getitem__, list(clips) * 20), strict=True):
            np.testing.assert_array_equal(features, expected(clips[name]))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(cache))["clip 3"], cache["clip 3"])


def test_bfloat16_halves_the_cache_and_keeps_states_apart(tmp_path):
    clips = write_clips(tmp_path, 3)
    fingerprint = dataclasses.replace(FINGERPRINT, stored="bfloat16", per_layer=True)

    def ear_of_states(waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [np.stack([features, -features]) for features in encoder(waveforms)]

    cache, _ = fill_cache(clips, ear_of_states, tmp_path / "cache", fingerprint)
    features = cache["clip 2"]
    assert features.dtype == np.float32
    assert features.shape == (2, 2, 4)
    np.testing.assert_allclose(features[0], expected(clips["clip 2"]), rtol=2**-8)
    np.testing.assert_array_equal(features[1], -features[0])


def test_a_clip_is_heard_once(tmp_path):
    clips = write_clips(tmp_path, 6)
    counting = CountingEncoder()
    fill_cache(dict(list(clips.items())[:4]), counting, tmp_path / "cache", FINGERPRINT, shard_clips=3)
    for path in list(clips.values())[:4]:
        path.unlink()
    cache, _ = fill_cache(clips, counting, tmp_path / "cache", FINGERPRINT, shard_clips=3)
    assert counting.encoded == len(cache) == 6


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_features import FINGERPRINT, CountingEncoder, encoder, fill_cache, Path

counting = CountingEncoder()

def mortal(waveforms):
    if counting.encoded >= 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return counting(waveforms)

clips = {f"clip {i}": Path(sys.argv[2]) / f"{i}.wav" for i in range(8)}
fill_cache(clips, mortal, Path(sys.argv[2]) / "cache", FINGERPRINT, shard_clips=2)
"""


def test_a_killed_hearing_goes_on(tmp_path):
    clips = write_clips(tmp_path, 8)
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(FeatureCache(tmp_path / "cache")) == 6
    # A run that has encoded writes it when others may encode already.
    others = tmp_path / "cache" / ".encoder.json.partial"
    others.touch()
    counting = CountingEncoder()
    cache, _ = fill_cache(clips, counting, tmp_path / "cache", FINGERPRINT, shard_clips=2)
    assert counting.encoded == 2
    assert list((tmp_path / "cache").glob(".*.partial")) == [others]
    for name, path in clips.items():
        np.testing.assert_array_equal(cache[name], expected(path))


def test_a_shard_that_is_cut_off_is_heard_again(tmp_path):
    clips = write_clips(tmp_path, 6)
    fill_cache(clips, encoder, tmp_path / "cache", FINGERPRINT, shard_clips=2)
    first, second, _ = sorted((tmp_path / "cache").glob("*.array_record"))
    first.write_bytes(first.read_bytes()[:-100])
    second.write_bytes(b"")
    cache = FeatureCache(tmp_path / "cache")
    assert cache.damaged == [first, second]
    assert len(cache) == 2
    counting = CountingEncoder()
    cache, _ = fill_cache(clips, counting, tmp_path / "cache", FINGERPRINT, shard_clips=2)
    assert counting.encoded == 4
    assert len(cache) == 6
    assert not cache.damaged


def test_bytes_that_changed_inside_a_shard_are_found(tmp_path):
    cache, _ = fill_cache(write_clips(tmp_path, 1), encoder, tmp_path / "cache", FINGERPRINT)
    (shard,) = (tmp_path / "cache").glob("*.array_record")
    content, features = bytearray(shard.read_bytes()), cache["clip 0"].tobytes()
    content[content.index(features)] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="damaged; move it away and encode again"):
        FeatureCache(tmp_path / "cache")["clip 0"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames_per_token": 160}, "frames_per_token: 325 and 160"),
        ({"seconds": 10.0}, "seconds: 30.0 and 10.0"),
        ({"per_layer": True}, "per_layer: False and True"),
        ({"sample_rate": 16000}, "sample_rate: 8000 and 16000"),
        ({"normalize": False}, "normalize: True and False"),
        ({"stored": "bfloat16"}, "stored: 'float32' and 'bfloat16'"),
        ({"encoder": {**ENCODER, "weights": "w1"}}, r"encoder\.weights: 'w0' and 'w1'"),
        ({"encoder": {**ENCODER, "dtype": "bfloat16"}}, r"encoder\.dtype: 'float32' and 'bfloat16'"),
    ],
)
def test_features_of_another_kind_are_refused(tmp_path, change, message):
    clips = write_clips(tmp_path, 1)
    fill_cache(clips, encoder, tmp_path / "cache", FINGERPRINT)
    other = dataclasses.replace(FINGERPRINT, **change)
    with pytest.raises(UserError, match=message):
        FeatureCache.open(tmp_path / "cache", other)
    with pytest.raises(UserError, match=message):
        fill_cache(clips, encoder, tmp_path / "cache", other)


def test_the_place_matters_only_while_adding_and_the_software_never(tmp_path):
    clips = write_clips(tmp_path, 2)
    first = {"clip 0": clips["clip 0"]}
    fill_cache(first, encoder, tmp_path / "cache", FINGERPRINT)
    elsewhere = dataclasses.replace(FINGERPRINT, device="TPU v6e", encoder={**ENCODER, "name": "/another/path"})
    assert len(FeatureCache.open(tmp_path / "cache", elsewhere)) == 1
    assert len(fill_cache(first, encoder, tmp_path / "cache", elsewhere)[0]) == 1
    with pytest.raises(UserError, match="device: 'cpu' and 'TPU v6e'"):
        fill_cache(clips, encoder, tmp_path / "cache", elsewhere)
    later = dataclasses.replace(FINGERPRINT, versions={"jax": "99"})
    assert len(fill_cache(clips, encoder, tmp_path / "cache", later)[0]) == 2


def test_a_folder_that_is_no_cache_is_refused(tmp_path):
    with pytest.raises(UserError, match="no feature cache"):
        FeatureCache.open(tmp_path, FINGERPRINT)
    (tmp_path / "fingerprint.json").write_text(json.dumps({"colour": "red"}))
    with pytest.raises(UserError, match="not a feature cache's fingerprint"):
        FeatureCache.open(tmp_path, FINGERPRINT)
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\)"):
        fill_cache({}, encoder, tmp_path / "fingerprint.json" / "cache", FINGERPRINT)


def test_clips_that_cannot_be_heard_are_named_together(tmp_path):
    clips = write_clips(tmp_path, 10)
    clips["clip 1"].write_text("not audio")
    clips["clip 4"].unlink()
    with pytest.raises(UserError, match=r"2 of 10 clips cannot be read \(allowed: 0.0%\)") as error:
        fill_cache(clips, encoder, tmp_path / "cache", FINGERPRINT, shard_clips=2)
    assert "1.wav: not audio" in str(error.value)
    assert "4.wav: No such file" in str(error.value)
    counting = CountingEncoder()
    cache, bad = fill_cache(clips, counting, tmp_path / "cache", FINGERPRINT, shard_clips=2, max_bad_fraction=0.2)
    assert counting.encoded == 0
    assert len(cache) == 8
    assert list(bad) == ["clip 1", "clip 4"]


def test_two_processes_do_not_hear_into_one_cache(tmp_path):
    clips, cache = write_clips(tmp_path, 2), tmp_path / "cache"
    with exclusive_lock(cache / ".lock", "busy"), pytest.raises(UserError, match="another process is encoding clips"):
        fill_cache(clips, encoder, cache, FINGERPRINT)
    assert not list(cache.glob("*.array_record"))
    assert len(fill_cache(clips, encoder, cache, FINGERPRINT)[0]) == 2


TOGETHER = """
import json, sys
from mlingo_jax.processes import initialize

initialize()
sys.path.insert(0, sys.argv[1])
from test_features import FINGERPRINT, CountingEncoder, fill_cache, Path

counting = CountingEncoder()
clips = {f"clip {i}": Path(sys.argv[2]) / f"{i}.wav" for i in range(9)}
cache, bad = fill_cache(clips, counting, Path(sys.argv[2]) / "cache", FINGERPRINT, shard_clips=2, max_bad_fraction=0.5)
print(json.dumps([counting.encoded, len(cache), bad]))
"""


def test_two_processes_hear_together(tmp_path):
    """Each its share; both know of all clips that cannot be read."""
    clips = write_clips(tmp_path, 9)
    clips["clip 2"].write_text("not audio")
    clips["clip 5"].unlink()
    said = run_two([sys.executable, "-c", TOGETHER, Path(__file__).parent, tmp_path])
    # Before them, the collectives speak of their connections.
    found = [json.loads(out.splitlines()[-1]) for out, _ in said]
    assert [encoded for encoded, *_ in found] == [4, 3]
    for _, cached, bad in found:
        assert cached == 7
        assert sorted(bad) == ["clip 2", "clip 5"]
    cache = FeatureCache(tmp_path / "cache")
    for name in clips.keys() - {"clip 2", "clip 5"}:
        np.testing.assert_array_equal(cache[name], expected(clips[name]))
    # The first one speaks for both.
    assert [re.findall(r"encoded \d of 9 clips", err) for _, err in said] == [["encoded 9 of 9 clips"], []]


def test_a_full_disk_leaves_the_finished_shards(tmp_path):
    """The second shard does not fit."""
    clips = write_clips(tmp_path, 1)
    cache, _ = fill_cache(clips, encoder, tmp_path / "cache", FINGERPRINT)
    soundfile.write(tmp_path / "long.wav", np.zeros(800_000), 8000)
    with full_disk(2000), pytest.raises(UserError, match="cannot be written"):
        fill_cache({**clips, "long": tmp_path / "long.wav"}, encoder, tmp_path / "cache", FINGERPRINT)
    assert len(list((tmp_path / "cache").glob("*.array_record"))) == 1
    assert not list((tmp_path / "cache").glob("*.partial"))
    np.testing.assert_array_equal(FeatureCache(tmp_path / "cache")["clip 0"], cache["clip 0"])


def test_an_encoders_own_failure_is_not_taken_for_the_disks(tmp_path):
    def failing(waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fill_cache(write_clips(tmp_path, 1), failing, tmp_path / "cache", FINGERPRINT)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"fingerprint.json", ".lock"}

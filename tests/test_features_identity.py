"""Kept features are those of a clip's own audio: what has changed is encoded again, what has not is not even read."""

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mlingo_jax.data import contents
from mlingo_jax.data.contents import UNKNOWN, Contents, digest_bytes, digest_file
from mlingo_jax.data.stored import Audio, StoredAudio
from mlingo_jax.errors import UserError
from mlingo_jax.features.cache import FeatureCache
from mlingo_jax.features.fill import fill_cache, find_encoded
from mlingo_jax.features.shards import shard_paths
from tests.test_features import FINGERPRINT, CountingEncoder, expected, write_clips


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """Files count as settled at once: no test waits for two seconds."""
    monkeypatch.setattr(contents, "_SETTLED_NS", -1_000_000_000)


def encoded(clips: Mapping[str, Audio], cache: Path) -> tuple[FeatureCache, int]:
    """The cache with these clips, and how many had to be encoded for it."""
    counting = CountingEncoder()
    return fill_cache(clips, counting, cache, FINGERPRINT, shard_clips=2)[0], counting.encoded


def change(path: Path, seed: int = 1) -> None:
    """Other audio of the same size, with the times that the file had."""
    before = path.stat()
    values = np.random.default_rng(seed).uniform(-1, 1, soundfile.info(path).frames)
    soundfile.write(path, values, 8000)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_audio_that_has_changed_is_heard_again_and_said(tmp_path, capsys):
    clips, cache = write_clips(tmp_path, 4), tmp_path / "cache"
    encoded(clips, cache)
    change(clips["clip 1"])
    clips["clip 2"].write_bytes(clips["clip 3"].read_bytes())
    found, count = encoded(clips, cache)
    assert count == 2
    for name, path in clips.items():
        np.testing.assert_array_equal(found[name], expected(path))
    assert "2 clips encoded again: their audio is not what was encoded under their names: clip 1; clip 2" in (
        capsys.readouterr().err
    )
    assert encoded(clips, cache)[1] == 0


def test_audio_that_changes_back_is_not_heard_again(tmp_path):
    clips, cache = write_clips(tmp_path, 2), tmp_path / "cache"
    first = clips["clip 0"].read_bytes()
    encoded(clips, cache)
    change(clips["clip 0"])
    encoded(clips, cache)
    clips["clip 0"].write_bytes(first)
    found, count = encoded(clips, cache)
    assert count == 0
    np.testing.assert_array_equal(found["clip 0"], expected(clips["clip 0"]))


def test_two_collections_that_call_their_clips_alike_share_a_cache(tmp_path):
    """Each gets its own features, whoever was encoded last."""
    one, another = tmp_path / "one", tmp_path / "another"
    one.mkdir()
    another.mkdir()
    collections = [write_clips(one, 3), write_clips(another, 3)]
    for path in collections[1].values():
        change(path)
    for clips in collections * 2:
        found, _ = encoded(clips, tmp_path / "cache")
        for name, path in clips.items():
            np.testing.assert_array_equal(found[name], expected(path))
    assert encoded(collections[0], tmp_path / "cache")[1] == 0


def test_a_cache_or_a_shard_of_the_same_names_and_other_audio_is_not_trusted(tmp_path):
    for folder in ("one", "another"):
        (tmp_path / folder).mkdir()
    clips, others = write_clips(tmp_path / "one", 4), write_clips(tmp_path / "another", 4)
    for path in others.values():
        change(path)
    encoded(others, tmp_path / "another cache")
    shutil.copytree(tmp_path / "another cache", tmp_path / "whole")
    encoded(clips, tmp_path / "cache")
    (foreign, *_), (own, *_) = (sorted(shard_paths(tmp_path / n)) for n in ("another cache", "cache"))
    own.write_bytes(foreign.read_bytes())
    for cache, count in (("whole", 4), ("cache", 2)):
        found, again = encoded(clips, tmp_path / cache)
        assert again == count
        for name, path in clips.items():
            np.testing.assert_array_equal(found[name], expected(path))


def test_a_shard_that_another_encoder_made_is_not_used_and_stays(tmp_path, capsys):
    clips = write_clips(tmp_path, 4)
    other = dataclasses.replace(FINGERPRINT, encoder={**FINGERPRINT.encoder, "weights": "w1"})
    fill_cache(clips, lambda ws: [np.full((2, 4), 7, np.float32) for _ in ws], tmp_path / "other", other, shard_clips=2)
    encoded(clips, tmp_path / "cache")
    shards = sorted(shard_paths(tmp_path / "other"))
    for shard in shards:
        (tmp_path / "cache" / shard.name).write_bytes(shard.read_bytes())
    assert FeatureCache(tmp_path / "cache").foreign == [tmp_path / "cache" / shard.name for shard in shards]
    found, count = encoded(clips, tmp_path / "cache")
    assert count == 4
    np.testing.assert_array_equal(found["clip 0"], expected(clips["clip 0"]))
    assert "2 shards made by another encoder or with other settings, and not used" in capsys.readouterr().err
    assert all((tmp_path / "cache" / shard.name).exists() for shard in shards)


def test_a_damaged_shard_is_put_aside_and_not_removed(tmp_path):
    clips, cache = write_clips(tmp_path, 2), tmp_path / "cache"
    encoded(clips, cache)
    (shard,) = shard_paths(cache)
    broken = shard.read_bytes()[:-100]
    shard.write_bytes(broken)
    assert encoded(clips, cache)[1] == 2
    assert shard.with_suffix(".damaged").read_bytes() == broken


def test_features_need_no_audio(tmp_path):
    clips, cache = write_clips(tmp_path, 2), tmp_path / "cache"
    before, _ = encoded(clips, cache)
    clips["clip 0"].unlink()
    found, count = encoded(clips, cache)
    assert count == 0
    np.testing.assert_array_equal(found["clip 0"], before["clip 0"])
    assert found.audio(list(clips)) == before.audio(list(clips))


def test_nothing_is_read_that_has_not_changed(tmp_path, monkeypatch):
    clips, cache = write_clips(tmp_path, 3), tmp_path / "cache"
    encoded(clips, cache)
    read = []
    monkeypatch.setattr(contents, "digest_file", lambda path: read.append(path) or digest_file(path))
    assert find_encoded(clips, cache) == ([True] * 3, {})
    assert read == []
    os.utime(clips["clip 1"])
    for _ in range(2):
        assert find_encoded(clips, cache) == ([True] * 3, {})
    assert read == [clips["clip 1"]]
    (cache / "audio.npy").write_bytes(b"nonsense")
    assert find_encoded(clips, cache) == ([True] * 3, {})
    assert len(read) == 4


def test_a_file_that_may_change_within_the_clocks_tick_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "_SETTLED_NS", 2_000_000_000)
    (tmp_path / "a").write_text("one")
    memory = Contents(tmp_path / "memory.npy")
    assert memory.digests([tmp_path / "a"]) == [digest_bytes(b"one")]
    memory.save()
    assert not (tmp_path / "memory.npy").exists()
    assert memory.digests([tmp_path / "missing", tmp_path / "a"]) == [UNKNOWN, digest_bytes(b"one")]


def test_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path):
    clips = write_clips(tmp_path, 2)
    path = clips["clip 1"]
    real = digest_file(path)

    def read(name: str) -> bytes:
        whole = tmp_path / "another.wav"
        soundfile.write(whole, np.random.default_rng(time.time_ns() % 1000).uniform(-1, 1, 1300), 8000)
        whole.replace(path)
        return clips[name].read_bytes()

    # The first clip's reading changes the second one's file.
    own = {"clip 0": StoredAudio("c", "clip 0", read), "clip 1": path}
    with pytest.raises(UserError, match=r"1\.wav: changed while it was read; give the same command again"):
        fill_cache(own, CountingEncoder(), tmp_path / "cache", FINGERPRINT)
    assert digest_file(path) != real
    assert "clip 1" not in FeatureCache(tmp_path / "cache")


def as_before(cache: Path, monkeypatch) -> None:
    """Makes a cache one of an earlier version: its shards know names and shapes alone."""
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    for shard in shard_paths(cache):
        reader = ArrayRecordReader(str(shard))
        *records, last = reader.read(list(range(reader.num_records())))
        reader.close()
        writer = ArrayRecordWriter(str(shard), "group_size:1,uncompressed")
        for record in records:
            writer.write(record)
        writer.write(json.dumps({name: shape for name, (shape, _) in json.loads(last)["clips"].items()}).encode())
        writer.close()


def test_a_cache_from_before_is_read_on_unless_the_audio_is_younger(tmp_path, monkeypatch):
    clips, cache = write_clips(tmp_path, 4), tmp_path / "cache"
    encoded(clips, cache)
    as_before(cache, monkeypatch)
    found, count = encoded(clips, cache)
    assert count == 0
    assert found.audio(list(clips)) is None
    change(clips["clip 1"])
    os.utime(clips["clip 1"])
    found, count = encoded(clips, cache)
    assert count == 1
    for name, path in clips.items():
        np.testing.assert_array_equal(found[name], expected(path))


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": "small"},
        {"encoder": {"weights": 5}},
        {"window": "325"},
        {"seconds": "30"},
        {"crops": True},
        {"stored": "int3"},
        {"versions": []},
        {"colour": "red"},
    ],
)
def test_a_fingerprint_that_is_none_is_one_line(tmp_path, changes):
    path = tmp_path / "fingerprint.json"
    path.write_text(json.dumps({**dataclasses.asdict(FINGERPRINT), **changes}))
    with pytest.raises(UserError, match=r"not a feature cache's fingerprint .*; put it back, or name another cache"):
        FeatureCache(tmp_path)
    for text in ("[]", "12", "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")):
        path.write_text(text)
        with pytest.raises(UserError, match=r"not a feature cache's fingerprint"):
            FeatureCache(tmp_path)

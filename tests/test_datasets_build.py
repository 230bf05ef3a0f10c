"""Building: the same records however it is run, complete or absent whatever happens, one at a time."""

import fcntl
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mlingo_jax.data.prepared import Prepared
from mlingo_jax.datasets import clips
from mlingo_jax.datasets.music_caps import MusicCaps
from mlingo_jax.errors import UserError
from tests.collections_of_music import MUSIC_CAPS, built, tone, tones, write_csv
from tests.full_disk import full_disk

COUNT = 11


def collection(folder: Path, *, missing: int = 2) -> tuple[Path, Path]:
    """(annotations, audio) of eleven short clips, of which a few are missing."""
    rows = [{**MUSIC_CAPS[i % 4], "ytid": f"clip-{i}", "start_s": 0, "end_s": 1} for i in range(COUNT)]
    audio = tones(folder / "audio", [f"clip-{i}.wav" for i in range(missing, COUNT)], 1.0)
    return write_csv(folder / "all.csv", rows), audio


def contents(data_dir: Path) -> dict[str, bytes]:
    """Every file of the prepared datasets."""
    positions = [data_dir / "clips", data_dir / "music_caps"]
    files = [path for place in positions for path in sorted(place.rglob("*")) if path.is_file()]
    return {str(path.relative_to(data_dir)): path.read_bytes() for path in files}


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(clips, "SHARD_CLIPS", 3)


@pytest.mark.usefixtures("small_shards")
def test_the_records_do_not_depend_on_the_number_of_workers(tmp_path):
    annotations, audio = collection(tmp_path)
    for workers in (1, 2, 7):
        built(MusicCaps, annotations, audio, tmp_path / str(workers), workers=workers)
    alone = contents(tmp_path / "1")
    assert len([name for name in alone if name.startswith("clips/") and "array_record" in name]) > 1
    assert contents(tmp_path / "2") == contents(tmp_path / "7") == alone


def test_threads_and_other_processes_may_read(tmp_path):
    annotations, audio = collection(tmp_path)
    built(MusicCaps, annotations, audio, tmp_path / "data")
    stored = Prepared(tmp_path / "data", "music_caps").clips
    names = [f"clip-{i}" for i in range(2, COUNT)] * 5
    with ThreadPoolExecutor(4) as pool:
        for name, clip in zip(names, pool.map(stored.__getitem__, names), strict=True):
            assert clip.audio == (audio / f"{name}.wav").read_bytes()
    assert pickle.loads(pickle.dumps(stored))["clip-3"] == stored["clip-3"]


def test_what_is_there_is_not_made_again(tmp_path):
    annotations, audio = collection(tmp_path)
    first = built(MusicCaps, annotations, audio, tmp_path / "data")
    (record,) = (tmp_path / "data" / "clips").rglob("*.array_record*")
    made = record.stat().st_ino
    assert built(MusicCaps, annotations, audio, tmp_path / "data") == first
    assert record.stat().st_ino == made


def test_more_audio_replaces_the_dataset(tmp_path):
    annotations, audio = collection(tmp_path)
    built(MusicCaps, annotations, audio, tmp_path / "data")
    tone(audio / "clip-0.flac", 1.0)
    (audio / "clip-5.wav").unlink()
    assert built(MusicCaps, annotations, audio, tmp_path / "data").clips["there"] == 9
    prepared = Prepared(tmp_path / "data", "music_caps")
    assert "clip-0" in prepared.clips
    assert "clip-5" not in prepared.clips
    assert {e.clip for split in prepared.splits for e in prepared.examples(split)} == {
        clip for clip, _, _ in prepared.clips.lengths()
    }
    assert [path.name for path in (tmp_path / "data" / ".building" / "music_caps").iterdir()] == []


def test_a_build_that_cannot_replace_leaves_what_was_there(tmp_path):
    annotations, audio = collection(tmp_path)
    built(MusicCaps, annotations, audio, tmp_path / "data")
    before = contents(tmp_path / "data")
    for path in list(audio.iterdir())[:5]:
        path.write_text("broken")
    with pytest.raises(UserError, match="4 of 11 clips can be used"):
        built(MusicCaps, annotations, audio, tmp_path / "data", min_share=0.5)
    assert contents(tmp_path / "data") == before


def test_ids_of_one_hash_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "clip_hash", lambda clip: 7)
    monkeypatch.setattr("mlingo_jax.data.prepared.clip_hash", lambda clip: 7)
    annotations, audio = collection(tmp_path)
    built(MusicCaps, annotations, audio, tmp_path / "data")
    stored = Prepared(tmp_path / "data", "music_caps").clips
    assert stored["clip-7"].audio == (audio / "clip-7.wav").read_bytes()
    with pytest.raises(UserError, match="there is no clip 'clip-0'"):
        stored["clip-0"]


def test_two_builds_at_once_are_refused(tmp_path):
    annotations, audio = collection(tmp_path)
    lock = tmp_path / "data" / ".building" / "music_caps.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is building music_caps there; wait for it"):
            built(MusicCaps, annotations, audio, tmp_path / "data")
    assert built(MusicCaps, annotations, audio, tmp_path / "data").clips["there"] == 9


KILLED = """
import os, signal, sys
from pathlib import Path

from mlingo_jax.datasets import build, check, clips
from mlingo_jax.datasets.music_caps import MusicCaps
from tests.collections_of_music import built

module, name, count = {"check": (clips, "check"), "rename": (os, "rename"), "replace": (os, "replace")}[sys.argv[1]] + (
    int(sys.argv[2]),
)
calls, real = [], getattr(module, name)

def mortal(*arguments, **others):
    calls.append(None)
    if len(calls) == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **others)

setattr(module, name, mortal)
clips.SHARD_CLIPS = 3
folder = Path(sys.argv[3])
built(MusicCaps, folder / "all.csv", folder / "audio", folder / "data", workers=1)
"""


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize(
    ("function", "count"), [("check", 1), ("check", 5), ("replace", 2), ("replace", 9), ("rename", 1), ("rename", 2)]
)
def test_a_killed_build_goes_on(tmp_path, function, count):
    annotations, audio = collection(tmp_path)
    built(MusicCaps, annotations, audio, tmp_path / "whole")
    command = [sys.executable, "-c", KILLED, function, str(count), str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "data" / "music_caps" / "1.0.0").exists()
    built(MusicCaps, annotations, audio, tmp_path / "data")
    made, whole = contents(tmp_path / "data"), contents(tmp_path / "whole")
    assert made == whole
    assert [path.name for path in (tmp_path / "data" / ".building" / "music_caps").iterdir()] == []


MORTAL = """
import os, signal, sys, threading
from pathlib import Path

from mlingo_jax.datasets import clips
from mlingo_jax.datasets.music_caps import MusicCaps
from tests.collections_of_music import built

clips.SHARD_CLIPS = 3
threading.Timer(float(sys.argv[1]), os.kill, (os.getpid(), signal.SIGKILL)).start()
folder = Path(sys.argv[2])
built(MusicCaps, folder / "all.csv", folder / "audio", folder / "data", workers=2)
os._exit(0)
"""


@pytest.mark.usefixtures("small_shards")
def test_a_build_killed_again_and_again_is_that_of_a_build_left_alone(tmp_path, kills):
    annotations, audio = collection(tmp_path)
    begin = time.perf_counter()
    built(MusicCaps, annotations, audio, tmp_path / "whole")
    whole, seconds = contents(tmp_path / "whole"), time.perf_counter() - begin
    moments = np.random.default_rng(kills).uniform(0, 1.5 * seconds, kills)
    for moment in moments:
        command = [sys.executable, "-c", MORTAL, str(moment), str(tmp_path)]
        done = subprocess.run(command, cwd=Path(__file__).parents[1], check=False)
        assert done.returncode in (0, -signal.SIGKILL)
        if (tmp_path / "data" / "music_caps" / "1.0.0").exists():
            assert contents(tmp_path / "data") == whole
            shutil.rmtree(tmp_path / "data")
    built(MusicCaps, annotations, audio, tmp_path / "data")
    assert contents(tmp_path / "data") == whole


@pytest.mark.usefixtures("small_shards")
def test_finished_shards_are_not_checked_again(tmp_path, monkeypatch):
    annotations, audio = collection(tmp_path, missing=0)
    command = [sys.executable, "-c", KILLED, "check", "8", str(tmp_path)]
    subprocess.run(command, cwd=Path(__file__).parents[1], check=False)
    checked = []
    real = clips.check
    monkeypatch.setattr(clips, "check", lambda task, tolerance: checked.append(task) or real(task, tolerance))
    (first, _) = sorted((tmp_path / "data" / ".building").rglob("*.array_record"))
    first.write_bytes(first.read_bytes()[:-50])
    built(MusicCaps, annotations, audio, tmp_path / "data")
    assert len(checked) == COUNT - 3


def test_a_disk_without_room_is_seen_first(tmp_path, monkeypatch):
    annotations, audio = collection(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"the clips need 0\.07 GB, there is room for 0\.00 GB"):
        built(MusicCaps, annotations, audio, tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.array_record"))


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    annotations, audio = collection(tmp_path)
    with full_disk(40_000), pytest.raises(UserError, match="cannot be written"):
        built(MusicCaps, annotations, audio, tmp_path / "data")
    assert not (tmp_path / "data" / "clips").exists()
    assert built(MusicCaps, annotations, audio, tmp_path / "data").clips["there"] == 9


@pytest.mark.filterwarnings("ignore")
def test_beam_makes_the_same_records(tmp_path):
    pytest.importorskip("apache_beam", reason="the extra `beam` is not installed")
    annotations, audio = collection(tmp_path)
    (audio / "clip-4.wav").write_text("broken")
    local = built(MusicCaps, annotations, audio, tmp_path / "local")
    beam = built(MusicCaps, annotations, audio, tmp_path / "beam", beam=("--runner=DirectRunner",))
    assert beam == local
    for name in ("hashes.npy", "clips.jsonl", "clips-clips.array_record-00000-of-00001"):
        made = (tmp_path / "beam" / "clips" / "music_caps" / "1.0.0" / name).read_bytes()
        assert made == (tmp_path / "local" / "clips" / "music_caps" / "1.0.0" / name).read_bytes()
    for path in audio.iterdir():
        path.write_text("broken")
    with pytest.raises(UserError, match="music_caps: none of 11 clips can be used"):
        built(MusicCaps, annotations, audio, tmp_path / "none", beam=("--runner=DirectRunner",))
    assert "tensorflow" not in sys.modules


def test_beam_that_is_not_installed_is_named(tmp_path, monkeypatch):
    annotations, audio = collection(tmp_path)
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    with pytest.raises(UserError, match=r"pip install mlingo_jax\[beam\]"):
        built(MusicCaps, annotations, audio, tmp_path / "data", beam=())


def test_reports_are_json(tmp_path):
    annotations, audio = collection(tmp_path)
    built(MusicCaps, annotations, audio, tmp_path / "data")
    report = json.loads((tmp_path / "data" / "reports" / "music_caps" / "report.json").read_text())
    assert report["clips"]["missing"] == 2
    assert report["kept"] == {"train": 5, "eval": 4}
    assert sorted((tmp_path / "data" / "reports" / "music_caps" / "missing.txt").read_text().split()) == [
        "clip-0",
        "clip-1",
    ]
    assert os.listdir(tmp_path / "data" / "reports") == ["music_caps"]

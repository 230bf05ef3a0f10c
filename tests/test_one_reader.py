"""All commands read the same files to the same samples, and refuse the same ones in the same words."""

import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

import mlingo_jax
from mlingo_jax import caption
from mlingo_jax.data.audio import AudioSettings
from mlingo_jax.data.examples import Example
from mlingo_jax.data.search import find_audio
from mlingo_jax.data.stored import StoredAudio, duration, read_ahead, read_clip
from mlingo_jax.datasets.build import Options, build
from mlingo_jax.datasets.check import Task, check
from mlingo_jax.datasets.manifest import Manifest
from mlingo_jax.errors import AudioWarning, UserError
from mlingo_jax.features.sources import OnlineAudio
from tests.audio_files import FORMATS, SECONDS, encoded
from tests.tiny import tiny_llama, tiny_mert

SETTINGS = AudioSettings(24000, normalize=False)


def hostile(folder: Path) -> list[str]:
    """Ten files that cannot be read, each in a way of its own."""
    wav = encoded("wav", 0.5)
    contents = {
        "empty.wav": b"",
        "page.mp3": b"<html>404 Not Found</html>" * 40,
        "pointer.flac": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "cut.aiff": encoded("aiff", 0.5)[:20000],
        "cut.ogg": encoded("ogg", 0.5)[:-300],
        "cut.m4a": encoded("m4a", 0.5)[:-300],
        "claims.au": encoded("au", 0.5)[:8] + b"\x0f\xff\xff\xff" + encoded("au", 0.5)[12:],
        os.fsdecode(b"caf\xe9.wav"): wav[:5000],
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "dangling.wav").symlink_to(folder / "gone.wav")
    os.mkfifo(folder / "pipe.wav")
    return [*contents, "dangling.wav", "pipe.wav"]


@pytest.mark.parametrize("kind", [*FORMATS, "cut", "junk"])
def test_every_command_reads_a_file_alike(kind, tmp_path):
    """What a run takes from a file, what `prepare` stores and what is read from its records; or why not."""
    content = {"cut": encoded("aiff")[:9999], "junk": encoded("au") + b"junk"}.get(kind) or encoded(kind)
    path = tmp_path / "song.x"
    path.write_bytes(content)
    checked, clip = check(Task("song", str(path)), 1.0)
    stored = StoredAudio("songs", "song", lambda _: clip.audio if clip else content)
    rows = OnlineAudio(SETTINGS, 30.0, tokens=lambda n: n, minimum=400)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AudioWarning)
        _, fields = rows.load(Example("song", path, "", "", None, ""), None)
        read = dict(read_ahead([("file", path), ("record", stored)], SETTINGS, 400))
    if kind == "cut":
        assert checked.reason == str(read["file"]) == fields["unreadable"]
        assert str(read["record"]).removeprefix("songs: clip song") == checked.reason.removeprefix(str(path))
        assert duration(path) is None
        return
    file, record, length = read["file"], read["record"], int(fields["waveform_length"])
    assert isinstance(file, np.ndarray)
    assert isinstance(record, np.ndarray)
    np.testing.assert_array_equal(file, record)
    np.testing.assert_array_equal(file, fields["waveform"][:length])
    assert checked.seconds == duration(path) == duration(stored)
    assert checked.seconds == pytest.approx(length / 24000, abs=1e-4)
    assert bool(checked.notes) == (kind == "junk")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> mlingo_jax.MusiLingo:
    folder = tmp_path_factory.mktemp("model")
    tiny_mert(folder / "mert")
    tiny_llama(folder / "llm")
    return mlingo_jax.load(folder / "mert", folder / "llm", dtype="float32")


def test_a_folder_of_300_files_with_ten_hostile_ones(model, tmp_path, monkeypatch, capsys):
    music = tmp_path / "music"
    (music / "album").mkdir(parents=True)
    names = hostile(music)
    kinds = {"wav": "wav", "flac": "flac", "mp3": "mp3", "ogg": "ogg", "m4a": "m4a", "wma": "wma", "opus": "opus"}
    for number in range(289):
        kind, suffix = list(kinds.items())[number % len(kinds)]
        (music / "album" / f"{number}.{suffix}").write_bytes(encoded(kind, 0.5))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "linked.webm").write_bytes(encoded("webm", 0.5))
    (music / "linked").symlink_to(tmp_path / "elsewhere")
    (music / "album" / "loop").symlink_to(music)
    (music / "cover.jpg").write_bytes(b"a picture")
    (music / "album" / "notes.TXT").write_bytes(b"a text")
    output = tmp_path / "out.jsonl"
    monkeypatch.setattr(caption, "_load", lambda _: model)
    words = ["caption", str(music), "--question", "What?", "--output", str(output), "--max_new_tokens=2"]
    monkeypatch.setattr(sys, "argv", [*words, "--batch_size=64"])
    assert caption.main() == 1
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    errors = {os.path.basename(line["file"]): line["error"] for line in lines if "error" in line}
    assert len(lines) == 300
    assert sum("answer" in line for line in lines) == 290
    assert sorted(errors) == sorted(names)
    assert len({error.partition(": ")[2] for error in errors.values()}) == 10
    said = capsys.readouterr().err
    assert "290 of 300 files answered; 10 cannot be read: see the lines with an error" in said
    assert "passed over in folders, as no audio by their extensions: 1 .jpg, 1 .txt" in said


def test_links_to_nowhere_do_not_end_prepare(tmp_path):
    """They are unreadable like other files, and the report says why."""
    audio = tmp_path / "audio"
    audio.mkdir()
    (audio / "good.m4a").write_bytes(encoded("m4a"))
    (audio / "dangling.wav").symlink_to(audio / "gone")
    (audio / "loop.wav").symlink_to(audio / "loop.wav")
    names = ["good.m4a", "dangling.wav", "loop.wav", "missing.wav"]
    lines = [json.dumps({"audio": name, "question": "What?", "answer": "A bell."}) for name in names]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    report = build(Manifest, [tmp_path / "own.jsonl"], [audio], tmp_path / "data", options=Options(workers=1))
    assert report.clips["there"] == 1
    assert report.clips["unreadable"] + report.clips["missing"] == 3
    # Nothing has changed: the dataset is found there.
    again = build(Manifest, [tmp_path / "own.jsonl"], [audio], tmp_path / "data", options=Options(workers=1))
    assert again == report


def test_an_error_of_any_kind_is_that_file_s(tmp_path):
    def read(_: str) -> bytes:
        raise RuntimeError("the record is damaged")

    (_, error), (_, waveform) = read_ahead(
        [("bad", StoredAudio("songs", "a", read)), ("good", _wav(tmp_path / "a.wav"))], SETTINGS, 400
    )
    assert str(error) == "songs: clip a: its record cannot be read (RuntimeError: the record is damaged)"
    assert isinstance(waveform, np.ndarray)
    with pytest.raises(UserError, match="its record cannot be read"):
        read_clip(StoredAudio("songs", "a", read), SETTINGS, minimum=400)


def _wav(path: Path, seconds: float = SECONDS) -> Path:
    soundfile.write(path, np.zeros(round(24000 * seconds), np.int16), 24000)
    return path


def test_what_is_read_ahead_is_bounded_by_its_bytes(tmp_path):
    """A minute's waveform is 5.8 MB: of twenty clips only a few wait while the first one is looked at."""
    minute, read = _wav(tmp_path / "minute.wav", 60.0).read_bytes(), []

    def encoded_clip(clip: str) -> bytes:
        read.append(clip)
        return minute

    clips = {f"{n}": StoredAudio("songs", f"{n}", encoded_clip) for n in range(20)}
    given = []
    for name, waveform in read_ahead(clips.items(), SETTINGS, 400, most_bytes=20_000_000):
        assert isinstance(waveform, np.ndarray)
        given.append(name)
        assert len(read) - len(given) <= 3
    assert given == list(clips)


def test_a_folder_without_audio_says_what_is_in_it(tmp_path):
    (tmp_path / "a.xyz").write_text("")
    with pytest.raises(UserError, match=r"no audio file in .* \(passed over .*: 1 \.xyz\); searched for"):
        find_audio([str(tmp_path)])

"""The prepare command as its users meet it: its commands as processes, and fetching from a web server on this
machine."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mlingo_jax.data.prepared import Prepared
from tests.collections_of_music import MUSIC_CAPS, music_caps, tone, write_csv

RATE = 8000
IDS = [str(row["ytid"]) for row in MUSIC_CAPS]


def prepare(*arguments: str | Path, path: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlingo_jax.prepare", *map(str, arguments)]
    environment = {**os.environ, **({} if path is None else {"PATH": path})}
    return subprocess.run(
        command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True, check=False
    )


def test_a_dataset_is_prepared_and_reported(tmp_path):
    annotations, audio = music_caps(tmp_path)
    (audio / f"{IDS[0]}.wav").unlink()
    arguments = "music_caps", "--annotations", annotations, "--audio", audio, "--data_dir", tmp_path / "data"
    done = prepare(*arguments, "--workers", "2", "--min_share", "0.5")
    assert (done.returncode, done.stderr) == (0, "")
    assert "missing                              1  25.0%" in done.stdout
    assert "examples in train                      2  of 2 annotated (2,663 published)" in done.stdout
    reports = tmp_path / "data" / "reports" / "music_caps"
    assert done.stdout.endswith(f"which clips are not used, and why: {reports}\n")
    assert (reports / "missing.txt").read_text() == f"{IDS[0]}\n"
    assert Prepared(tmp_path / "data", "music_caps").splits == {"eval": 1, "train": 2}
    again = prepare(*arguments)
    assert (again.returncode, again.stdout) == (0, done.stdout)


def test_annotations_beside_their_audio_and_a_config(tmp_path):
    row = {"audio": "1.wav", "question": "What plays?", "answer": "A bell."}
    write_csv(tmp_path / "mine.csv", [row])
    tone(tmp_path / "1.wav", 1.0)
    done = prepare(
        "manifest", "--annotations", tmp_path / "mine.csv", "--data_dir", tmp_path / "data", "--config", "mine"
    )
    assert done.returncode == 0
    assert len(Prepared(tmp_path / "data", "manifest/mine").examples("train")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--min_share", "2"], "error: --min_share: expected a share between 0 and 1, found 2\n"),
        (["--workers", "0"], "error: --workers: expected at least 1, found 0\n"),
        (["--length_tolerance", "-1"], "error: --length_tolerance: expected at least 0 seconds, found -1\n"),
        (["--min_share", "1"], "clips can be used, expected a share of at least 1; see "),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, arguments, message):
    annotations, audio = music_caps(tmp_path)
    (audio / f"{IDS[0]}.wav").unlink()
    done = prepare(
        "music_caps", "--annotations", annotations, "--audio", audio, "--data_dir", tmp_path / "data", *arguments
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_names_every_command(tmp_path):
    done = prepare("--help")
    assert done.returncode == 0
    for name in ("music_caps", "music_instruct", "music_qa", "lp_music_caps", "song_describer", "manifest", "fetch"):
        assert name in done.stdout
    assert "--min_share" in prepare("lp_music_caps", "--help").stdout


class Recordings(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; counts what was asked for; refuses the name "busy"."""

    asked: list[str] = []  # noqa: RUF012 - http.server makes an instance for each request

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if "busy" in self.path:
            self.send_error(429)
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def recordings(tmp_path) -> Iterator[tuple[Path, str]]:
    """(folder, address with {id}): recordings of three minutes in which the pitch tells the time; no ffmpeg needed."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    time = np.arange(180 * RATE) / RATE
    for name in IDS[:3]:
        soundfile.write(folder / f"{name}.wav", 0.4 * np.sin(2 * np.pi * (100 + 5 * np.floor(time)) * time), RATE)
    Recordings.asked.clear()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *arguments: Recordings(*arguments, directory=str(folder))
    )
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/{{id}}.wav"
        server.shutdown()
        thread.join()


def fetch(annotations: Path, audio: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    options = "--pause", "0", "--url", url, *arguments
    # Without ffmpeg on the PATH, the whole recording comes and is cut here.
    return prepare("fetch", "music_caps", "--annotations", annotations, "--audio", audio, *options, path="")


def test_fetch_gets_the_right_seconds_once(tmp_path, recordings):
    pytest.importorskip("yt_dlp", reason="the extra `fetch` is not installed")
    folder, url = recordings
    annotations, audio = write_csv(tmp_path / "all.csv", MUSIC_CAPS), tmp_path / "clips"
    done = fetch(annotations, audio, url, "--jobs", "3")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["0", "3", "1", "0"]
    assert sorted(path.name for path in audio.iterdir() if not path.name.startswith(".")) == sorted(
        [*(f"{name}.flac" for name in IDS[:3]), "failures.jsonl"]
    )
    for row in MUSIC_CAPS[:3]:
        whole, _ = soundfile.read(folder / f"{row['ytid']}.wav")
        clip, rate = soundfile.read(audio / f"{row['ytid']}.flac")
        assert rate == RATE
        np.testing.assert_array_equal(clip, whole[int(row["start_s"]) * RATE : int(row["end_s"]) * RATE])
    (failure,) = map(json.loads, (audio / "failures.jsonl").read_text().splitlines())
    assert failure["clip"] == IDS[3]
    assert "HTTP Error 404" in failure["reason"]
    Recordings.asked.clear()
    again = fetch(annotations, audio, url)
    assert [line.split()[-1] for line in again.stdout.splitlines()] == ["3", "0", "0", "1"]
    assert Recordings.asked == []
    (folder / f"{IDS[3]}.wav").write_bytes((folder / f"{IDS[0]}.wav").read_bytes())
    last = fetch(annotations, audio, url, "--retry")
    assert [line.split()[-1] for line in last.stdout.splitlines()] == ["3", "1", "0", "0"]


def test_fetch_names_what_came_but_is_of_no_use(tmp_path, recordings):
    pytest.importorskip("yt_dlp", reason="the extra `fetch` is not installed")
    folder, url = recordings
    (folder / f"{IDS[0]}.wav").write_bytes(b"RIFF but no audio")
    tone(folder / f"{IDS[1]}.wav", 4.0)
    annotations = write_csv(tmp_path / "all.csv", MUSIC_CAPS[:2])
    fetch(annotations, tmp_path / "clips", url)
    failures = map(json.loads, (tmp_path / "clips" / "failures.jsonl").read_text().splitlines())
    reasons = {failure["clip"]: failure["reason"] for failure in failures}
    assert reasons[IDS[0]].startswith("recording.wav: not audio")
    assert reasons[IDS[1]] == "the recording has only 4.0 of the 10.0 seconds from 0.0 s on"


def test_fetch_stops_when_the_server_has_had_enough(tmp_path, recordings):
    pytest.importorskip("yt_dlp", reason="the extra `fetch` is not installed")
    _, url = recordings
    rows = [{**MUSIC_CAPS[0], "ytid": name} for name in ("busy", "one", "two", "three")]
    done = fetch(write_csv(tmp_path / "all.csv", rows), tmp_path / "clips", url, "--jobs", "1")
    assert done.returncode == 1
    assert "busy: the server refuses to go on" in done.stderr
    assert not any("two" in path for path in Recordings.asked)
    assert not (tmp_path / "clips" / "failures.jsonl").exists()


def test_fetch_says_what_it_needs(tmp_path):
    annotations = write_csv(tmp_path / "all.csv", MUSIC_CAPS)
    done = fetch(annotations, tmp_path / "clips", "http://127.0.0.1/")
    assert (done.returncode, done.stderr) == (
        1,
        "error: --url: expected {id} in it, for the clip's id, found 'http://127.0.0.1/'\n",
    )

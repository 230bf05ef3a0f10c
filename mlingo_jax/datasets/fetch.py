"""Gets MusicCaps' clips that are still public, with yt-dlp: the right seconds only, a few at once, politely.

A clip is there or not: it is written under a hidden name and then renamed. What failed is in failures.jsonl, with the
reason, and is not tried again unless asked for.
"""

import importlib.util
import json
import os
import re
import shutil
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mlingo_jax.data.annotations import Annotation
from mlingo_jax.data.convert import cut, has_ffmpeg
from mlingo_jax.data.lookup import AudioFolders
from mlingo_jax.errors import UserError
from mlingo_jax.files import exclusive_lock

FAILURES = "failures.jsonl"
_WORK = ".fetching"
# What servers say to those who ask too much; asking on would make it worse.
_REFUSALS = ("HTTP Error 429", "Too Many Requests", "not a bot", "rate-limited")
# A recording that ends so little before the clip does is as good.
_SHORTER_SECONDS = 1.0


@dataclass(frozen=True)
class Limits:
    """jobs: clips at once. pause: seconds that a job waits after each. bytes_per_second: of each job."""

    jobs: int
    pause: float
    bytes_per_second: float


@dataclass
class Fetched:
    """How many clips were there before, were got now, failed now, and were left out because they failed before."""

    there: int = 0
    got: int = 0
    failed: int = 0
    left_out: int = 0

    def table(self) -> str:
        """For the screen."""
        rows = (
            ("there before", self.there),
            ("got", self.got),
            ("failed", self.failed),
            ("failed before", self.left_out),
        )
        return "\n".join(f"{name:<16}{count:>8,}" for name, count in rows)


def fetch(clips: Iterable[Annotation], folder: Path, url: str, limits: Limits, *, retry: bool = False) -> Fetched:
    """Puts clips that are not there yet into `folder` as ID.flac.

    clips: each with the start and length of the piece that is wanted. url: where a recording is, with {id} for its id.
    retry: try again what failed in an earlier run.

    Raises UserError if yt-dlp is not installed, the folder cannot be written, or the server refuses to go on.
    """
    if "{id}" not in url:
        raise UserError(f"--url: expected {{id}} in it, for the clip's id, found {url!r}")
    if importlib.util.find_spec("yt_dlp") is None:
        raise UserError("fetching needs yt-dlp; install it by `pip install mlingo_jax[fetch]`")
    with exclusive_lock(
        folder / ".lock", f"{folder}: another process is fetching into it; wait for it, or give another folder"
    ):
        there, failed = AudioFolders([folder]), set() if retry else _read_failures(folder)
        counts, todo = Fetched(), []
        for clip in clips:
            if there.find(clip.names):
                counts.there += 1
            elif clip.clip in failed:
                counts.left_out += 1
            else:
                todo.append(clip)
        try:
            _fetch_all(todo, folder, url, limits, counts)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror})") from error
        finally:
            shutil.rmtree(folder / _WORK, ignore_errors=True)
    return counts


def _fetch_all(todo: Sequence[Annotation], folder: Path, url: str, limits: Limits, counts: Fetched) -> None:
    stop, lock = threading.Event(), threading.Lock()
    with tqdm(desc="fetching", total=len(todo), unit="clip", disable=None) as bar:

        def work(clip: Annotation) -> None:
            if stop.is_set():
                return
            reason = _fetch_one(clip, folder, url.replace("{id}", clip.clip), limits)
            with lock:
                if reason is None:
                    counts.got += 1
                elif any(refusal in reason for refusal in _REFUSALS):
                    stop.set()
                    raise UserError(f"{clip.clip}: the server refuses to go on ({reason}); wait, then run this again")
                else:
                    counts.failed += 1
                    _note_failure(folder, clip.clip, reason)
                bar.update()
            stop.wait(limits.pause)

        with ThreadPoolExecutor(limits.jobs) as pool:
            try:
                done, _ = wait([pool.submit(work, clip) for clip in todo], return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)


def _fetch_one(clip: Annotation, folder: Path, url: str, limits: Limits) -> str | None:
    """Gets one clip; the reason if that fails. Raises OSError if the folder cannot be written."""
    # Slow to import, and an extra.
    from yt_dlp import YoutubeDL
    from yt_dlp.utils import YoutubeDLError

    start = clip.start
    end = start + (clip.seconds or 0)
    place = folder / _WORK / clip.clip
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    options: Any = {
        "format": "bestaudio/best",
        "outtmpl": str(place / "recording.%(ext)s"),
        "ratelimit": limits.bytes_per_second,
        "retries": 3,
        "socket_timeout": 30,
        "noplaylist": True,
        "cachedir": False,
        "quiet": True,
        "noprogress": True,
        "no_color": True,
        "logger": _Silent(),
    }
    cut_by_ffmpeg = has_ffmpeg()
    if cut_by_ffmpeg:
        options["download_ranges"] = lambda *_: [{"start_time": start, "end_time": end}]
    try:
        with YoutubeDL(options) as downloader:
            downloader.download([url])
        (recording,) = place.glob("recording.*")
        made = place / "clip.flac"
        begin = 0.0 if cut_by_ffmpeg else start
        found = cut(recording, made, begin, begin + end - start)
        if found < end - start - _SHORTER_SECONDS:
            return f"the recording has only {found:.1f} of the {end - start:.1f} seconds from {start:.1f} s on"
        os.replace(made, folder / f"{clip.clip}.flac")
    except (YoutubeDLError, UserError, ValueError) as error:
        return re.sub(r"\s+", " ", str(error).removeprefix("ERROR: "))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return None


class _Silent:
    """yt-dlp's messages: its errors come as exceptions, too."""

    def debug(self, message: str) -> None:
        pass

    warning = error = debug


def _note_failure(folder: Path, clip: str, reason: str) -> None:
    with (folder / FAILURES).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"clip": clip, "reason": reason}) + "\n")


def _read_failures(folder: Path) -> set[str]:
    """The clips that failed in earlier runs; a last line that was cut off by a kill is nothing."""
    path = folder / FAILURES
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return {json.loads(line)["clip"] for line in lines if line.endswith("}")}

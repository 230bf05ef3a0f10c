"""Recordings that one set trains on and another evaluates on, known by their ids.

`evaluation_ids/` has a digest of each id: an id can be looked up, the lists cannot be read.
"""

import functools
import hashlib
import re
from importlib import resources

LISTED = {"music_caps_eval": "youtube", "song_describer": "jamendo"}
"""The lists there are, and whose ids are in them."""

_DIGITS = 10
_JAMENDO_NAME = re.compile(r"(?:.*/)?(?:track_)?0*(\d+)(?:\.2min|\.low)?(?:\.(?:mp3|wav|flac|ogg|npy))?")
_MUSIC_BENCH_NAME = re.compile(r"(?:.*/)([\w-]{11})(?:_\d+)?\.wav")
_MUSIC_QA_FOLDER = re.compile(r"(^|/)0\d/\d+(\.low)?\.\w+$")


def is_listed(name: str, collection: str, clip: str) -> bool:
    """Whether a clip of a collection ("youtube", "jamendo") is in one of the lists."""
    return LISTED[name] == collection and digest(collection, plain_id(clip)) in _digests(name)


def is_music_qa_evaluation(path: str) -> bool:
    """Whether MusicQA evaluates on a track of MTG-Jamendo, by its path: it took the folders 00 to 09."""
    return _MUSIC_QA_FOLDER.search(path) is not None


def plain_id(clip: str) -> str:
    """An id without what sets write around it.

    `48/1004048.low.mp3`, `track_1004048` and `1004048` are one track; MusicBench's `data_aug2/-0Gj8-vB1q4_1.wav` is a
    clip of MusicCaps.
    """
    if found := _JAMENDO_NAME.fullmatch(clip) or _MUSIC_BENCH_NAME.fullmatch(clip):
        return found[1]
    return clip


def digest(collection: str, clip: str) -> str:
    """How a list names a clip: ten hexadecimal digits of a hash."""
    return hashlib.sha256(f"{collection}:{clip}".encode()).hexdigest()[:_DIGITS]


@functools.cache
def _digests(name: str) -> frozenset[str]:
    text = (resources.files("mlingo_jax.data") / "evaluation_ids" / f"{name}.txt").read_text(encoding="utf-8")
    return frozenset(line for line in text.splitlines() if line and not line.startswith("#"))

"""What a clip's audio is, told by its bytes and not by its name.

A digest is the first half of the SHA-256 of an encoded file's bytes, 32 hexadecimal digits. A file is read for it only
where that is needed: one that has the size and the times (of its data and of its inode) that it had when it was last
read has not changed. So a million files cost a million `stat`s (16 us each), not 400 GB of reading.

Axes: N files.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import UInt64

from mlingo_jax.data.stored import Audio
from mlingo_jax.errors import UserError
from mlingo_jax.files import atomic_replace, sha256_of

UNKNOWN = ""
"""In place of a digest: there is no such file, or nobody knows it."""

DIGITS = 32
# A file may change again within its file system's tick and keep its times: what is younger is not taken on trust.
_SETTLED_NS = 2_000_000_000
_FIELDS = np.dtype([("path", "<u8"), ("size", "<i8"), ("data", "<i8"), ("inode", "<i8"), ("digest", "<u8", 2)])


def digest_words(digest: str) -> tuple[int, int]:
    """A digest as two words of 64 bits; zeros if it is `UNKNOWN`."""
    return (int(digest[:16], 16), int(digest[16:], 16)) if digest else (0, 0)


def digest_text(words: UInt64[np.ndarray, "2"]) -> str:
    """The digest of two words."""
    first, second = int(words[0]), int(words[1])
    return f"{first:016x}{second:016x}" if first or second else UNKNOWN


def digest_bytes(encoded: bytes) -> str:
    """The digest of an encoded file's bytes."""
    return hashlib.sha256(encoded).hexdigest()[:DIGITS]


def digest_file(path: Path) -> str:
    """The digest of a file's bytes; `UNKNOWN` if it cannot be read."""
    try:
        return sha256_of(path)[:DIGITS]
    except (OSError, ValueError):
        return UNKNOWN


def digest_audio(audio: Audio) -> str:
    """The digest of a clip's audio as it is now; `UNKNOWN` if it cannot be read."""
    if isinstance(audio, Path):
        return digest_file(audio)
    try:
        return digest_bytes(audio.read(audio.clip)) if audio.digest is None else audio.digest(audio.clip)
    except UserError:
        return UNKNOWN


def file_state(path: str | Path) -> tuple[int, int, int] | None:
    """A file's size in bytes, and the times of its data and of its inode in ns; None if it is not there."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def changed(audio: Audio) -> int:
    """When a clip's audio was written last, in ns; 0 if it is not there."""
    if not isinstance(audio, Path):
        return audio.made
    state = file_state(audio)
    return state[1] if state else 0


class Contents:
    """The digests of files, remembered in a file of this path; to lose it costs time and nothing else."""

    def __init__(self, path: Path):
        self._path = path
        self._known = _read(path)
        self._new: dict[int, tuple[int, int, int, str]] = {}

    def digests(self, audio: Sequence[Audio]) -> list[str]:
        """The digest of each clip's audio; `UNKNOWN` where there is none any more. Reads what may have changed."""
        files = {n: a for n, a in enumerate(audio) if isinstance(a, Path)}
        of_file = dict(zip(files, self._of_files(list(files.values())), strict=True))
        return [of_file[n] if isinstance(a, Path) else digest_audio(a) for n, a in enumerate(audio)]

    def _of_files(self, paths: Sequence[Path]) -> list[str]:
        found = self._remembered(paths)
        unread = [n for n, digest in enumerate(found) if digest == UNKNOWN]
        before = time.time_ns()
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            for n, digest in zip(unread, pool.map(digest_file, [paths[n] for n in unread]), strict=True):
                found[n] = digest
        self.learn([paths[n] for n in unread], [found[n] for n in unread], before=before)
        return found

    def learn(self, paths: Sequence[Path], digests: Sequence[str], *, before: int) -> None:
        """Remembers the digests of files that were read after the time `before` (ns), if they are older than that."""
        for path, digest in zip(paths, digests, strict=True):
            state = file_state(path)
            if digest and state is not None and max(state[1:]) < before - _SETTLED_NS:
                self._new[_key(path)] = (*state, digest)

    def save(self) -> None:
        """Writes what was learnt. A folder that cannot be written keeps what it had."""
        if not self._new:
            return
        rows = [(key, *state, digest_words(digest)) for key, (*state, digest) in self._new.items()]
        new = np.array(rows, _FIELDS)
        merged = np.concatenate([new, self._known])
        _, first = np.unique(merged["path"], return_index=True)
        self._known, self._new = merged[first], {}
        with contextlib.suppress(OSError), atomic_replace(self._path) as partial, partial.open("wb") as file:
            np.save(file, self._known)

    def _remembered(self, paths: Sequence[Path]) -> list[str]:
        """The digests of those files that are as they were; `UNKNOWN` for the others."""
        if not len(self._known) or not paths:
            return [UNKNOWN] * len(paths)
        keys = np.array([_key(path) for path in paths], np.uint64)
        now = np.array([file_state(path) or (-1, -1, -1) for path in paths], np.int64)
        rows = self._known[np.minimum(self._known["path"].searchsorted(keys), len(self._known) - 1)]
        then = np.stack([rows["size"], rows["data"], rows["inode"]], axis=1)
        same = (rows["path"] == keys) & (then == now).all(axis=1)
        return [digest_text(words) if is_same else UNKNOWN for words, is_same in zip(rows["digest"], same, strict=True)]


def _read(path: Path) -> np.ndarray:
    try:
        known = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return np.empty(0, _FIELDS)
    return known if known.dtype == _FIELDS and known.ndim == 1 else np.empty(0, _FIELDS)


def _key(path: Path) -> int:
    return int.from_bytes(hashlib.sha256(os.fsencode(os.path.abspath(path))).digest()[:8], "little")

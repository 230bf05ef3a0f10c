"""Finds audio files in folders: one list of extensions for all commands. What such a file is, its bytes say."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from mlingo_jax.errors import UserError

SUFFIXES = frozenset(
    (".3gp", ".aac", ".aif", ".aifc", ".aiff", ".asf", ".au", ".bwf", ".caf", ".flac", ".m4a", ".m4b", ".mka", ".mkv",
     ".mov", ".mp2", ".mp3", ".mp4", ".mpga", ".oga", ".ogg", ".opus", ".rf64", ".snd", ".sph", ".spx", ".voc", ".w64",
     ".wav", ".wave", ".weba", ".webm", ".wma")
)  # fmt: skip
"""Extensions of files that folders are searched for, in lower case."""


@dataclass
class Found:
    """What folders hold.

    files: the audio files, sorted in each folder, none twice. passed_over: how many other files have which extension.
    closed: folders that cannot be read, and why.
    """

    files: list[str] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    closed: list[str] = field(default_factory=list)

    def left_out(self) -> str:
        """What was not taken, in a line; "" if all was."""
        kinds = [f"{count:,} {suffix or 'without an extension'}" for suffix, count in self.passed_over.most_common()]
        others = [f"passed over in folders, as no audio by their extensions: {', '.join(kinds)}"] if kinds else []
        return "; ".join([*others, *(f"not searched: {reason}" for reason in self.closed)])


def find_audio(paths: Iterable[str], suffixes: Iterable[str] = SUFFIXES) -> Found:
    """Files that are named as they are, those in folders (at all levels, links followed) by extension; none twice.

    Raises UserError for a folder that holds no audio file.
    """
    found = Found()
    for path in paths:
        if not os.path.isdir(path):
            found.files.append(path)
            continue
        here = search(path, suffixes)
        if not here.files:
            others = f" ({left_out})" if (left_out := here.left_out()) else ""
            raise UserError(f"{path}: no audio file in this folder{others}; searched for {', '.join(sorted(SUFFIXES))}")
        found.files += here.files
        found.passed_over += here.passed_over
        found.closed += here.closed
    found.files = list(dict.fromkeys(found.files))
    return found


def search(folder: str, suffixes: Iterable[str] = SUFFIXES) -> Found:
    """The audio files below a folder. Linked folders are entered, each real folder once; hidden ones are left alone."""
    found, seen, suffixes = Found(), set(), frozenset(suffixes)

    def note_closed(error: OSError) -> None:
        found.closed.append(f"{error.filename}: {error.strerror}")

    for place, folders, names in os.walk(folder, followlinks=True, onerror=note_closed):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in suffixes and not name.startswith("."):
                found.files.append(os.path.join(place, name))
            elif not name.startswith("."):
                found.passed_over[suffix] += 1
    found.files.sort()
    return found

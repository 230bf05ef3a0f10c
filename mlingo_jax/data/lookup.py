"""Finds a clip's audio file by its id, whatever the extension and the sub-folder."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from mlingo_jax.errors import UserError
from mlingo_jax.wording import counted

DECODED = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")
"""Extensions of what libsndfile reads; other files go through ffmpeg."""
CONVERTED = (".m4a", ".mp4", ".aac", ".webm", ".wma")
ARRAY = ".npy"
_SUFFIXES = (*DECODED, *CONVERTED, ARRAY)
_NAMED = 5


def stem(name: str) -> str:
    """A file's name without folder and audio extension; other dots are part of the name."""
    base = name.replace("\\", "/").rsplit("/", 1)[-1]
    head, suffix = os.path.splitext(base)
    return head if suffix.lower() in _SUFFIXES else base


class AudioFolders:
    """The audio files below some folders, by name. Hidden files (downloads in work, for some) are no audio files."""

    def __init__(self, folders: Sequence[Path]):
        """Raises UserError if a folder does not exist."""
        self._folders = folders
        self._files: dict[str, list[str]] = {}
        for folder in folders:
            if not folder.is_dir():
                raise UserError(f"{folder}: there is no such folder of audio")
            for path in _walk(folder):
                self._files.setdefault(stem(path), []).append(path)

    def __len__(self) -> int:
        return sum(map(len, self._files.values()))

    def find(self, names: Iterable[str]) -> list[Path]:
        """All files of a clip that goes by any of these names; none if it is missing.

        A name that is a path below one of the folders is that one file.
        """
        for name in names:
            for folder in self._folders:
                # os.path.isfile is False for what can be no path, where Path.is_file raises.
                if os.path.isfile(folder / name):
                    return [folder / name]
        return sorted({Path(path) for name in names for path in self._files.get(stem(name), ())})


def find_all(folders: Sequence[Path], clips: dict[str, tuple[str, ...]]) -> dict[str, Path | None]:
    """The audio file of each clip, given the names it may go by; None for those that are missing.

    Raises UserError, naming some, if several files claim to be the same clip.
    """
    audio = AudioFolders(folders)
    found = {clip: audio.find(names) for clip, names in clips.items()}
    several = {clip: files for clip, files in found.items() if len(files) > 1}
    if several:
        shown = "; ".join(f"{clip}: {', '.join(map(str, files))}" for clip, files in list(several.items())[:_NAMED])
        raise UserError(
            f"{counted(len(several), 'clip')} with several audio files, so it is not clear which to take; remove all "
            "but one: "
            f"{shown}{'; ...' if len(several) > _NAMED else ''}"
        )
    return {clip: files[0] if files else None for clip, files in found.items()}


def _walk(folder: Path) -> Iterable[str]:
    """The paths of all audio files below a folder; linked folders are entered, each real folder once."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (
            os.path.join(place, name)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in _SUFFIXES
        )

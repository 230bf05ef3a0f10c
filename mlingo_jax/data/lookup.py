"""Finds a clip's audio file: by its path, or by an id that is the file's name, whatever extension and sub-folder.

A name with folders in it is a path, and the folders count: `one/01.flac` is never found as `another/01.flac`.
"""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from mlingo_jax.data.search import SUFFIXES, search
from mlingo_jax.errors import UserError
from mlingo_jax.wording import counted

ARRAY = ".npy"
_SUFFIXES = SUFFIXES | {ARRAY}
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
            for path in search(str(folder), _SUFFIXES).files:
                self._files.setdefault(stem(path), []).append(path)

    def __len__(self) -> int:
        return sum(map(len, self._files.values()))

    def find(self, names: Iterable[str], *, by_name: bool = True) -> list[Path]:
        """All files of a clip that goes by any of these names, each file once; none if it is missing.

        A path, absolute or below one of the folders, is that file. Else a file has a name if its own path ends in it,
        apart from the extension; without `by_name` only paths that begin at one of the folders count.
        """
        names = list(names)
        slashed = [name.replace("\\", "/") for name in names]
        for name in dict.fromkeys([*names, *slashed]):
            # os.path.isfile is False for what can be no path, where Path.is_file raises.
            if there := [folder / name for folder in self._folders if os.path.isfile(folder / name)]:
                return _distinct(there)
        return _distinct(sorted({Path(path) for name in slashed for path in self._called(name)})) if by_name else []

    def _called(self, name: str) -> Iterable[str]:
        """The files whose path ends in this one, apart from the extension."""
        folders = [part for part in name.split("/")[:-1] if part != "."]
        return (
            path
            for path in self._files.get(stem(name), ())
            if not folders or path.split(os.sep)[:-1][-len(folders) :] == folders
        )


def find_all(folders: Sequence[Path], clips: Mapping[str, tuple[str, ...]]) -> dict[str, Path | None]:
    """The audio file of each clip, given the names it may go by; None for those that are missing.

    A manifest's clips have an absolute path among their names. Where any of them lies at its path, a missing one is
    missing: a file of the same name in another folder is another clip's.

    Raises UserError, naming some, if several files claim to be the same clip, or a manifest's clips share one file.
    """
    audio = AudioFolders(folders)
    own = {clip: paths for clip, names in clips.items() if (paths := set(filter(os.path.isabs, names)))}
    _require_one_path(own)
    at_path = any(os.path.isfile(path) for paths in own.values() for path in paths)
    found = {clip: audio.find(names, by_name=not (at_path and clip in own)) for clip, names in clips.items()}
    several = {clip: files for clip, files in found.items() if len(files) > 1}
    if several:
        shown = [f"{clip}: {', '.join(map(str, files))}" for clip, files in several.items()]
        raise UserError(
            f"{counted(len(several), 'clip')} with several audio files, so it is not clear which to take; remove all "
            f"but one: {_some(shown)}"
        )
    _require_own_file({clip: files[0] for clip, files in found.items() if files and clip in own})
    return {clip: files[0] if files else None for clip, files in found.items()}


def _require_one_path(own: Mapping[str, Collection[str]]) -> None:
    twice = [f"{clip}: {' and '.join(sorted(paths))}" for clip, paths in own.items() if len(paths) > 1]
    if twice:
        raise UserError(
            f"{counted(len(twice), 'clip')} of one name beside different manifests; prepare each manifest by itself, "
            f"with a --config of its own: {_some(twice)}"
        )


def _require_own_file(files: Mapping[str, Path]) -> None:
    """Raises UserError if a file goes by several clips' names: it might be trained on and held out as well."""
    clips: dict[str, list[str]] = {}
    for clip, path in files.items():
        clips.setdefault(os.path.realpath(path), []).append(clip)
    shared = [f"{path}: {', '.join(names)}" for path, names in clips.items() if len(names) > 1]
    if shared:
        raise UserError(
            f"{counted(len(shared), 'audio file')} under several names; give each clip one name: {_some(shared)}"
        )


def _distinct(paths: Iterable[Path]) -> list[Path]:
    """The paths of different files; of several that lead to one file the first."""
    first: dict[str, Path] = {}
    for path in paths:
        first.setdefault(os.path.realpath(path), path)
    return list(first.values())


def _some(lines: Sequence[str]) -> str:
    return "; ".join([*lines[:_NAMED], *["..."] * (len(lines) > _NAMED)])

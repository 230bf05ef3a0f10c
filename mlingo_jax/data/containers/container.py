"""What a file's own structure says of the audio in it, before any of it is decoded."""

import os
import sys
from dataclasses import dataclass
from io import BufferedIOBase

UNKNOWN = "its header states no length, so whether it is whole cannot be told"
"""Of a file that was written into a pipe."""


class Faulty(Exception):
    """Why a file's audio cannot be taken for whole; a sentence to stand behind the file's name."""


@dataclass(frozen=True)
class Part:
    """A stretch of bytes that is decoded by itself.

    claimed: samples of a channel that its header counts, at its own rate; None where it does not say, or not exactly.
    last_page: samples up to the end of a vorbis stream of a single page, whose end FFmpeg does not find by itself.
    """

    start: int
    end: int
    claimed: int | None = None
    last_page: int | None = None


@dataclass(frozen=True)
class Container:
    """A file whose structure is whole.

    format: FFmpeg's name for it. parts: decoded one after the other. notes: what is worth saying of it.
    states_duration: whether FFmpeg's duration is the header's claim, rather than a guess.
    """

    format: str
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()
    states_duration: bool = False


def file_size(file: BufferedIOBase) -> int:
    """In bytes."""
    return file.seek(0, os.SEEK_END)


def read_at(file: BufferedIOBase, offset: int, size: int) -> bytes:
    """Bytes from `offset` on; fewer than `size` at the end of the file."""
    if offset > sys.maxsize:
        return b""
    file.seek(offset)
    return file.read(size)


def junk(size: int) -> str:
    """The note on bytes that follow the audio."""
    return f"{size:,} bytes behind the end of its audio are something else, and are not read"


def cut_off(claimed: str, found: str) -> Faulty:
    """A file that has less than it claims."""
    return Faulty(f"the header claims {claimed}, the file has {found}; it is cut off")


def without_tags(file: BufferedIOBase, start: int, end: int) -> int:
    """Where a file ends without the tags (ID3v1, APE, Lyrics3) that may stand behind its audio."""
    while True:
        tail = read_at(file, max(end - 160, start), min(160, end - start))
        if tail[-128:-125] == b"TAG":
            end -= 128
        elif tail[-32:-24] == b"APETAGEX":
            size, flags = int.from_bytes(tail[-20:-16], "little"), int.from_bytes(tail[-12:-8], "little")
            end -= size + (32 if flags >> 31 else 0)
        elif tail[-9:] == b"LYRICS200" and tail[-15:-9].isdigit():
            end -= int(tail[-15:-9]) + 15
        else:
            return max(end, start)


def after_id3(file: BufferedIOBase, start: int = 0) -> int:
    """Where the first byte after the ID3v2 tags is that begin at `start`; `start` if there are none."""
    while (head := read_at(file, start, 10))[:3] == b"ID3" and len(head) == 10 and max(head[6:10]) < 128:
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        start += size + (20 if head[5] & 0x10 else 10)
    return start

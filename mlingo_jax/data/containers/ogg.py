"""Ogg: pages with a checksum, a number and a mark on the first and the last one of each stream.

A file may be a chain of links, each a file of its own.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedIOBase

from mlingo_jax.data.containers.container import Container, Faulty, Part, file_size, junk, read_at

_HEADER = 27
_CODECS = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   ")
_FIRST, _LAST = 2, 4
_NO_POSITION = (1 << 64) - 1
# Ogg's checksum takes each byte's bits in the order opposite to zlib's.
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_SEARCHED = 1 << 20


@dataclass(frozen=True, slots=True)
class _Page:
    at: int
    end: int
    flags: int
    position: int
    serial: int
    number: int
    body: bytes


@dataclass
class _Link:
    """A link of the chain.

    audio: the serial of its audio, and is_vorbis: what it is; rate: in Hz; last: the number of each stream's last
    page; pages, position: of audio, and how many samples there are to the end of the last one.
    """

    start: int
    end: int = 0
    audio: int | None = None
    is_vorbis: bool = False
    rate: int = 0
    last: dict[int, int] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    pages: int = 0
    position: int = 0

    @property
    def seconds(self) -> float:
        return self.position / self.rate if self.rate else 0.0

    @property
    def is_whole(self) -> bool:
        return self.ended >= self.last.keys() or self.audio in self.ended

    def part(self) -> Part:
        return Part(self.start, self.end, last_page=self.position if self.is_vorbis and self.pages == 1 else None)


def read_ogg(file: BufferedIOBase) -> Container:
    """The links that have audio. Raises Faulty for pages that are damaged or missing, the last one among them."""
    size = file_size(file)
    links: list[_Link] = []
    end = 0
    for page in _pages(file, size):
        if page.at > end and links and not links[-1].is_whole:
            raise Faulty(f"damaged at {_seconds(links):.1f} s, {page.at - end:,} bytes there are no page of ogg")
        if page.flags & _FIRST:
            if not links or links[-1].ended:
                _require_last(links)
                links.append(_Link(page.at))
            _begin(links[-1], page)
        elif not links or page.serial not in links[-1].last:
            raise Faulty(f"damaged at {_seconds(links):.1f} s, a page of no stream that has begun")
        _add(links, page)
        end = page.end
    _require_last(links)
    parts = tuple(link.part() for link in links if link.audio is not None)
    if not parts:
        raise Faulty("an ogg file without audio that can be decoded (vorbis, opus, flac or speex)")
    return Container("ogg", parts, (junk(size - end),) if end < size else ())


def _begin(link: _Link, page: _Page) -> None:
    link.last[page.serial] = page.number - 1
    if link.audio is None and page.body.startswith(_CODECS):
        link.audio = page.serial
        if page.body.startswith(_CODECS[0]):
            link.is_vorbis, link.rate = True, int.from_bytes(page.body[12:16], "little")
        elif page.body.startswith(_CODECS[1]):
            link.rate = 48000


def _add(links: list[_Link], page: _Page) -> None:
    link = links[-1]
    if page.number != link.last[page.serial] + 1:
        raise Faulty(f"damaged at {_seconds(links):.1f} s, pages are missing there")
    link.last[page.serial], link.end = page.number, page.end
    if page.flags & _LAST:
        link.ended.add(page.serial)
    # Pages of headers are at 0.
    if page.serial == link.audio and 0 < page.position < _NO_POSITION:
        link.pages, link.position = link.pages + 1, page.position


def _seconds(links: list[_Link]) -> float:
    return sum(link.seconds for link in links)


def _require_last(links: list[_Link]) -> None:
    if links and not links[-1].is_whole:
        raise Faulty(f"the last page, of {_seconds(links):.1f} s, lacks the mark of the end; it is cut off")


def _pages(file: BufferedIOBase, size: int) -> Iterator[_Page]:
    """All pages that are whole. Raises Faulty for one that is not, unless nothing is behind it."""
    at = 0
    while at < size:
        head = read_at(file, at, _HEADER + 255)
        if head[:4] != b"OggS":
            at = _find_page(file, at, size)
            continue
        segments = head[26] if len(head) > 26 else 0
        begin = at + _HEADER + segments
        end = begin + sum(head[_HEADER : _HEADER + segments])
        if end > size or len(head) < _HEADER:
            return
        data = read_at(file, at, end - at)
        if _checksum(data[:22] + bytes(4) + data[26:]) != int.from_bytes(data[22:26], "little"):
            raise Faulty(f"damaged, the checksum of the page of ogg at byte {at:,} is not that of its content")
        position, serial, number = (
            int.from_bytes(data[first:last], "little") for first, last in ((6, 14), (14, 18), (18, 22))
        )
        yield _Page(at, end, data[5], position, serial, number, data[_HEADER + segments :])
        at = end


def _find_page(file: BufferedIOBase, at: int, size: int) -> int:
    """Where the next page begins; the file's end if there is none."""
    while at < size:
        data = read_at(file, at, _SEARCHED + 3)
        if (found := data.find(b"OggS")) >= 0:
            return at + found
        at += _SEARCHED
    return size


def _checksum(data: bytes) -> int:
    """CRC-32 with the polynomial 0x04c11db7, from 0, not reflected."""
    reflected = zlib.crc32(data.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(reflected.to_bytes(4, "little").translate(_REVERSED), "big")

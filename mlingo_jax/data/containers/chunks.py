"""Files of chunks, each with a name and a size: wav (also of 64 bits), Sony's w64, aiff and aifc, caf."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BufferedIOBase

from mlingo_jax.data.containers.container import UNKNOWN, Container, Faulty, Part, cut_off, file_size, junk, read_at

# Writers that cannot seek back (pipes) leave such a size, or one larger, in a header: it stands for "unknown".
_UNKNOWN_BYTES = 0x7FFFF000
# What begins another file.
_FILES = (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM", b"riff", b"caff")
_W64_NAME = bytes.fromhex("F3ACD3118CD100C04F8EDB8A")
# Formats whose samples are as many as their bytes say: PCM, floats, A-law, mu-law.
_WAV_PLAIN = {1, 3, 6, 7}
_AIFF_PLAIN = {b"NONE", b"sowt", b"twos", b"raw ", b"fl32", b"FL32", b"fl64", b"FL64", b"in24", b"in32", b"alaw",
               b"ulaw", b"ALAW", b"ULAW"}  # fmt: skip
_CAF_PLAIN = {b"lpcm", b"alaw", b"ulaw"}


@dataclass(frozen=True)
class _Layout:
    """How chunks lie in a file.

    name: bytes of a chunk's name. size: struct format of its size. whole: the size counts name and size. align: of
    what follows.
    """

    name: int
    size: str
    whole: bool
    align: int

    @property
    def head(self) -> int:
        return self.name + struct.calcsize(self.size)


_RIFF, _RIFX = _Layout(4, "<I", False, 2), _Layout(4, ">I", False, 2)
_W64, _CAF = _Layout(16, "<Q", True, 8), _Layout(4, ">q", False, 1)


def read_wav(file: BufferedIOBase) -> Container:
    """RIFF, RIFX, RF64 and BW64. Raises Faulty if there is less than it claims."""
    kind = read_at(file, 0, 4)
    layout = _RIFX if kind == b"RIFX" else _RIFF
    chunks = _Chunks(file, layout, 12, b"data")
    data = chunks.audio()
    claimed = data.size
    unknown = _UNKNOWN_BYTES <= claimed <= 0xFFFFFFFF and claimed > data.there
    if claimed == 0 and data.there and not chunks.is_chunk(data.at):
        unknown = True
    return chunks.container(
        "wav", data, None if unknown else claimed, _wav_block(chunks.found.get(b"fmt ", b""), layout)
    )


def read_w64(file: BufferedIOBase) -> Container:
    """Sony Wave64, as `read_wav`."""
    chunks = _Chunks(file, _W64, 40, b"data" + _W64_NAME)
    data = chunks.audio()
    format_chunk = chunks.found.get(b"fmt " + _W64_NAME, b"")
    unknown = data.size >= 1 << 62
    return chunks.container("w64", data, None if unknown else data.size, _wav_block(format_chunk, _RIFF))


def read_aiff(file: BufferedIOBase) -> Container:
    """AIFF and AIFC, as `read_wav`."""
    chunks = _Chunks(file, _RIFX, 12, b"SSND")
    data, common = chunks.audio(), chunks.found.get(b"COMM", b"")
    if len(common) < 18:
        raise Faulty("an aiff file whose chunk COMM, which says what its audio is like, is missing or cut off")
    channels, frames, bits = struct.unpack(">hIh", common[:8])
    plain = (common[18:22] or b"NONE") in _AIFF_PLAIN
    block = channels * -(-bits // 8) if plain else 0
    # Sound data begins with eight bytes of its own.
    claimed = max(data.size - 8, 0)
    unknown = (claimed == 0 and data.there > 8) or claimed >= _UNKNOWN_BYTES > data.there
    if not unknown and block and frames * block > claimed:
        raise cut_off(f"{frames * block:,} bytes of audio", f"{claimed:,}")
    container = chunks.container("aiff", data, None if unknown else data.size, block, 8)
    if unknown or not block:
        return container
    return replace(container, parts=(replace(container.parts[0], claimed=frames),))


def read_caf(file: BufferedIOBase) -> Container:
    """Apple's Core Audio format, as `read_wav`."""
    chunks = _Chunks(file, _CAF, 8, b"data")
    data, description = chunks.audio(), chunks.found.get(b"desc", b"")
    if len(description) < 32:
        raise Faulty("a caf file whose chunk desc, which says what its audio is like, is missing or cut off")
    block = int.from_bytes(description[16:20], "big") if description[8:12] in _CAF_PLAIN else 0
    return chunks.container("caf", data, None if data.size == -1 else data.size, block, 4)


@dataclass(frozen=True)
class _Audio:
    """The chunk of audio. at: where its content begins; size: what it claims; there: bytes up to the file's end."""

    at: int
    size: int
    there: int


class _Chunks:
    """The chunks of a file from `start` on: content of the small ones before the audio's, and where that one is."""

    def __init__(self, file: BufferedIOBase, layout: _Layout, start: int, audio: bytes):
        self._file, self._layout, self._name, self._size = file, layout, audio, file_size(file)
        self.found: dict[bytes, bytes] = {}
        self._audio: _Audio | None = None
        self._end = start
        for name, at, size in self._walk(start):
            if name == audio:
                self._audio = self._audio or _Audio(at, size, self._size - at)
            else:
                self.found.setdefault(name, read_at(file, at, min(size, 64)))

    def audio(self) -> _Audio:
        """Raises Faulty if there is none."""
        if self._audio is None:
            raise Faulty("cut off, or damaged: its header is followed by no audio")
        return self._audio

    def container(self, name: str, data: _Audio, claimed: int | None, block: int, skipped: int = 0) -> Container:
        """What its chunks say.

        claimed: bytes of the chunk of audio, None if it does not say. block: bytes of a sample of all channels, 0 where
        they tell nothing. skipped: bytes of the chunk before its audio.
        """
        if claimed is None:
            left = (data.there - skipped) % block if block else 0
            note = f"{UNKNOWN}; its last sample is not whole" if left else UNKNOWN
            return Container(name, (Part(0, self._size),), (note,))
        if claimed > data.there:
            raise cut_off(f"{claimed - skipped:,} bytes of audio", f"{max(data.there - skipped, 0):,}")
        samples = max(claimed - skipped, 0) // block if block else None
        behind = self._size - max(self._end, data.at + claimed)
        return Container(name, (Part(0, self._size, samples),), (junk(behind),) if behind > 0 else ())

    def is_chunk(self, at: int) -> bool:
        """Whether a chunk that fits into the file begins there."""
        return next(self._read(at), None) is not None

    def _walk(self, at: int) -> Iterator[tuple[bytes, int, int]]:
        """Name, place and size of one chunk after the other; the last may claim more than there is."""
        for name, content, size in self._read(at):
            yield name, content, size
            self._end = min(self._after(content, size), self._size)

    def _read(self, at: int) -> Iterator[tuple[bytes, int, int]]:
        layout = self._layout
        while len(head := read_at(self._file, at, layout.head)) == layout.head:
            name, (size,) = head[: layout.name], struct.unpack(layout.size, head[layout.name :])
            size -= layout.head if layout.whole else 0
            if name == b"data" and size == 0xFFFFFFFF and len(sizes := self.found.get(b"ds64", b"")) >= 16:
                size = int.from_bytes(sizes[8:16], "little")
            content = at + layout.head
            is_name = all(32 <= letter < 127 for letter in name[:4]) and name[:4] not in _FILES
            if not is_name or (name != self._name and not 0 <= size <= self._size - content):
                return
            yield name, content, size
            if size < 0 or size > self._size - content:
                return
            at = self._after(content, size)

    def _after(self, content: int, size: int) -> int:
        """Where the next chunk begins."""
        return content + size + -size % self._layout.align


def _wav_block(description: bytes, layout: _Layout) -> int:
    """Bytes of a sample of all channels; 0 where they do not tell how many samples there are."""
    if len(description) < 16:
        raise Faulty("its header does not say what its audio is like (no chunk fmt, or one that is cut off)")
    order = layout.size[0]
    tag, block = struct.unpack_from(f"{order}H10xH", description)
    if tag == 0xFFFE and len(description) >= 26:
        (tag,) = struct.unpack_from(f"{order}H", description, 24)
    return block if tag in _WAV_PLAIN else 0

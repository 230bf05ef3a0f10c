"""MPEG audio (mp3, mp2, mp1) and AAC in ADTS: frames one after the other, each with its length in its header.

Most files count their frames in a first one of their own (Xing, Info, VBRI); the frames that are there decide.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase

from mlingo_jax.data.containers.container import (
    Container,
    Faulty,
    Part,
    after_id3,
    cut_off,
    file_size,
    junk,
    read_at,
    without_tags,
)

# In kbit/s by (MPEG-1, layer) and the header's four bits; 0 and 15 have no meaning here.
_RATES = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_SAMPLE_RATES = (44100, 48000, 32000)
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
# Of a frame, what tells its length, and whether it is one that counts the others.
_HEADER_BYTES = 64
# Frames in a row that make a stream of what could be an accident.
_ROW = 3
# How far into a file the first frame may be: padding that tag editors leave.
_SEARCHED = 1 << 18
# Encoders disagree on whether a count includes the counting frame and the last ones.
_SLACK_FRAMES = 4


@dataclass(frozen=True, slots=True)
class _Frame:
    """kind: what all frames of a stream share: version, layer and sample rate."""

    kind: tuple[int, int, int]
    bytes: int
    samples: int


def read_mpeg(file: BufferedIOBase, start: int) -> Container | None:
    """A stream of frames from `start` on, a tag's end; None if there is none.

    Raises Faulty if frames are missing: fewer than their count, or something else amid them.
    """
    end = without_tags(file, start, file_size(file))
    first = _find_row(file, start, min(start + _SEARCHED, end), end)
    if first is None:
        return None
    frame = _frame(read_at(file, first, _HEADER_BYTES))
    assert frame is not None
    parts, notes = _walk(file, first, end)
    return Container("aac" if frame.kind[1] == 0 else "mp3", tuple(parts), tuple(notes))


def _walk(file: BufferedIOBase, at: int, end: int) -> tuple[list[Part], list[str]]:
    """The parts of a stream, each from one counting frame to the next, and notes."""
    streams, notes, seconds = [_Stream(at)], [], 0.0
    for position, frame, count in _frames(file, at, end):
        if position + frame.bytes > end:
            notes.append("it ends amid a frame: if it is cut off, how much is missing cannot be told")
            at = end
            break
        if count:
            streams.append(_Stream(position, position + frame.bytes, count))
        else:
            streams[-1].frames += 1
        at = position + frame.bytes
        streams[-1].end = at
        seconds += frame.samples / frame.kind[2]
    if (following := _find_row(file, at, end, end)) is not None:
        raise Faulty(f"damaged at {seconds:.1f} s, {following - at:,} bytes there are no frames of audio")
    if at < end:
        notes.append(junk(end - at))
    return [stream.part(notes) for stream in streams if stream.end], notes


@dataclass
class _Stream:
    """Frames that one counting frame speaks for. begin: of that frame; body: after it; count: what it says."""

    begin: int
    body: int = 0
    count: int = 0
    frames: int = 0
    end: int = 0

    def part(self, notes: list[str]) -> Part:
        if self.count > self.frames + _SLACK_FRAMES:
            raise cut_off(f"{self.count:,} frames", f"{self.frames:,}")
        if self.count and self.count < self.frames - _SLACK_FRAMES:
            # By its count, FFmpeg would cut its last padding out of the middle.
            notes.append(f"its header counts {self.count:,} frames; it has {self.frames:,}, and all are read")
            return Part(self.body, self.end)
        return Part(self.begin, self.end)


def _frames(file: BufferedIOBase, at: int, end: int) -> Iterator[tuple[int, _Frame, int]]:
    """Where each frame is and what it counts, as far as they follow one another, with tags between them."""
    kind = None
    while at < end:
        head = read_at(file, at, _HEADER_BYTES)
        frame = _frame(head)
        if frame is not None and (frame.kind == kind or _is_row(file, at, end)):
            kind = frame.kind
            yield at, frame, _count(head, frame)
            at += frame.bytes
            continue
        tag = after_id3(file, at)
        if tag == at and read_at(file, at, 3) == b"TAG":
            tag = at + 128
        if tag == at or tag > end:
            return
        at = tag


def _find_row(file: BufferedIOBase, start: int, until: int, end: int) -> int | None:
    """Where `_ROW` frames of a kind follow one another; at a file's end fewer will do."""
    at = start
    while at < until:
        data = read_at(file, at, min(1 << 16, until - at + 1))
        found = data.find(b"\xff")
        while found >= 0:
            if at + found < until and _is_row(file, at + found, end):
                return at + found
            found = data.find(b"\xff", found + 1)
        at += max(len(data) - 1, 1)
    return None


def _is_row(file: BufferedIOBase, at: int, end: int) -> bool:
    kinds = []
    while len(kinds) < _ROW and at < end and (frame := _frame(read_at(file, at, _HEADER_BYTES))):
        kinds.append(frame.kind)
        at += frame.bytes
    return len(set(kinds)) == 1 and (len(kinds) == _ROW or at == end)


def _frame(head: bytes) -> _Frame | None:
    """The frame that begins with these bytes; None if none does."""
    if len(head) < 6 or head[0] != 0xFF or head[1] < 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    if layer == 4:
        return _aac_frame(head)
    rate, sampled, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or rate in (0, 15) or sampled == 3:
        return None
    sample_rate = _SAMPLE_RATES[sampled] >> (3 - version if version else 2)
    bits = 1000 * _RATES[version == 3, layer][rate - 1]
    samples = (384, 1152, 1152 if version == 3 else 576)[layer - 1]
    slot = 4 if layer == 1 else 1
    size = (samples // 8 // slot * bits // sample_rate + padding) * slot
    return _Frame((version, layer, sample_rate), size, samples)


def _aac_frame(head: bytes) -> _Frame | None:
    sampled = head[2] >> 2 & 15
    if head[1] < 0xF0 or sampled >= len(_AAC_RATES):
        return None
    size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return _Frame((head[1] >> 3 & 1, 0, _AAC_RATES[sampled]), size, 1024) if size >= 7 else None


def _count(data: bytes, frame: _Frame) -> int:
    """The number of frames that a counting frame states; 0 for any other frame, or where it does not say."""
    if frame.kind[1] != 3:
        return 0
    mono, mpeg1 = data[3] >> 6 == 3, frame.kind[0] == 3
    side = 4 + ((17 if mono else 32) if mpeg1 else (9 if mono else 17))
    if data[side : side + 4] in (b"Xing", b"Info") and data[side + 7] & 1:
        return int.from_bytes(data[side + 8 : side + 12], "big")
    return int.from_bytes(data[50:54], "big") if data[36:40] == b"VBRI" else 0

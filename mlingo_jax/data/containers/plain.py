"""Files of one header and what follows it: flac, au, NIST SPHERE, Creative's voc."""

import struct
from io import BufferedIOBase

from mlingo_jax.data.containers.container import (
    UNKNOWN,
    Container,
    Faulty,
    Part,
    cut_off,
    file_size,
    junk,
    read_at,
    without_tags,
)

_AU_BYTES = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}
_AU_UNKNOWN = 0xFFFFFFFF
_VOC_HEADER, _VOC_END = 26, 0
_SPHERE_HEADER = 1024
# Zeros change no checksum of 0. Silence in all channels of a frame of flac is less of them.
_MOST_ZEROS = 64


def _crc16_table() -> tuple[int, ...]:
    """Of CRC-16 with the polynomial 0x8005."""
    table = []
    for value in range(256):
        value <<= 8
        for _ in range(8):
            value = (value << 1 ^ 0x8005 if value & 0x8000 else value << 1) & 0xFFFF
        table.append(value)
    return tuple(table)


_CRC16 = _crc16_table()


def read_flac(file: BufferedIOBase, start: int) -> Container:
    """A flac that begins at `start`. The decoder tells whether its frames are as many as it counts."""
    end = without_tags(file, start, file_size(file))
    head = read_at(file, start, 42)
    if len(head) < 42 or head[4] & 127:
        raise Faulty("cut off in its header")
    counted = int.from_bytes(head[21:26], "big") & ((1 << 36) - 1)
    at, last = start + 4, False
    while not last:
        block = read_at(file, at, 4)
        if len(block) < 4:
            raise Faulty("cut off in its header")
        last, at = block[0] >> 7 == 1, at + 4 + int.from_bytes(block[1:], "big")
    return Container("flac", (Part(start, end, counted or None),), () if counted else (UNKNOWN,))


def is_flac_frame(data: bytes) -> bool:
    """Whether these bytes are a frame of flac and nothing more: its checksum makes that of all of it 0."""
    if data.endswith(bytes(_MOST_ZEROS)):
        return False
    checksum = 0
    for byte in data:
        checksum = (checksum << 8 & 0xFFFF) ^ _CRC16[checksum >> 8 ^ byte]
    return checksum == 0


def read_au(file: BufferedIOBase) -> Container:
    """Sun's and NeXT's au. Raises Faulty if there is less than it claims."""
    size = file_size(file)
    head = read_at(file, 0, 24)
    if len(head) < 24:
        raise Faulty("cut off in its header")
    at, claimed, encoding, _, channels = struct.unpack(">5I", head[4:])
    if claimed == _AU_UNKNOWN:
        return Container("au", (Part(0, size),), (UNKNOWN,))
    if claimed > size - at:
        raise cut_off(f"{claimed:,} bytes of audio", f"{max(size - at, 0):,}")
    block = _AU_BYTES.get(encoding, 0) * channels
    behind = size - at - claimed
    part = Part(0, at + claimed, claimed // block if block else None)
    return Container("au", (part,), (junk(behind),) if behind else ())


def read_sphere(file: BufferedIOBase) -> Container:
    """NIST SPHERE, as `read_au`; its header is text."""
    size = file_size(file)
    fields = {}
    for line in read_at(file, 0, _SPHERE_HEADER).split(b"\n"):
        if len(words := line.split(maxsplit=2)) == 3 and words[1] == b"-i" and words[2].strip().isdigit():
            fields[words[0]] = int(words[2])
    lines = read_at(file, 0, 16).split(b"\n")
    if not {b"sample_count", b"channel_count", b"sample_n_bytes"} <= fields.keys() or not lines[1].strip().isdigit():
        raise Faulty("its header does not say how many samples it has (sample_count, channel_count, sample_n_bytes)")
    at = int(lines[1])
    claimed = fields[b"sample_count"] * fields[b"channel_count"] * fields[b"sample_n_bytes"]
    if claimed > size - at:
        raise cut_off(f"{claimed:,} bytes of audio", f"{max(size - at, 0):,}")
    behind = size - at - claimed
    part = Part(0, at + claimed, fields[b"sample_count"])
    return Container("nistsphere", (part,), (junk(behind),) if behind else ())


def read_voc(file: BufferedIOBase) -> Container:
    """Creative's voc: blocks, and one that says it is the last. Raises Faulty if that is missing."""
    size = file_size(file)
    at = int.from_bytes(read_at(file, 20, 2), "little")
    if at < _VOC_HEADER:
        raise Faulty("cut off in its header")
    while len(head := read_at(file, at, 4)) and head[0] != _VOC_END:
        end = at + 4 + int.from_bytes(head[1:], "little")
        if len(head) < 4 or end > size:
            raise Faulty("its last block is not whole; it is cut off")
        at = end
    if not head:
        raise Faulty("it lacks the mark of the end; it is cut off")
    behind = size - at - 1
    return Container("voc", (Part(0, at + 1),), (junk(behind),) if behind else ())

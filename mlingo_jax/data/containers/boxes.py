"""Files of nested elements: mp4 and its relatives (m4a, mov, 3gp), matroska and webm, Microsoft's asf (wma)."""

from io import BufferedIOBase

from mlingo_jax.data.containers.container import UNKNOWN, Container, Faulty, Part, cut_off, file_size, junk, read_at

_MP4 = "mp4"
_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid", b"moof", b"mfra", b"sidx", b"styp",
          b"meta", b"pdin", b"emsg", b"prft", b"ssix", b"udta", b"junk", b"bloc", b"imda"}  # fmt: skip
_SEGMENT = bytes.fromhex("18538067")
_CLUSTER = bytes.fromhex("1F43B675")
# What may stand in a segment of matroska, and in one of its clusters.
_ELEMENTS = {bytes.fromhex(name) for name in ("1F43B675", "114D9B74", "1549A966", "1654AE6B", "1C53BB6B", "1941A469",
                                              "1043A770", "1254C367", "EC", "BF")}  # fmt: skip
_IN_CLUSTER = {bytes.fromhex(name) for name in ("E7", "A7", "AB", "A3", "A0", "AF", "5854", "EC", "BF")}
_ASF_PROPERTIES = bytes.fromhex("A1DCAB8C47A9CF118EE400C00C205365")
_ASF_DATA = bytes.fromhex("3626B2758E66CF11A6D900AA0062CE6C")
_ASF_HEAD = 24


def read_mp4(file: BufferedIOBase) -> Container:
    """Raises Faulty if a box has less than it claims, or the one that describes the audio is missing."""
    size = file_size(file)
    at, seen, notes = 0, set(), []
    while at < size:
        head = read_at(file, at, 16)
        kind, claimed = head[4:8], int.from_bytes(head[:4], "big")
        if claimed == 1 and len(head) == 16:
            claimed = int.from_bytes(head[8:], "big")
        elif claimed == 0 and kind == b"mdat":
            claimed = size - at
        if kind not in _BOXES or claimed < 8 or (kind == b"ftyp" and b"moov" in seen):
            notes.append(junk(size - at))
            break
        if claimed > size - at:
            raise Faulty(f"its box {kind.decode()} claims {claimed:,} bytes, the file has {size - at:,}; it is cut off")
        seen.add(kind)
        at += claimed
    if b"moov" not in seen:
        raise Faulty("it lacks the box moov, which says where its audio is; it is cut off, or was never finished")
    return Container(_MP4, (Part(0, at),), tuple(notes), states_duration=True)


def read_matroska(file: BufferedIOBase) -> Container:
    """Raises Faulty if its segment, or an element of it, has less than it claims."""
    size = file_size(file)
    _, at, claimed = _element(file, 0)
    at += claimed or 0
    name, at, claimed = _element(file, at)
    if name != _SEGMENT:
        raise Faulty("a matroska file without a segment; it is cut off, or damaged")
    if claimed is not None and claimed > size - at:
        raise cut_off(f"{claimed:,} bytes of audio", f"{size - at:,}")
    end = _end_of_elements(file, at, size if claimed is None else at + claimed)
    notes = [junk(size - end)] if end < size else []
    if claimed is None:
        return Container("matroska", (Part(0, end),), (UNKNOWN, *notes))
    if end < at + claimed:
        raise Faulty(f"damaged, what is at byte {end:,} is no element of matroska")
    return Container("matroska", (Part(0, end),), tuple(notes), states_duration=True)


def _end_of_elements(file: BufferedIOBase, at: int, end: int) -> int:
    """Where the elements of a segment end, those of its clusters among them. Raises Faulty if one is not whole."""
    while at < end:
        name, content, claimed = _element(file, at)
        if name not in _ELEMENTS | _IN_CLUSTER:
            return at
        if claimed is not None and claimed > end - content:
            raise Faulty(f"its last element claims {claimed:,} bytes, the file has {end - content:,}; it is cut off")
        # Of a cluster, with a size or without, the elements in it come next.
        at = content if name == _CLUSTER or claimed is None else content + claimed
    return at


def _element(file: BufferedIOBase, at: int) -> tuple[bytes, int, int | None]:
    """An element's name, where its content begins, and its size (None: not stated)."""
    head = read_at(file, at, 12)
    if not head or not head[0]:
        return b"", at + 1, 0
    wide = 9 - head[0].bit_length()
    if len(head) <= wide or not head[wide]:
        return b"", at + 1, 0
    long = 9 - head[wide].bit_length()
    value = int.from_bytes(head[wide : wide + long], "big") & ((1 << 7 * long) - 1)
    return head[:wide], at + wide + long, None if value == (1 << 7 * long) - 1 else value


def read_asf(file: BufferedIOBase) -> Container:
    """Raises Faulty if the file is shorter than its header says."""
    size = file_size(file)
    at = _ASF_HEAD + 6
    end = int.from_bytes(read_at(file, 16, 8), "little")
    claimed, streamed = None, False
    while at < min(end, size):
        head = read_at(file, at, 96)
        if head[:16] == _ASF_PROPERTIES and len(head) >= 92:
            claimed, streamed = int.from_bytes(head[40:48], "little"), bool(head[88] & 1)
        at += max(int.from_bytes(head[16:24], "little"), _ASF_HEAD)
    if claimed is None or read_at(file, end, 16) != _ASF_DATA:
        raise Faulty("an asf file without its header's list or its data; it is cut off, or damaged")
    if streamed or not claimed:
        return Container("asf", (Part(0, size),), (UNKNOWN,))
    if claimed > size:
        raise cut_off(f"{claimed:,} bytes", f"{size:,}")
    return Container(
        "asf", (Part(0, claimed),), (junk(size - claimed),) if claimed < size else (), states_duration=True
    )

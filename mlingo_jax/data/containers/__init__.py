"""What an audio file is, by its first bytes, and whether it is whole, by what its container can tell."""

from io import BufferedIOBase

from mlingo_jax.data.containers import boxes, chunks, plain
from mlingo_jax.data.containers.container import Container, Faulty, Part, after_id3, read_at
from mlingo_jax.data.containers.mpeg import read_mpeg
from mlingo_jax.data.containers.ogg import read_ogg

__all__ = ["FORMATS", "Container", "Faulty", "Part", "recognise"]

FORMATS = "wav, w64, aiff, au, caf, flac, ogg, opus, mp3, mp2, aac, m4a, mp4, webm, mkv, wma, voc, sph"

_W64 = bytes.fromhex("726966662E91CF11A5D628DB04C10000")
_MATROSKA = bytes.fromhex("1A45DFA3")
_ASF = bytes.fromhex("3026B2758E66CF11A6D900AA0062CE6C")
_MP4_FIRST = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp")


def recognise(file: BufferedIOBase) -> Container:
    """What a file is, whatever it is called, and where its audio is.

    Raises Faulty if it is not audio, not in one of `FORMATS`, or if its structure shows that it is damaged or cut off.
    """
    start = after_id3(file)
    head = read_at(file, start, 20)
    if not head:
        raise Faulty("the file is empty" if not start else "there is nothing in it but tags")
    if head[:4] == b"fLaC":
        return plain.read_flac(file, start)
    if start == 0 and (container := _read_by_name(file, head)):
        return container
    if container := read_mpeg(file, start):
        return container
    if head.startswith(b"version https://git"):
        raise Faulty("a pointer of git-LFS, not the file itself; get that by `git lfs pull`")
    raise Faulty(f"not audio, or not in a format that can be read ({FORMATS})")


def _read_by_name(file: BufferedIOBase, head: bytes) -> Container | None:
    """A file whose first bytes name its format; None for any other."""
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return chunks.read_wav(file)
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return chunks.read_aiff(file)
    if head[4:8] in _MP4_FIRST:
        return boxes.read_mp4(file)
    by_first = {
        b"OggS": read_ogg,
        b"caff": chunks.read_caf,
        b".snd": plain.read_au,
        b"NIST_1A\n": plain.read_sphere,
        b"Creative Voice File\x1a": plain.read_voc,
        _W64: chunks.read_w64,
        _MATROSKA: boxes.read_matroska,
        _ASF: boxes.read_asf,
    }
    return next((read(file) for first, read in by_first.items() if head.startswith(first)), None)

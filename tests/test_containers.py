"""Every format that is read: whole, or refused with the reason, or said not to be whole; never less in silence.

Files are cut, followed by junk, put one behind another, and made to claim what they do not have.
"""

import io
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from mlingo_jax.data.audio import AudioSettings, Measured, decode_audio, measure_audio, prepare_waveform
from mlingo_jax.errors import AudioWarning, UserError
from tests.audio_files import FORMATS, RATE, SECONDS, encode, encoded, music

JUNK = np.random.default_rng(5).bytes(5000)
# Streams of frames that nothing counts: what is missing behind a whole frame cannot be told.
UNCOUNTED = ("mp2", "aac")
# Formats whose files make one longer piece when they are put one behind another.
CHAINED = ("ogg", "opus", "ogg flac", "mp3", "mp2", "aac")


def refusal(content: bytes) -> str:
    with pytest.raises(UserError) as error:
        measure_audio(content, "it")
    assert "\n" not in str(error.value)
    return str(error.value)


def measured_or_refused(content: bytes) -> Measured | str:
    try:
        return measure_audio(content, "it")
    except UserError as error:
        return str(error).replace("\n", "it broke in two")


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_as_long_as_it_is(kind):
    measured = measure_audio(encoded(kind))
    assert measured.notes == ()
    # Encoders of lossy formats fill up the last frame.
    assert SECONDS - 0.03 <= measured.seconds <= SECONDS + 0.05
    settings = AudioSettings(measured.rate, normalize=False)
    waveform = decode_audio(encoded(kind), "it", settings)
    assert len(waveform) == measured.samples
    expected = music(measured.rate).mean(axis=1)
    shift = int(np.argmax(np.correlate(waveform, expected[5000:9000], "valid")[:9000])) - 5000
    assert abs(shift) <= 0.05 * measured.rate
    middle = waveform[20000 + shift : 40000 + shift]
    assert np.corrcoef(middle, expected[20000:40000])[0, 1] > 0.98


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=30)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_that_is_cut_off_is_refused_or_said_to_be_cut(kind, share):
    content = encoded(kind)
    cut = content[: int(share * len(content))]
    found = measured_or_refused(cut)
    between_frames = kind in UNCOUNTED and content[len(cut) : len(cut) + 1] == b"\xff"
    assert isinstance(found, str) or (kind in UNCOUNTED and (found.notes or between_frames))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("junk", [JUNK, bytes(5000), b"This is no music. " * 300])
def test_junk_behind_the_audio_is_not_read_and_said(kind, junk):
    whole, found = measure_audio(encoded(kind)), measure_audio(encoded(kind) + junk)
    assert (found.samples, found.rate) == (whole.samples, whole.rate)
    (note,) = found.notes
    assert "behind the end of its audio" in note


@pytest.mark.parametrize("kind", FORMATS)
def test_files_one_behind_another_are_one_piece_or_the_second_is_told_of(kind):
    whole = measure_audio(encoded(kind))
    if kind == "flac":
        assert "damaged" in refusal(encoded(kind) + encoded(kind, seed=1))
        return
    found = measure_audio(encoded(kind) + encoded(kind, seed=1))
    if kind in CHAINED:
        assert found == Measured(2 * whole.samples, whole.rate)
    else:
        assert found.samples == whole.samples
        (note,) = found.notes
        assert "behind the end of its audio" in note


def put(content: bytes, at: int, piece: bytes) -> bytes:
    return content[:at] + piece + content[at + len(piece) :]


def xing(content: bytes, frames: int) -> bytes:
    return put(content, content.index(b"Xing") + 8 if b"Xing" in content else content.index(b"Info") + 8, u32(frames))


def u32(value: int) -> bytes:
    return struct.pack(">I", value)


CLAIMS: dict[str, Callable[[bytes, float], bytes]] = {
    "wav": lambda c, factor: put(c, 40, struct.pack("<I", int(factor * (len(c) - 44)))),
    "aiff": lambda c, factor: put(c, c.index(b"COMM") + 10, u32(int(factor * SECONDS * RATE))),
    "au": lambda c, factor: put(c, 8, u32(int(factor * (len(c) - 24)))),
    "flac": lambda c, factor: put(c, 22, u32(int(factor * SECONDS * RATE))),
    "mp3": lambda c, factor: xing(c, int(factor * SECONDS * RATE / 1152)),
}


@pytest.mark.parametrize("kind", CLAIMS)
def test_a_header_that_counts_too_much_is_refused_and_one_that_counts_too_little_is_told(kind):
    whole, claim = encoded(kind), CLAIMS[kind]
    assert "the header claims" in refusal(claim(whole, 2.0))
    assert refusal(claim(whole, 1200.0)).endswith(("cut off", "damaged"))
    found = measure_audio(claim(whole, 0.5), "it")
    (note,) = found.notes
    if kind in ("flac", "mp3", "aiff"):
        assert found.seconds == pytest.approx(SECONDS, abs=0.06)
        assert "its header counts" in note
    else:
        assert "behind the end of its audio" in note


@pytest.mark.parametrize("kind", FORMATS)
def test_a_name_says_nothing(kind, tmp_path):
    """Neither a wrong extension nor one that libraries take for something of its own."""
    for name in ("song.mp3", "song.raw", "song", "song.txt"):
        (tmp_path / name).write_bytes(encoded(kind))
        assert measure_audio(tmp_path / name) == measure_audio(encoded(kind))


@settings(max_examples=300)
@given(kind=st.sampled_from(FORMATS), data=st.data())
def test_damaged_bytes_are_a_file_s_own_trouble(kind, data):
    """Whatever a few bytes are changed to: a number of samples, or a line, and nothing unforeseen in it."""
    content = bytearray(encoded(kind, 0.5))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(content), data.draw(st.sampled_from([64, 4000, len(content)]))) - 1))
        content[at] = data.draw(st.integers(0, 255))
    found = measured_or_refused(bytes(content))
    if isinstance(found, str):
        assert found.startswith("it: ")
        assert "cannot be read" not in found
    else:
        assert 0 <= found.seconds < 60


def frames_of_mp3(content: bytes) -> list[bytes]:
    """The frames of an mp3 of MPEG-1 without tags, in order."""
    rates = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320]
    frames = []
    while content:
        size = 144000 * rates[content[2] >> 4] // RATE + (content[2] >> 1 & 1)
        frames.append(content[:size])
        content = content[size:]
    return frames


def test_an_mp3_of_variable_rate_without_a_count_is_read_to_its_end():
    """Its first frames say nothing of its length: quiet at first, then loud, and the other way round."""
    loud = np.repeat([0.0, 1.0, 0.0], 2 * RATE)[:, None] * music(RATE, 6.0)
    for samples in (loud, loud[RATE:], loud[3 * RATE :]):
        file = io.BytesIO()
        soundfile.write(file, samples, RATE, format="MP3", bitrate_mode="VARIABLE", compression_level=0.2)
        first, *frames = frames_of_mp3(file.getvalue())
        assert b"Xing" in first
        measured = measure_audio(b"".join(frames))
        assert measured == Measured(1152 * len(frames), RATE)
        assert measured.seconds == pytest.approx(len(samples) / RATE, abs=0.1)


@pytest.mark.parametrize("tags", [1, 2, 3])
def test_tags_before_and_behind_an_mp3_are_no_junk(tags):
    """Nor is a word in them that looks like a count."""
    id3 = b"ID3\x04\x00\x00" + bytes([0, 0, 4, 0]) + (b"Info" + u32(1) + u32(7)).ljust(512, b"x")
    ape = b"APETAGEX" + struct.pack("<IIII", 2000, 64, 1, 0) + bytes(8)
    behind = b"y" * 32 + ape + b"TAG" + b"z" * 125
    assert measure_audio(tags * id3 + encoded("mp3") + behind) == measure_audio(encoded("mp3"))
    assert measure_audio(id3 + encoded("flac") + behind[-128:]) == measure_audio(encoded("flac"))


def test_an_ogg_that_was_cut_out_of_another_is_read():
    """Its pages count from where it was, and its last one ends anywhere."""
    for kind in ("ogg", "opus"):
        content, shift = encoded(kind), 12345678
        pages = _pages(content)
        moved = b"".join(
            _repaired(put(page, 6, struct.pack("<q", int.from_bytes(page[6:14], "little") + shift)))
            if 0 < int.from_bytes(page[6:14], "little") < 1 << 62
            else page
            for page in pages
        )
        assert measure_audio(moved).seconds == pytest.approx(SECONDS, abs=0.05)


def test_an_ogg_without_a_page_or_with_a_changed_one_is_refused():
    pages = _pages(encoded("ogg"))
    assert "pages are missing" in refusal(b"".join(pages[:3] + pages[4:]))
    assert "lacks the mark of the end" in refusal(b"".join(pages[:-1]))
    changed = bytearray(pages[4])
    changed[-1] ^= 1
    assert "checksum" in refusal(b"".join([*pages[:4], bytes(changed), *pages[5:]]))
    assert "there are no page of ogg" in refusal(b"".join([*pages[:4], JUNK, *pages[4:]]))


def _pages(content: bytes) -> list[bytes]:
    pages = []
    while content:
        size = 27 + content[26] + sum(content[27 : 27 + content[26]])
        pages.append(content[:size])
        content = content[size:]
    return pages


def _repaired(page: bytes) -> bytes:
    """With the checksum of its content, bit by bit."""
    page, checksum = put(page, 22, bytes(4)), 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ (0x04C11DB7 if checksum & 0x80000000 else 0)) & 0xFFFFFFFF
    return put(page, 22, struct.pack("<I", checksum))


@pytest.mark.parametrize("seconds", [0.05, 0.3, 1.0])
def test_a_vorbis_of_one_page_has_all_its_samples(seconds):
    """FFmpeg by itself misses the end of such a stream."""
    for rate in (8000, 22050, RATE, 48000):
        samples = 0.5 * np.sin(2764 * np.arange(round(seconds * rate)) / rate)
        file = io.BytesIO()
        soundfile.write(file, samples, rate, format="OGG")
        expected, _ = soundfile.read(io.BytesIO(file.getvalue()))
        found = decode_audio(file.getvalue(), "it", AudioSettings(rate, normalize=False))
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_flac_of_unknown_length_is_read_whole_or_refused():
    content = bytearray(encoded("flac"))
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    found = measure_audio(bytes(content))
    assert found.seconds == SECONDS
    assert found.notes == ("its header states no length, so whether it is whole cannot be told",)
    changed = content.copy()
    changed[len(changed) // 2] ^= 1
    assert "damaged at 1." in refusal(bytes(changed))
    assert "cannot be decoded beyond 1." in refusal(bytes(content[: len(content) // 2]))


def test_where_a_file_is_damaged_is_said():
    for kind in ("mp3", "mp2", "aac", "flac"):
        content = bytearray(encoded(kind))
        middle = len(content) // 2
        content[middle : middle + 3000] = bytes(3000)
        assert "damaged at 1." in refusal(bytes(content))


def test_a_webm_and_an_mp4_that_are_streamed_are_read_or_cut_off():
    for name, codec, rate in (("webm", "libopus", 48000), ("mp4", "aac", RATE)):
        options = {"live": "1"} if name == "webm" else {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
        file = io.BytesIO()
        encode(file, name, codec, music(rate), rate, **options)
        found = measure_audio(file.getvalue())
        assert found.seconds == pytest.approx(SECONDS, abs=0.05)
        assert found.notes == () or "states no length" in found.notes[0]
        assert "cut off" in refusal(file.getvalue()[: len(file.getvalue()) * 2 // 3 + 7])


def test_a_sample_rate_that_changes_is_refused():
    other = io.BytesIO()
    soundfile.write(other, music(48000), 48000, format="MP3")
    assert "its sample rate changes from 44100 to 48000 Hz at 3.0 s" in refusal(encoded("mp3") + other.getvalue())


def test_channels_that_cancel_each_other_are_told_and_left_takes_one():
    file, left = io.BytesIO(), music()[:, 0]
    soundfile.write(file, np.stack([left, -left], axis=1), RATE, format="WAV", subtype="FLOAT")
    mean = AudioSettings(RATE, normalize=False)
    with pytest.warns(AudioWarning, match="channels cancel each other"):
        assert not decode_audio(file.getvalue(), "it", mean).any()
    taken = decode_audio(file.getvalue(), "it", AudioSettings(RATE, normalize=False, mixdown="left"))
    np.testing.assert_array_equal(taken, left)
    # The same of samples in memory, however their axes lie.
    for samples in (np.stack([left, -left]), np.stack([left, -left], axis=1)):
        with pytest.warns(AudioWarning, match="waveform: its channels cancel each other"):
            assert not prepare_waveform(samples, RATE, mean).any()
        only = prepare_waveform(samples, RATE, AudioSettings(RATE, normalize=False, mixdown="left"))
        np.testing.assert_array_equal(only, left)
    # A quiet file, and a wide one, are as they are.
    for samples in (np.stack([left, 0.9 * np.roll(left, 50)], axis=1), 1e-5 * np.stack([left, -left], axis=1)):
        file = io.BytesIO()
        soundfile.write(file, samples, RATE, format="WAV", subtype="FLOAT")
        assert len(decode_audio(file.getvalue(), "it", mean)) == len(left)


PROGRAMS = {
    "lame -V2 -t {wav} {out}": 3.0,
    "lame --abr 140 -t {wav} {out}": 3.0,
    "lame -b 128 {wav} {out}": 3.0,
    "lame --preset extreme {wav} {out}": 3.0,
    "flac --silent -f -o {out} {wav}": 3.0,
    "opusenc --quiet {wav} {out}": 3.0,
    "oggenc --quiet -o {out} {wav}": 3.0,
    "ffmpeg -v error -y -ss 1 -t 1.5 -i {wav} -f ogg -c:a libvorbis {out}": 1.5,
    "ffmpeg -v error -y -i {wav} -f ogg -c:a libopus {out}": 3.0,
    "ffmpeg -v error -y -i {wav} -f asf {out}": 3.0,
    "ffmpeg -v error -y -i {wav} -f ipod -movflags faststart {out}": 3.0,
    "ffmpeg -v error -y -i {wav} -f mp3 -write_xing 0 {out}": 3.0,
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_others_programs_write_is_read_whole(program, tmp_path):
    """The same by programs of many years' use; the other tests here do without them."""
    name = program.split()[0]
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    soundfile.write(tmp_path / "in.wav", music(), RATE)
    words = program.format(wav=tmp_path / "in.wav", out=tmp_path / "out").split()
    subprocess.run(words, check=True, capture_output=True)
    found = measure_audio(tmp_path / "out")
    assert found.seconds == pytest.approx(PROGRAMS[program], abs=0.06)
    assert found.notes == ()


def test_a_pipe_and_a_link_to_nowhere_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "dangling.wav").symlink_to(tmp_path / "gone.wav")
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    for name, reason in (("pipe", "a pipe"), ("dangling", "No such file"), ("loop", "Too many levels")):
        with pytest.raises(UserError, match=rf"{name}\.wav: .*{reason}"):
            measure_audio(Path(tmp_path / f"{name}.wav"))

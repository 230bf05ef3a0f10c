"""Audio files and arrays: formats, rates, channels, everything that can be wrong with a file, windows, crops."""

import json
import struct
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from mlingo_jax.data.audio import (
    AudioSettings,
    Measured,
    chunks,
    crop,
    decode_audio,
    measure_audio,
    normalize,
    prepare_waveform,
    read_audio,
)
from mlingo_jax.errors import AudioWarning, UserError

SETTINGS = AudioSettings(sample_rate=24000, normalize=True)
LENGTHS = st.integers(1, 400)


def tone(rate: int, seconds: float = 1.0, frequency: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
@pytest.mark.parametrize(("suffix", "tolerance"), [("wav", 1e-3), ("flac", 1e-3), ("ogg", 0.05), ("mp3", 0.05)])
def test_every_format_and_rate_gives_the_same_sound(tmp_path, suffix, tolerance, rate):
    """The lossy formats change the samples, by up to 5 % of the full scale on a pure tone."""
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, np.stack([1.5 * tone(rate), 0.5 * tone(rate)], axis=1), rate)
    waveform = read_audio(path, SETTINGS)
    assert waveform.dtype == np.float32
    assert len(waveform) == pytest.approx(24000, abs=2)
    middle = slice(4800, 19200)
    np.testing.assert_allclose(waveform[middle], tone(24000)[middle], atol=tolerance)


def test_a_file_at_the_encoders_rate_is_not_touched(tmp_path):
    samples = np.random.default_rng(0).uniform(-1, 1, 1000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 24000, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", SETTINGS), samples)


def test_blocks_leave_no_trace(tmp_path):
    """Seven seconds at 96 kHz are three blocks; the array, cut otherwise, gives the same waveform."""
    samples = np.random.default_rng(0).uniform(-1, 1, (7 * 96000, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 96000, subtype="FLOAT")
    from_file = read_audio(tmp_path / "a.wav", SETTINGS)
    np.testing.assert_array_equal(from_file, prepare_waveform(samples, 96000, SETTINGS))
    assert len(from_file) == 7 * 24000


def test_a_long_file_needs_little_more_than_its_waveform(tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros((180 * 48000, 2), np.int16), 48000)
    tracemalloc.start()
    try:
        waveform = read_audio(path, SETTINGS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(waveform) == 180 * 24000
    assert peak < 1.15 * waveform.nbytes + 20e6


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32])
def test_integers_span_minus_one_to_one(dtype):
    limits = np.iinfo(dtype)
    samples = np.tile(np.array([limits.min, limits.max], dtype), 300)
    waveform = prepare_waveform(samples, 24000, SETTINGS)
    np.testing.assert_allclose(waveform[:2], [-1, 1], atol=0.01)
    assert waveform.min() == -1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_floats_are_taken_as_they_are(dtype):
    waveform = prepare_waveform(np.full(500, 0.5, dtype), 24000, SETTINGS)
    assert waveform.dtype == np.float32
    assert (waveform == 0.5).all()


def test_the_shorter_axis_is_the_channels():
    left, right = tone(24000), tone(24000, frequency=880)
    for stereo in (np.stack([left, right]), np.stack([left, right], axis=1)):
        np.testing.assert_allclose(prepare_waveform(stereo, 24000, SETTINGS), (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize(
    ("waveform", "rate", "message"),
    [
        (np.zeros(0, np.float32), 24000, "no audio in it"),
        (np.zeros(399, np.float32), 24000, "too short, 399 samples at 24000 Hz; the encoder needs at least 400"),
        (np.zeros(700, np.float32), 48000, "too short, 350 samples"),
        (np.array([0, np.nan] * 300), 24000, "not finite"),
        (np.array([0, -np.inf] * 300), 24000, "not finite"),
        (np.zeros((2, 3, 400)), 24000, r"found \[2, 3, 400\]"),
        (np.zeros(500, np.int64), 24000, "type int64"),
        (np.zeros(500, bool), 24000, "type bool"),
        (np.zeros(500, complex), 24000, "type complex128"),
        (np.zeros(500), 0, "positive whole number"),
    ],
)
def test_bad_waveforms_are_refused(waveform, rate, message):
    with pytest.raises(UserError, match=message):
        prepare_waveform(waveform, rate, SETTINGS)


def test_silence_is_legal(tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(24000), 24000)
    waveform = read_audio(tmp_path / "silence.wav", SETTINGS)
    assert not waveform.any()
    assert not normalize(waveform).any()


def refused(path: Path, message: str) -> None:
    """The file is refused in one line that begins with its name."""
    with pytest.raises(UserError, match=message) as error:
        read_audio(path, SETTINGS)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_files_that_are_not_audio_are_refused(tmp_path):
    refused(tmp_path / "missing.wav", "No such file")
    refused(tmp_path, "Is a directory")
    (tmp_path / "empty.wav").touch()
    refused(tmp_path / "empty.wav", "the file is empty")
    for suffix in ("wav", "flac", "ogg", "mp3", "txt"):
        (tmp_path / f"text.{suffix}").write_text("This is a text about music. " * 200)
        refused(tmp_path / f"text.{suffix}", "not audio")


def test_audio_without_enough_in_it_is_refused(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 24000)
    refused(tmp_path / "none.wav", "no audio in it")
    soundfile.write(tmp_path / "short.wav", np.zeros(798), 48000)
    refused(tmp_path / "short.wav", "too short, 399 samples")
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan] * 500), 24000, subtype="FLOAT")
    refused(tmp_path / "nan.wav", "not finite")
    soundfile.write(tmp_path / "enough.wav", np.zeros(400), 24000)
    assert len(read_audio(tmp_path / "enough.wav", SETTINGS)) == 400
    with pytest.raises(UserError, match="at least 500"):
        read_audio(tmp_path / "enough.wav", SETTINGS, minimum=500)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "au"])
def test_a_file_cut_off_in_the_middle_is_refused(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, (48000, 2)), 24000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(path, "cut off")


def test_a_header_that_claims_an_hour_is_refused(tmp_path):
    samples = np.random.default_rng(0).uniform(-1, 1, 24000)
    soundfile.write(tmp_path / "a.wav", samples, 24000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[40:44] = struct.pack("<I", 3600 * 48000)
    (tmp_path / "a.wav").write_bytes(content)
    refused(tmp_path / "a.wav", "claims 172,800,000 bytes of audio, the file has 48,000")
    soundfile.write(tmp_path / "a.flac", samples, 24000)
    content = bytearray((tmp_path / "a.flac").read_bytes())
    content[22:26] = struct.pack(">I", 3600 * 24000)
    (tmp_path / "a.flac").write_bytes(content)
    refused(tmp_path / "a.flac", "claims 3600.0 s of audio, the file has 1.0 s")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_bytes_in_memory_are_read_as_the_file_is(tmp_path, suffix):
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(22050, 2.0), 22050)
    encoded = path.read_bytes()
    np.testing.assert_array_equal(decode_audio(encoded, "clip 7", SETTINGS), read_audio(path, SETTINGS))
    with pytest.raises(UserError, match="clip 7: the file is empty"):
        decode_audio(b"", "clip 7", SETTINGS)
    with pytest.raises(UserError, match=r"clip 7: (damaged|the header claims|not audio)"):
        decode_audio(encoded[: len(encoded) // 8] if suffix in ("wav", "flac") else b"noise", "clip 7", SETTINGS)


def test_a_file_is_measured_by_decoding_it(tmp_path):
    path = tmp_path / "tone.flac"
    soundfile.write(path, tone(22050, 2.0), 22050)
    assert measure_audio(path) == measure_audio(path, most_seconds=3.0) == Measured(44100, 22050)
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 8000)
    assert measure_audio(tmp_path / "none.wav") == Measured(0, 8000)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"tone\.flac: (damaged|the header claims)"):
        measure_audio(path)
    soundfile.write(path, tone(22050, 20.0), 22050)
    longer = measure_audio(path, most_seconds=1.0)
    assert longer.is_longer
    assert 1 < longer.seconds < 20


def test_a_damaged_middle_is_refused(tmp_path):
    for suffix in ("flac", "ogg", "mp3"):
        path = tmp_path / f"damaged.{suffix}"
        soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, (96000, 2)), 24000)
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 9000] = bytes(9000)
        path.write_bytes(content)
        refused(path, "damaged")


def test_streamed_headers_that_state_no_length_are_legal(tmp_path):
    """What a program leaves that writes into a pipe and cannot come back to the header."""
    samples = np.random.default_rng(0).uniform(-1, 1, 24000)
    soundfile.write(tmp_path / "a.wav", samples, 24000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(content)
    soundfile.write(tmp_path / "a.flac", samples, 24000)
    content = bytearray((tmp_path / "a.flac").read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(content)
    for name in ("a.wav", "a.flac"):
        with pytest.warns(AudioWarning, match=f"{name}: its header states no length, so whether it is whole cannot"):
            assert len(read_audio(tmp_path / name, SETTINGS)) == 24000


def test_an_mp3_without_a_count_of_its_frames_is_as_long_as_it_is(tmp_path):
    """libsndfile then guesses a length from the first frame, which proves nothing against the file."""
    path = tmp_path / "a.mp3"
    noise_late = np.random.default_rng(0).normal(0, 0.1, 8 * 44100) * np.repeat([0, 1], 4 * 44100)
    soundfile.write(path, noise_late, 44100, bitrate_mode="AVERAGE")
    content = path.read_bytes()
    assert b"Xing" in content[:200]
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, 2, 0]) + bytes(256)
    second_frame = content.index(content[:2], 4)
    path.write_bytes(tag + content[second_frame:])
    assert len(read_audio(path, SETTINGS)) > 0.9 * 8 * 24000
    path.write_bytes(tag + content[: len(content) // 2])
    refused(path, "cut off")


@given(length=st.integers(1, 3000), chunk=st.integers(1, 500), rate=st.integers(1, 500))
def test_chunks_cover_the_waveform(length, chunk, rate):
    waveform = np.arange(length, dtype=np.float32)
    pieces = chunks(waveform, chunk, rate)
    np.testing.assert_array_equal(np.concatenate(pieces), waveform)
    assert all(len(piece) == chunk for piece in pieces[:-1])
    assert len(pieces[-1]) < chunk + rate
    assert len(pieces) == 1 or len(pieces[-1]) >= min(rate, chunk)
    if length <= chunk:
        assert len(pieces) == 1


@given(length=st.integers(1, 60), samples=st.integers(1, 60), seed=st.integers(0, 5))
def test_crops_lie_inside(length, samples, seed):
    waveform = np.arange(length, dtype=np.float32)
    first = crop(waveform, samples)
    np.testing.assert_array_equal(first, waveform[:samples])
    drawn = crop(waveform, samples, np.random.default_rng(seed))
    assert len(drawn) == len(first)
    np.testing.assert_array_equal(drawn, drawn[0] + np.arange(len(drawn)))
    np.testing.assert_array_equal(drawn, crop(waveform, samples, np.random.default_rng(seed)))


def test_normalize():
    waveform = np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32)
    expected = (waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)
    np.testing.assert_allclose(normalize(waveform), expected, atol=1e-6)
    np.testing.assert_allclose(normalize(2 * waveform + 0.1), expected, atol=1e-5)


def test_settings_come_from_the_encoders_folder(tmp_path):
    with pytest.raises(UserError, match="no valid sampling_rate"):
        AudioSettings.from_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"sample_rate": 16000}))
    assert AudioSettings.from_folder(tmp_path) == AudioSettings(16000, normalize=True)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 24000, "do_normalize": False}))
    assert AudioSettings.from_folder(tmp_path) == AudioSettings(24000, normalize=False)
    for wrong in ("[]", "{", '{"sampling_rate": "fast"}'):
        (tmp_path / "preprocessor_config.json").write_text(wrong)
        with pytest.raises(UserError, match=r"preprocessor_config\.json"):
            AudioSettings.from_folder(tmp_path)

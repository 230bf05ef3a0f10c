"""Audio files of all formats that are read, made by the libraries that are there in any case."""

import functools
import io

import av
import numpy as np
import soundfile
from av.audio.stream import AudioStream

RATE = 44100
SECONDS = 3.0
# By format: FFmpeg's name for the container, its encoder, and the rate it is made at.
_BY_FFMPEG = {
    "w64": ("w64", "pcm_s16le", RATE),
    "aifc": ("aiff", "pcm_s16le", RATE),
    "caf": ("caf", "pcm_s24be", RATE),
    "caf alac": ("caf", "alac", RATE),
    "voc": ("voc", "pcm_u8", 22050),
    "opus": ("ogg", "libopus", 48000),
    "ogg flac": ("ogg", "flac", RATE),
    "mp2": ("mp2", "mp2", RATE),
    "aac": ("adts", "aac", RATE),
    "m4a": ("ipod", "aac", RATE),
    "m4a alac": ("ipod", "alac", RATE),
    "mov": ("mov", "pcm_s16be", RATE),
    "webm": ("webm", "libopus", 48000),
    "mkv": ("matroska", "flac", RATE),
    "wma": ("asf", "wmav2", RATE),
    "wav adpcm": ("wav", "adpcm_ima_wav", RATE),
}
_BY_SOUNDFILE = {
    "wav": ("WAV", "PCM_16"),
    "wav float": ("WAV", "FLOAT"),
    "rf64": ("RF64", "PCM_24"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "sph": ("NIST", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
FORMATS = (*_BY_SOUNDFILE, *_BY_FFMPEG)


def music(rate: int = RATE, seconds: float = SECONDS, seed: int = 0) -> np.ndarray:
    """Two channels [N, 2] of a chord and some noise, so that no two stretches are alike."""
    time = np.arange(round(rate * seconds)) / rate
    noise = np.random.default_rng(seed).normal(0, 0.03, (len(time), 2))
    chord = sum(0.1 * np.sin(2 * np.pi * f * time * (1 + 0.02 * time)) for f in (220 + 20 * seed, 330, 440))
    return (np.asarray(chord)[:, None] + noise).astype(np.float32)


@functools.cache
def encoded(kind: str, seconds: float = SECONDS, seed: int = 0) -> bytes:
    """A whole file's bytes."""
    file = io.BytesIO()
    if kind in _BY_SOUNDFILE:
        name, subtype = _BY_SOUNDFILE[kind]
        soundfile.write(file, music(RATE, seconds, seed), RATE, format=name, subtype=subtype)
        return file.getvalue()
    name, codec, rate = _BY_FFMPEG[kind]
    encode(file, name, codec, music(rate, seconds, seed), rate)
    return file.getvalue()


def encode(file: io.BytesIO, name: str, codec: str, samples: np.ndarray, rate: int, **options: str) -> None:
    """Writes [N, C] by FFmpeg."""
    with av.open(file, "w", format=name, options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo" if samples.shape[1] == 2 else "mono")
        assert isinstance(stream, AudioStream)
        context = stream.codec_context
        context.thread_count, context.bit_rate = 1, 128_000
        resampler = av.AudioResampler(context.format, context.layout, rate, context.frame_size or 1024)
        frame = av.AudioFrame.from_ndarray(samples.T.copy(), "fltp", context.layout.name)
        frame.sample_rate = rate
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        # The last of some encoders is a packet of nothing.
        container.mux([packet for packet in stream.encode(None) if packet.size])

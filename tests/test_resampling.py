"""Resampling as torchaudio does it: its own numbers, any rate and length, and where it can be asked for."""

import math
from typing import get_args

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from mlingo_jax.data import audio
from mlingo_jax.data.audio import AudioSettings, prepare_waveform, read_audio
from mlingo_jax.data.resampling import Resampling, sinc_hann
from mlingo_jax.features.cache import Fingerprint
from mlingo_jax.settings import RESAMPLINGS

SAW = (np.arange(64) % 7 - 3).astype(np.float32) / 4


@pytest.mark.parametrize(
    ("rate", "length", "first", "last"),
    [
        (16000, 96, [-0.74556684, -0.67175186, -0.36667481, -0.2483526], [0.73856056, -0.36319053, -0.71526587]),
        (44100, 35, [-0.53652245, -0.34999186, 0.20583612, 0.55853266], [-0.062444128, 0.54232329, 0.050059527]),
        (48000, 32, [-0.49575952, -0.35691744, 0.38979325, 0.29005724], [-0.42005309, 0.42498547, 0.26104286]),
    ],
)
def test_the_numbers_are_torchaudio_s(rate, length, first, last):
    """Of torchaudio 2.11's functional.resample for the same 64 samples."""
    found = sinc_hann(SAW, rate, 24000)
    assert len(found) == length
    np.testing.assert_allclose(found[:4], first, atol=2e-7)
    np.testing.assert_allclose(found[-3:], last, atol=2e-7)


@given(st.integers(0, 300), st.sampled_from([(2, 3), (3, 2), (147, 80), (80, 147), (1, 1)]))
def test_it_is_a_windowed_sinc_at_every_place(samples, rates):
    """The sum over all samples, written down plainly; 8,000 Hz is no more than a unit."""
    old, new = rates
    waveform = np.random.default_rng(samples).normal(size=samples).astype(np.float32)
    found = sinc_hann(waveform, old * 1000, new * 1000)
    assert len(found) == math.ceil(samples * new / old)
    if old == new:
        np.testing.assert_array_equal(found, waveform)
        return
    cutoff = 0.99 * min(old, new) / old
    distance = (np.arange(len(found))[:, None] * old / new - np.arange(samples)) * cutoff
    window = np.where(np.abs(distance) < 6, np.cos(distance * np.pi / 12) ** 2, 0)
    np.testing.assert_allclose(found, (np.sinc(distance) * window * cutoff) @ waveform, atol=2e-5)


def test_a_long_waveform_is_made_in_parts(monkeypatch):
    waveform = np.random.default_rng(0).normal(size=50_000).astype(np.float32)
    whole = sinc_hann(waveform, 44100, 24000)
    monkeypatch.setattr("mlingo_jax.data.resampling._AT_ONCE", 7)
    np.testing.assert_allclose(sinc_hann(waveform, 44100, 24000), whole, atol=1e-6)


def test_audio_is_resampled_as_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "_BLOCK", 1000)
    samples = np.random.default_rng(0).normal(0, 0.1, (20_000, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 44100, subtype="FLOAT")
    by_soxr, by_sinc = (AudioSettings(24000, True, resampling=name) for name in get_args(Resampling))
    encoded = read_audio(tmp_path / "a.wav", by_sinc)
    np.testing.assert_array_equal(encoded, sinc_hann(samples.mean(1), 44100, 24000))
    np.testing.assert_array_equal(encoded, prepare_waveform(samples, 44100, by_sinc))
    other = read_audio(tmp_path / "a.wav", by_soxr)
    # soxr rounds the length, torchaudio rounds it up.
    assert len(encoded) - len(other) in (0, 1)
    inside = slice(100, len(other) - 100)
    assert 1e-3 < np.abs(encoded[inside] - other[inside]).max() < 0.3
    at_its_rate = AudioSettings(44100, True, resampling="sinc_hann")
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", at_its_rate), samples.mean(1))


def test_features_of_one_filter_are_not_taken_for_another_s():
    made = {
        name: Fingerprint.of(
            {"name": "mert"}, AudioSettings(24000, normalize=True, resampling=name), frames_per_token=325, seconds=30.0
        )
        for name in get_args(Resampling)
    }
    assert made["soxr"].differences(made["sinc_hann"]) == ["resampling: 'soxr' and 'sinc_hann'"]
    assert made["soxr"].kind != made["sinc_hann"].kind
    assert get_args(Resampling) == RESAMPLINGS

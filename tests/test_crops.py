"""Fixed crops: where they lie, and that training from the cache of them is training from the audio."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from mlingo_jax.data.audio import AudioSettings, read_audio
from mlingo_jax.data.excerpts import Excerpts, drawn_start
from mlingo_jax.data.resampling import sinc_hann
from mlingo_jax.errors import UserError
from mlingo_jax.features.cache import FeatureCache
from mlingo_jax.features.crops import Crops
from mlingo_jax.features.encode import AudioEncoder
from mlingo_jax.features.spec import FeatureSpec
from mlingo_jax.settings import Config
from mlingo_jax.training.loop import train
from mlingo_jax.training.music import encode_clips, load_encoder
from mlingo_jax.training.record import read_metrics
from mlingo_jax.training.sharding import local_mesh
from tests.tiny import tiny_llama, tiny_mert

RATE = 100


@given(samples=st.integers(0, 5000), seconds=st.floats(0.5, 20), seed=st.integers(0, 9), clip=st.text(max_size=9))
def test_crops_lie_within_the_clip_where_they_are_said_to(samples, seconds, seed, clip):
    waveform = np.arange(samples, dtype=np.float32)
    crops = Crops(3, seconds, seed)
    length = crops.samples(RATE)
    for number, crop in enumerate(crops.cut_all(waveform, RATE, clip)):
        np.testing.assert_array_equal(crop, crops.cut(waveform, RATE, clip, number))
        assert len(crop) == min(samples, length)
        drawn = int.from_bytes(hashlib.sha256(f"{seed}:{number}:{clip}".encode()).digest()[:8], "big")
        if samples > length:
            assert crop[0] == drawn * (samples - length + 1) // 2**64
    assert crops.distinct(samples, RATE) == (3 if samples > length else 1)


def test_crops_are_spread_over_the_clip_and_do_not_depend_on_how_many_there_are():
    waveform = np.arange(1001, dtype=np.float32)
    starts = [crop[0] for crop in Crops(2000, 0.01, 0).cut_all(waveform, RATE, "clip")]
    counts, _ = np.histogram(starts, bins=10, range=(0, 1001))
    assert counts.min() > 150
    assert starts[:5] == [crop[0] for crop in Crops(5, 0.01, 0).cut_all(waveform, RATE, "clip")]
    assert starts[:5] != [crop[0] for crop in Crops(5, 0.01, 1).cut_all(waveform, RATE, "clip")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Towers, and clips of 0.8 to 2.2 seconds."""
    folder = tmp_path_factory.mktemp("crops")
    tiny_mert(folder / "mert")
    tiny_llama(folder / "llm")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(8):
        soundfile.write(folder / f"{i}.wav", rng.normal(0, 0.1, int(24000 * (0.8 + 0.2 * i))), 24000, subtype="FLOAT")
        split = "eval" if i % 4 == 3 else "train"
        lines.append({"audio": f"{i}.wav", "question": "What plays?", "answer": f"A bell, number {i}.", "split": split})
    (folder / "music.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def settings(folder: Path, name: str, **data: Any) -> Config:
    config = Config()
    config.workdir = str(folder / name)
    config.mert.path, config.llm.path = str(folder / "mert"), str(folder / "llm")
    config.mert.dtype = config.llm.dtype = "float32"
    config.mert.frames_per_token = 20
    config.steps, config.batch_size, config.accumulate = 8, 4, 1
    config.optim.lr, config.optim.warmup_steps = 0.02, 0
    config.log.eval_answers = 0
    config.data.manifest = str(folder / "music.jsonl")
    for field, value in data.items():
        setattr(config.data, field, value)
    return config


def losses(config: Config) -> list[float]:
    return [r["loss"] if "loss" in r else r["eval_loss"] for r in read_metrics(config.workdir)]


def test_training_from_the_cache_is_training_from_audio(folder):
    """On crops of the longer clips, and the whole of the shorter ones."""
    crops = {"crops": 3, "crop_seconds": 1.0}
    cached, encoded = settings(folder, "cached", **crops), settings(folder, "encoded", **crops, encode_in_step=True)
    encoded.log.eval_answers = 1
    train(cached)
    train(encoded)
    assert len(losses(cached)) == 9
    assert read_metrics(encoded.workdir)[-1]["answers"][0]["question"]
    assert losses(cached) == pytest.approx(losses(encoded), rel=1e-5)
    assert not (Path(encoded.workdir) / "features").exists()


def test_a_cache_of_other_crops_is_refused(folder):
    config = settings(folder, "refused", crops=2, crop_seconds=1.0, features=str(folder / "features"))
    config.steps = 1
    train(config)
    cache = FeatureCache(folder / "features")
    # 74 frames in a second; the first clip is shorter than a crop.
    assert (cache.shape("1.wav")[:2], cache.shape("0.wav")[:2]) == ((1, 4), (1, 3))
    assert cache.shape("7.wav")[:2] == (2, 4)
    for change, message in (
        ({"crops": 3}, "crops: 2 and 3"),
        ({"crop_seconds": 1.5}, "seconds: 1.0 and 1.5"),
        ({"crop_seed": 1}, "crop_seed: 0 and 1"),
        ({"store": "bfloat16"}, "stored: 'float32' and 'bfloat16'"),
        ({"crops": 0}, "seconds: 1.0 and 30.0; crops: 2 and 0"),
    ):
        other = settings(
            folder, "other", **{"crops": 2, "crop_seconds": 1.0, "features": config.data.features} | change
        )
        with pytest.raises(UserError, match=message):
            train(other)


@given(samples=st.integers(1, 900), length=st.integers(1, 600), clip=st.text(max_size=9))
def test_excerpts_are_parts_of_a_clip_filled_up_with_zeros(samples, length, clip):
    waveform = np.arange(1, samples + 1, dtype=np.float32)
    for number, part in enumerate(Excerpts(3, length, 5).cut(waveform, clip)):
        assert len(part) == length
        begin = drawn_start(5, number, clip, max(samples - length, 0) + 1)
        np.testing.assert_array_equal(part[:samples], waveform[begin : begin + length])
        assert not part[samples:].any()


@pytest.mark.parametrize("rate", [8000, 24000, 44100])
def test_crops_like_the_originals_are_cut_at_the_files_rate_and_encoded_whole(folder, tmp_path, rate):
    """A second's worth of samples at 24 kHz: 3 s of a file at 8 kHz, half of one at 44.1; louder audio is no other."""
    rng = np.random.default_rng(rate)
    clips = {}
    for name, seconds in (("long", 4), ("short", 0.3)):
        samples = rng.normal(0, 0.02, (int(seconds * rate), 2)).astype(np.float32)
        clips[name] = tmp_path / f"{name}.wav"
        soundfile.write(clips[name], samples, rate, subtype="FLOAT")
    config = settings(folder, "like", like_the_original=True, crops=2, crop_seconds=1.0, features=str(tmp_path / "f"))
    spec, mesh = FeatureSpec.of(config), local_mesh()
    with jax.set_mesh(mesh):
        tower = load_encoder(spec, mesh)
        cache, _ = encode_clips(spec, clips, tower, mesh)
    frames_per_token, minimum = spec.frames_per_token, tower.config.receptive_field
    plain = AudioEncoder(
        tower.graphdef, tower.params, tower.config, AudioSettings(24000, False), frames_per_token, seconds=60.0
    )
    for name, path in clips.items():
        own = read_audio(path, AudioSettings(rate, False), minimum=minimum)
        for number in range(2):
            begin = drawn_start(0, number, name, max(len(own) - 24000, 0) + 1)
            part = np.pad(own[begin : begin + 24000], (0, max(24000 - len(own), 0)))
            expected = plain([sinc_hann(part, rate, 24000)])[0]
            np.testing.assert_allclose(cache.crop(name, number), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("data", [{"crops": 0}, {"crops": 2, "encode_in_step": True}])
def test_crops_like_the_originals_are_kept_ones(folder, data):
    with pytest.raises(UserError, match=r"its crops are cut once and kept; give their number, config\.data\.crops"):
        FeatureSpec.of(settings(folder, "refused", like_the_original=True, **data))

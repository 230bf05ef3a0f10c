"""Training from prepared datasets: their examples by number, several splits in one stream, a whole run."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from mlingo_jax.data.audio import AudioSettings
from mlingo_jax.data.examples import Example
from mlingo_jax.data.mixture import Mixture, Wanted, evenly, parse_wanted, read_mixture
from mlingo_jax.data.pipeline import make_dataset
from mlingo_jax.data.prompt import Prompt, PromptSettings
from mlingo_jax.data.stored import duration
from mlingo_jax.datasets.manifest import Manifest
from mlingo_jax.datasets.music_caps import MusicCaps
from mlingo_jax.errors import UserError
from mlingo_jax.features.cache import FeatureCache, Fingerprint
from mlingo_jax.features.fill import fill_cache
from mlingo_jax.features.sources import CachedFeatures, OnlineAudio
from tests.collections_of_music import RATE, built, music_caps, tones, write_jsonl
from tests.tiny import tiny_tokenizer

AUDIO = AudioSettings(sample_rate=RATE, normalize=True)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """music_caps (2 clips to train on, 2 to evaluate), and manifest/mine: two clips, three questions."""
    folder = tmp_path_factory.mktemp("prepared")
    annotations, audio = music_caps(folder / "caps")
    built(MusicCaps, annotations, audio, folder / "data")
    tones(folder / "mine", ["1.wav", "2.wav"], seconds=1.0)
    rows = [{"audio": f"{n}.wav", "question": f"Question {n}{m}?", "answer": "A bell."} for n, m in ["1a", "1b", "2a"]]
    built(Manifest, write_jsonl(folder / "mine" / "mine.jsonl", rows), folder / "mine", folder / "data", config="mine")
    return folder / "data"


@pytest.fixture(scope="module")
def mixture(data_dir) -> Mixture:
    return read_mixture(data_dir, [Wanted("music_caps", "train"), Wanted("manifest/mine", "train", 3.0)])


@pytest.fixture(scope="module")
def prompt(tmp_path_factory) -> Prompt:
    return Prompt(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")), PromptSettings())


@pytest.fixture(scope="module")
def music(mixture, tmp_path_factory) -> CachedFeatures:
    """Two vectors per clip of a second, made by no encoder."""
    fingerprint = Fingerprint.of({"name": "x"}, AUDIO, frames_per_token=1, seconds=30.0)
    clips = {e.clip: e.audio for e in (mixture[i] for i in range(len(mixture)))}
    folder = tmp_path_factory.mktemp("features")
    cache, _ = fill_cache(clips, lambda ws: [np.full((2, 3), w.std(), np.float32) for w in ws], folder, fingerprint)
    return CachedFeatures(FeatureCache(cache.folder), clips)


def test_examples_are_read_by_number(mixture):
    assert (len(mixture), mixture.ranges, mixture.weights) == (5, [range(2), range(2, 5)], [1.0, 3.0])
    first, last = mixture[0], mixture[4]
    assert first.clip == "music_caps/0_aBcDeFgHi"
    assert first.where == "music_caps:train[0]"
    assert (last.clip, last.question) == ("manifest_mine/2.wav", "Question 2a?")
    assert duration(last.audio) == 1.0
    with pytest.raises(IndexError):
        mixture[5]
    some = mixture.where(np.array([False, True, True, True, False]))
    assert some.ranges == [range(1), range(1, 3)]
    assert [e.where for e in (some[i] for i in range(len(some)))] == [
        "music_caps:train[1]",
        "manifest/mine:train[0]",
        "manifest/mine:train[1]",
    ]
    assert [evenly(mixture, 2)[i].where for i in range(2)] == ["music_caps:train[0]", "manifest/mine:train[0]"]
    assert evenly(mixture, 0) is mixture


def test_a_stored_clip_is_heard(mixture, prompt):
    music = OnlineAudio(AUDIO, seconds=2.0, tokens=lambda samples: samples // 4000, minimum=400)
    batch = next(make_dataset(mixture, prompt, music, length=128, batch=5, seed=0))
    assert set(batch["waveform_length"]) <= {RATE, 2 * RATE}
    assert batch["waveform"].shape == (5, 2 * RATE)


@pytest.mark.parametrize("mixing", ["row", "step"])
def test_weights_epochs_and_going_on(mixture, prompt, music, mixing):
    """Each part has epochs of its own, is drawn from by its weight, and the stream resumes where it stopped."""

    def stream(*, batch=2, **place):
        options = {"length": 128, "batch": batch, "seed": 5, "parts": mixture.ranges, "weights": mixture.weights}
        return make_dataset(mixture, prompt, music, **options, apart=mixing == "step", **place)

    batches = list(itertools.islice(stream(), 24))
    drawn = np.concatenate([b["example"] for b in batches])
    assert (drawn < 2).sum() == 12
    if mixing == "step":
        assert all(len({place < 2 for place in b["example"]}) == 1 for b in batches)
    for part, size in ((drawn[drawn < 2], 2), (drawn[drawn >= 2], 3)):
        epochs = part[: len(part) // size * size].reshape(-1, size)
        assert (np.sort(epochs) == np.sort(epochs[0])).all()
    iterator = stream()
    for _ in range(5):
        next(iterator)
    state = iterator.get_state()
    again = stream()
    again.set_state(state)
    assert [list(next(again)["example"]) for _ in range(6)] == [list(b["example"]) for b in batches[5:11]]
    shares = [list(itertools.islice(stream(process=p, processes=2), 6)) for p in range(2)]
    for one, other, whole in zip(*shares, stream(batch=4), strict=False):
        assert list(np.stack([one["example"], other["example"]], 1).ravel()) == list(whole["example"])


@pytest.mark.parametrize(
    "text", ["", "music_qa", "music_qa:", ":train", "a:b=", "a:b=0", "a:b=x", "a:b,", "a:b=inf", "a:b*", "a:b*=2"]
)
def test_a_mistake_in_the_datasets_is_named(text):
    with pytest.raises(UserError, match=r"^config\.data\.datasets: expected DATASET:SPLIT, DATASET:SPLIT=WEIGHT or "):
        parse_wanted(text, "config.data.datasets")


def test_datasets_are_parsed():
    assert parse_wanted("a/b:train, c:eval = 2.5", "x") == [Wanted("a/b", "train"), Wanted("c", "eval", 2.5)]
    assert parse_wanted("a:train*1", "x") == [Wanted("a", "train", each=True)]
    with pytest.raises(UserError, match=r"^x: = weighs a split and \* each of its examples"):
        parse_wanted("a:train*1, b:train", "x")


def test_examples_may_weigh_the_same_whatever_their_split(data_dir, prompt, music):
    """Each comes once before any comes again, as if the splits were one."""
    wanted = parse_wanted("music_caps:train*1, manifest/mine:train*2", "x")
    mixture = read_mixture(data_dir, wanted)
    assert mixture.weights == [2.0, 6.0]
    options = {"length": 128, "batch": 8, "seed": 5, "parts": mixture.ranges, "weights": mixture.weights}
    (drawn,) = (b["example"] for b in itertools.islice(make_dataset(mixture, prompt, music, **options), 1))
    assert np.bincount(drawn).tolist() == [1, 1, 2, 2, 2]


def test_what_is_not_prepared_is_named(data_dir):
    with pytest.raises(UserError, match=r"music_qa is not prepared there; do so by `python -m mlingo_jax\.prepare"):
        read_mixture(data_dir, [Wanted("music_qa", "train")])
    with pytest.raises(UserError, match=r"music_caps: expected the split .*, found 'test'"):
        read_mixture(data_dir, [Wanted("music_caps", "test")])


def test_a_list_is_a_part_too():
    examples = [Example(str(i), Path(), "Q", "A", None, str(i)) for i in range(3)]
    mixture = Mixture([examples[:1], examples[1:]])
    assert [mixture[i] for i in range(3)] == examples
    assert len(Mixture([])) == 0

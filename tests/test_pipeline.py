"""The streams of batches: shapes, order, shares of the processes, going on in the middle."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mlingo_jax.data.audio import AudioSettings, normalize
from mlingo_jax.data.examples import Example
from mlingo_jax.data.pipeline import evaluation_batches, make_dataset
from mlingo_jax.data.prompt import Prompt, PromptSettings
from mlingo_jax.data.statistics import RowSizes, example_statistics, row_length, row_sizes
from mlingo_jax.data.tokenizer import load_tokenizer
from mlingo_jax.errors import UserError
from mlingo_jax.features.cache import FeatureCache, Fingerprint
from mlingo_jax.features.fill import fill_cache
from mlingo_jax.features.sources import CachedFeatures, OnlineAudio
from tests.tiny import tiny_tokenizer

AUDIO = AudioSettings(sample_rate=1000, normalize=True)
CLIPS = 7


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> list[Example]:
    """Seven clips of 0.5 to 3.5 seconds, with one to three questions each."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for clip in range(CLIPS):
        soundfile.write(folder / f"{clip}.wav", rng.uniform(-1, 1, 500 * (clip + 1)), 1000, subtype="FLOAT")
    return [
        Example(f"{clip}.wav", folder / f"{clip}.wav", f"Question {q}?", "A bell." * q, None, f"data:{clip}")
        for clip in range(CLIPS)
        for q in range(1 + clip % 3)
    ]


def tokens(samples: int) -> int:
    return -(-samples // 1000)


@pytest.fixture(scope="module")
def cache(examples, tmp_path_factory) -> FeatureCache:
    fingerprint = Fingerprint.of({}, AUDIO, frames_per_token=1, seconds=30.0)
    clips = {example.clip: example.audio for example in examples}

    def encoder(waveforms):
        return [np.full((tokens(len(w)), 3), w[0], np.float32) for w in waveforms]

    return fill_cache(clips, encoder, tmp_path_factory.mktemp("cache"), fingerprint)[0]


@pytest.fixture(scope="module")
def prompt(tmp_path_factory) -> Prompt:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(folder)
    return Prompt(load_tokenizer(folder), PromptSettings(max_answer_tokens=8))


@pytest.fixture(params=["cached", "encoded"])
def music(request, examples, cache):
    if request.param == "cached":
        return CachedFeatures(cache, {e.clip for e in examples})
    return OnlineAudio(AUDIO, seconds=2.5, tokens=tokens, minimum=400)


def sizes_of(examples: list[Example], prompt: Prompt, music) -> RowSizes:
    return row_sizes(example_statistics(examples, prompt), music)


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_rows_are_the_prompts_with_their_music(examples, prompt, cache):
    music = CachedFeatures(cache, {e.clip for e in examples})
    (batch,) = evaluation_batches(examples, prompt, music, length=96, batch=len(examples))
    assert batch["music"].shape == (len(examples), 4, 3)
    for b, example in enumerate(examples):
        features = cache[example.clip]
        row = prompt.row(example.question, example.answer, len(features))
        size = len(row.tokens)
        for name in ("tokens", "music_index", "positions", "segments", "loss_weights"):
            np.testing.assert_array_equal(batch[name][b, :size], getattr(row, name))
        np.testing.assert_array_equal(batch["music"][b, : len(features)], features)
        assert not batch["music"][b, len(features) :].any()


def test_audio_is_cropped_normalised_and_padded(examples, prompt):
    music = OnlineAudio(AUDIO, seconds=2.5, tokens=tokens, minimum=400)
    (batch,) = evaluation_batches(examples, prompt, music, length=96, batch=len(examples))
    assert batch["waveform"].shape == (len(examples), 2500)
    for b, example in enumerate(examples):
        samples = soundfile.read(example.audio, dtype="float32")[0][:2500]
        size = batch["waveform_length"][b]
        assert size == len(samples)
        np.testing.assert_allclose(batch["waveform"][b, :size], normalize(samples))
        assert not batch["waveform"][b, size:].any()
        assert batch["music_index"][b].max() == tokens(size) - 1


def test_crops_are_drawn_anew_in_each_epoch(examples, prompt):
    longest = [example for example in examples if example.clip == f"{CLIPS - 1}.wav"]
    drawn = OnlineAudio(AUDIO, seconds=0.5, tokens=tokens, minimum=400)
    batches = make_dataset(longest, prompt, drawn, length=96, batch=1, seed=0)
    assert len({next(batches)["waveform"].tobytes() for _ in range(4)}) == 4
    evaluated = [evaluation_batches(longest, prompt, drawn, length=96, batch=1) for _ in range(2)]
    assert len({next(batches)["waveform"].tobytes() for batches in evaluated}) == 1


def test_shapes_never_change(examples, prompt, music):
    length = row_length(sizes_of(examples, prompt, music), examples, None)
    batches = make_dataset(examples, prompt, music, length=length, batch=3, seed=0)
    shapes = [{name: (v.shape, v.dtype) for name, v in next(batches).items()} for _ in range(10)]
    shapes += [
        {name: (v.shape, v.dtype) for name, v in batch.items()}
        for batch in evaluation_batches(examples, prompt, music, length=length, batch=3)
    ]
    assert all(shape == shapes[0] for shape in shapes)


def test_every_epoch_has_all_examples_in_another_order(examples, prompt, music):
    batches = make_dataset(examples, prompt, music, length=96, batch=1, seed=0)
    epochs = [[int(next(batches)["example"][0]) for _ in examples] for _ in range(3)]
    assert all(sorted(epoch) == list(range(len(examples))) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    other = make_dataset(examples, prompt, music, length=96, batch=1, seed=7)
    assert [int(next(other)["example"][0]) for _ in examples] not in epochs


@pytest.mark.parametrize("taken", [0, 1, 5, 11])
def test_the_stream_goes_on_where_it_was(examples, prompt, music, taken):
    """13 examples in batches of 3: every one of these positions is in the middle of an epoch, the last in the third."""
    batches = make_dataset(examples, prompt, music, length=96, batch=3, seed=3)
    for _ in range(taken):
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    following = [next(batches) for _ in range(6)]
    again = make_dataset(examples, prompt, music, length=96, batch=3, seed=3)
    next(again)
    again.set_state(state)
    assert all(same(next(again), batch) for batch in following)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_stream_of_one(examples, prompt, music, processes):
    alone = make_dataset(examples, prompt, music, length=96, batch=2 * processes, seed=3)
    shares = [
        make_dataset(examples, prompt, music, length=96, batch=2, seed=3, process=process, processes=processes)
        for process in range(processes)
    ]
    seen = []
    for _ in range(2 * len(examples)):
        whole = next(alone)
        parts = [next(share) for share in shares]
        dealt = {name: np.stack([p[name] for p in parts], 1).reshape(whole[name].shape) for name in whole}
        assert same(dealt, whole)
        seen += whole["example"].tolist()
    for start in range(0, len(seen) - len(examples), len(examples)):
        assert sorted(seen[start : start + len(examples)]) == list(range(len(examples)))


@pytest.mark.parametrize(("batch", "processes"), [(1, 1), (5, 1), (2, 2), (8, 3), (40, 1)])
def test_an_evaluation_sees_each_example_once(examples, prompt, music, batch, processes):
    shares = [
        list(evaluation_batches(examples, prompt, music, length=96, batch=batch, process=p, processes=processes))
        for p in range(processes)
    ]
    assert len({len(share) for share in shares}) == 1
    positions = np.concatenate([b["example"] for share in shares for b in share])
    assert sorted(positions[positions >= 0]) == list(range(len(examples)))
    for b in itertools.chain(*shares):
        empty = b["example"] < 0
        assert not b["segments"][empty].any()
        assert not b["loss_weights"][empty].any()
        assert b["loss_weights"][~empty].any(axis=1).all()
        assert b["tokens"].shape == (batch, 96)


def test_the_length_is_chosen_to_hold_every_row(examples, prompt, music):
    statistics = example_statistics(examples, prompt)
    sizes = row_sizes(statistics, music)
    rows = [prompt.row(e.question, e.answer, music.most_tokens(e.clip)) for e in examples]
    assert sizes.longest == max(len(row.tokens) for row in rows)
    assert statistics.truncated.sum() == sum(row.truncated for row in rows) > 0
    assert sizes.mean == pytest.approx(np.mean([len(row.tokens) for row in rows]))
    assert 0 <= row_length(sizes, examples, None) - sizes.longest < 16
    assert row_length(sizes, examples, sizes.longest) == sizes.longest
    longest = examples[int(sizes.lengths.argmax())]
    with pytest.raises(UserError, match=rf"^{longest.where}: .* has {sizes.longest} tokens"):
        row_length(sizes, examples, sizes.longest - 1)


def test_a_clip_without_features_is_named(examples, cache):
    other = [*examples, Example("new.wav", Path("new.wav"), "Q", "A", None, "data:9")]
    with pytest.raises(UserError, match=r"no music features of 'new\.wav'"):
        CachedFeatures(cache, [e.clip for e in other])

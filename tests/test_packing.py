"""Packed rows: everything once, nothing too long, and the loss of each example is what it is alone."""

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from mlingo_jax.data.audio import AudioSettings
from mlingo_jax.data.examples import Example
from mlingo_jax.data.packing import Packing, join, pack
from mlingo_jax.data.pipeline import evaluation_batches, make_dataset
from mlingo_jax.data.prompt import Prompt, PromptSettings
from mlingo_jax.data.statistics import example_statistics, row_sizes
from mlingo_jax.data.tokenizer import load_tokenizer
from mlingo_jax.features.cache import FeatureCache, Fingerprint
from mlingo_jax.features.fill import fill_cache
from mlingo_jax.features.sources import CachedFeatures
from mlingo_jax.models.adapter import Adapter, AdapterConfig
from mlingo_jax.models.musilingo import token_log_probs
from mlingo_jax.weights.load import load_tower
from tests.collections_of_music import RATE, tones
from tests.tiny import LLAMA, tiny_llama

AUDIO = AudioSettings(sample_rate=RATE, normalize=True)
LENGTH, WIDTH = 160, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packing")
    tiny_llama(folder / "llm")
    return folder


@pytest.fixture(scope="module")
def examples(folder) -> list[Example]:
    """Eleven questions about three clips; texts of many lengths."""
    tones(folder, ["0.wav", "1.wav", "2.wav"], seconds=1.0)
    return [
        Example(f"{i % 3}", folder / f"{i % 3}.wav", "What plays?" * (i % 4), "A bell. " * (1 + i % 5), None, f"x:{i}")
        for i in range(11)
    ]


@pytest.fixture(scope="module")
def music(folder, examples) -> CachedFeatures:
    """Clip k has k + 1 vectors."""
    rng = np.random.default_rng(0)
    made = {name: rng.normal(size=(int(name) + 1, WIDTH)).astype(np.float32) for name in "012"}
    clips = {e.clip: e.audio for e in examples}
    fingerprint = Fingerprint.of({"name": "x"}, AUDIO, frames_per_token=1, seconds=30.0)
    cache, _ = fill_cache(
        clips, lambda encoded: [made[str(i)] for i in range(len(encoded))], folder / "features", fingerprint
    )
    return CachedFeatures(FeatureCache(cache.folder), clips)


@pytest.fixture(scope="module")
def prompt(folder) -> Prompt:
    return Prompt(load_tokenizer(folder / "llm"), PromptSettings())


@pytest.fixture(scope="module")
def packing(examples, prompt, music) -> Packing:
    sizes = row_sizes(example_statistics(examples, prompt), music)
    return pack(sizes.lengths, sizes.music, [range(11)], length=LENGTH, seed=1)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    cut=st.floats(0, 1),
    seed=st.integers(0, 3),
)
def test_every_example_is_in_one_row_of_its_part(lengths, cut, seed):
    sizes = np.array(lengths, np.int32)
    at = round(cut * len(sizes))
    parts = [range(at), range(at, len(sizes))]
    packing = pack(sizes, sizes // 2, parts, length=40, seed=seed)
    assert sorted(packing.positions) == list(range(len(sizes)))
    assert [part.stop - part.start for part in packing.parts] == [len(r) for r in packing.parts]
    for part, rows in zip(parts, packing.parts, strict=True):
        assert sorted(itertools.chain.from_iterable(packing[r] for r in rows)) == list(part)
    totals = [sizes[packing[r]].sum() for r in range(len(packing))]
    assert max(totals) <= 40
    assert packing.music == max((sizes // 2)[packing[r]].sum() for r in range(len(packing)))
    assert packing.examples == max(len(packing[r]) for r in range(len(packing)))
    # Best fit: no two rows of a part would fit into one.
    for rows in packing.parts:
        assert sum(total <= 20 for total in totals[rows.start : rows.stop]) <= 1


def test_rows_are_joined(prompt):
    one, two = prompt.row("What?", "A bell.", 2), prompt.row("How fast?", "Slow.", 1)
    row = join([one, two])
    n = len(one.tokens)
    assert (row.tokens[:n] == one.tokens).all()
    assert (row.positions[n:] == two.positions).all()
    assert set(row.segments[:n]) == {1}
    assert set(row.segments[n:]) == {2}
    assert list(row.music_index[row.music_index >= 0]) == [0, 1, 2]
    assert row.loss_weights[n] == 0


def stream(examples, prompt, music, packing, **place):
    return make_dataset(examples, prompt, music, length=LENGTH, batch=2, seed=3, packing=packing, **place)


def test_the_stream_has_every_example_once_and_goes_on(examples, prompt, music, packing):
    rows = len(packing)
    batches = list(itertools.islice(stream(examples, prompt, music, packing), rows))
    drawn = np.concatenate([b["example"].ravel() for b in batches])
    assert (np.bincount(drawn[drawn >= 0]) == 2).all()
    iterator = stream(examples, prompt, music, packing)
    next(iterator)
    again = stream(examples, prompt, music, packing)
    again.set_state(iterator.get_state())
    for name, values in next(again).items():
        np.testing.assert_array_equal(values, batches[1][name])


def test_a_packed_example_has_the_loss_it_has_alone(folder, examples, prompt, music, packing):
    tower = load_tower(folder / "llm", role="llm", dtype="float32")
    llm = nnx.merge(tower.graphdef, nnx.State(tower.params))
    adapter = Adapter(AdapterConfig(WIDTH, LLAMA["hidden_size"]), rngs=nnx.Rngs(0))

    def losses(batch) -> np.ndarray:
        fields = {name: jax.numpy.asarray(values) for name, values in batch.items() if name != "example"}
        return -np.asarray(token_log_probs(llm, adapter, fields, fields["music"])) * batch["loss_weights"]

    (alone,) = evaluation_batches(examples, prompt, music, length=LENGTH, batch=len(examples))
    expected = losses(alone).sum(axis=1)
    found = np.zeros(len(examples))
    for batch in itertools.islice(stream(examples, prompt, music, packing), len(packing) // 2 + 1):
        values = losses(batch)
        for row, positions in enumerate(batch["example"]):
            for segment, place in enumerate(positions[positions >= 0], 1):
                found[place] = values[row][batch["segments"][row] == segment].sum()
    seen = found > 0
    assert seen.sum() >= len(examples) - packing.examples
    np.testing.assert_allclose(found[seen], expected[seen], rtol=1e-5)

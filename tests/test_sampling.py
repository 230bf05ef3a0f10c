"""Draws against transformers' warpers, and against the distribution they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlingo_jax.inference.sampling import Sampling, choose, filter_logits, row_keys

VOCAB_MATRICES = 40
filtered = jax.jit(filter_logits)


def sampling(temperature: float, top_k: int = 0, top_p: float = 1.0, rows: int = 3) -> Sampling:
    alike = (np.full(rows, temperature, np.float32), np.full(rows, top_k, np.int32), np.full(rows, top_p, np.float32))
    return Sampling(*alike)


def steps(rows: int, step: int) -> jax.Array:
    return jnp.full(rows, step, jnp.int32)


def random_logits(seed: int, rows: int = 3) -> jax.Array:
    return 3 * jax.random.normal(jax.random.key(seed), (rows, VOCAB_MATRICES))


@pytest.mark.parametrize("temperature", [0.1, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 7, 1000])
@pytest.mark.parametrize("top_p", [None, 0.05, 0.5, 0.97])
def test_the_distribution_is_that_of_transformers(temperature, top_k, top_p):
    torch = pytest.importorskip("torch")
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits, tokens = random_logits(0), torch.zeros((3, 0), dtype=torch.long)
    expected = torch.tensor(np.asarray(logits))
    expected = TemperatureLogitsWarper(temperature)(tokens, expected)
    expected = expected if top_k is None else TopKLogitsWarper(top_k)(tokens, expected)
    expected = expected if top_p is None else TopPLogitsWarper(top_p)(tokens, expected)
    found = filtered(logits, sampling(temperature, top_k or 0, top_p or 1.0))
    np.testing.assert_array_equal(np.isneginf(found), np.isneginf(expected.numpy()))
    np.testing.assert_allclose(jax.nn.softmax(found), torch.softmax(expected, -1).numpy(), atol=1e-6)


@given(st.integers(0, 1000), st.floats(0.01, 0.99), st.integers(1, 60))
def test_top_p_keeps_the_smallest_set_that_reaches_p(seed, top_p, top_k):
    logits = random_logits(seed, rows=1)
    probabilities = np.asarray(jax.nn.softmax(filtered(logits, sampling(1.0, top_k, rows=1))), np.float64)[0]
    kept = np.isfinite(filtered(logits, sampling(1.0, top_k, top_p, rows=1)))[0]
    mass = np.sort(probabilities[kept])
    assert mass.sum() >= top_p - 1e-5
    assert mass[1:].sum() <= top_p + 1e-5
    assert probabilities[kept].min() >= probabilities[~kept].max(initial=0)


@pytest.mark.parametrize("how", [sampling(1.0, 2), sampling(1.0, 0, 0.5), sampling(1.0, 2, 0.5)])
def test_equal_logits_are_kept_or_left_out_together(how):
    logits = jnp.array([[2.0, -1.0, 2.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0], [-0.5, -5.0, -0.5, -0.6, -0.7]])
    kept = jnp.isfinite(filtered(logits, how))
    assert kept.tolist() == [[True, False, True, False, True], [True] * 5, [True, False, True, False, False]]


def test_both_zeros_are_one_number():
    logits = jnp.array([[-0.0, 0.0, -1.0, -0.0]])
    assert jnp.isfinite(filtered(logits, sampling(1.0, 1, rows=1))).tolist() == [[True, True, False, True]]


def test_without_sampling_the_most_probable_token_is_taken():
    logits = random_logits(1)
    keys = row_keys(0, np.zeros(3, np.uint32))
    assert choose(logits, keys, steps(3, 0), None).tolist() == logits.argmax(-1).tolist()
    assert choose(logits, keys, steps(3, 0), sampling(5.0, 1)).tolist() == logits.argmax(-1).tolist()


def test_draws_follow_the_distribution():
    rows = 4000
    logits = jnp.tile(random_logits(2, rows=1), (rows, 1))
    how = sampling(1.5, 10, 0.9, rows=rows)
    drawn = choose(logits, row_keys(0, np.arange(rows, dtype=np.uint32)), steps(rows, 3), how)
    expected = np.asarray(jax.nn.softmax(filtered(logits[:1], sampling(1.5, 10, 0.9, rows=1))))[0]
    share = np.bincount(drawn, minlength=VOCAB_MATRICES) / rows
    # Four standard deviations of a share.
    assert (np.abs(share - expected) <= 4 * np.sqrt(expected * (1 - expected) / rows)).all()


def test_a_row_draws_the_same_alone_and_in_a_batch_and_anew_at_each_step():
    logits, how = jnp.zeros((7, 1000)), sampling(1.0, rows=7)
    salts = np.arange(7, dtype=np.uint32)
    together = [choose(logits, row_keys(5, salts), steps(7, step), how).tolist() for step in range(4)]
    for row in range(7):
        own = row_keys(5, salts[row : row + 1])
        alone = [choose(logits[:1], own, steps(1, step), sampling(1.0, rows=1))[0] for step in range(4)]
        assert [int(token) for token in alone] == [step[row] for step in together]
    assert len({token for step in together for token in step}) > 20


def test_each_row_is_drawn_its_own_way():
    rows = [(0.0, 0, 1.0), (1.0, 0, 1.0), (0.7, 3, 1.0), (2.0, 0, 0.4), (1.3, 5, 0.8), (0.0, 2, 0.5)]
    temperatures, tops, masses = zip(*rows, strict=True)
    mixed = Sampling(np.array(temperatures, np.float32), np.array(tops, np.int32), np.array(masses, np.float32))
    logits, salts = random_logits(4, rows=len(rows)), np.arange(len(rows), dtype=np.uint32)
    for step in range(20):
        together = choose(logits, row_keys(1, salts), steps(len(rows), step), mixed).tolist()
        for row, way in enumerate(rows):
            own = row_keys(1, salts[row : row + 1])
            assert choose(logits[row : row + 1], own, steps(1, step), sampling(*way, rows=1))[0] == together[row]

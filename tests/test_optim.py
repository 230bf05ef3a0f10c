"""The learning-rate curve against the reference implementation's formula, AdamW against torch's."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlingo_jax.settings import OptimConfig
from mlingo_jax.training.optim import adamw, decay_mask, learning_rate, named_opt_state, with_opt_state


def original_rate(epoch: int, i: int, epochs: int, iters: int, settings: OptimConfig) -> float:
    """The rate of MusiLingo's runner at step i of an epoch, in Python's floats."""
    if epoch * iters + i < settings.warmup_steps:
        climb = settings.lr - settings.warmup_lr
        return min(settings.lr, settings.warmup_lr + climb * i / max(settings.warmup_steps, 1))
    cosine = 0.5 * (1 + math.cos(math.pi * (epoch * iters + i) / (epochs * iters)))
    return settings.min_lr + (settings.lr - settings.min_lr) * cosine


FINE_TUNING = OptimConfig(lr=3e-5, min_lr=1e-5, warmup_lr=1e-6, warmup_steps=5000, epoch_steps=5000)
PRETRAINING = OptimConfig(lr=1e-4, min_lr=8e-5, warmup_lr=1e-6, warmup_steps=5000, epoch_steps=5000)


@pytest.mark.parametrize(("settings", "epochs", "after"), [(FINE_TUNING, 6, 2.87e-5), (PRETRAINING, 4, 9.71e-5)])
def test_the_curve_is_the_original_one_with_its_drop_after_the_warm_up(settings, epochs, after):
    steps = [0, 1, 2500, 4999, 5000, 5001, 12345, 5000 * epochs - 1]
    found = [float(learning_rate(s, settings, 5000 * epochs)) for s in steps]
    assert found == pytest.approx([original_rate(s // 5000, s % 5000, epochs, 5000, settings) for s in steps], rel=1e-6)
    assert found[0] == pytest.approx(settings.warmup_lr)
    assert found[4] == pytest.approx(after, abs=5e-8)
    assert found[-1] == pytest.approx(settings.min_lr, rel=1e-3)


@given(st.integers(0, 400), st.integers(1, 50), st.integers(0, 120), st.integers(1, 8))
def test_the_curve_for_any_lengths_of_epoch_and_warm_up(step, iters, warmup, epochs):
    settings = dataclasses.replace(FINE_TUNING, warmup_steps=warmup, epoch_steps=iters)
    step = step % (epochs * iters)
    expected = original_rate(step // iters, step % iters, epochs, iters, settings)
    # The cosine of an angle near pi loses digits in float32.
    assert float(learning_rate(step, settings, epochs * iters)) == pytest.approx(expected, rel=1e-5)


def test_without_epochs_the_whole_run_is_one():
    settings = dataclasses.replace(FINE_TUNING, warmup_steps=100, epoch_steps=0)
    assert float(learning_rate(50, settings, 1000)) == pytest.approx(1e-6 + (3e-5 - 1e-6) / 2)


@pytest.fixture
def problem() -> tuple[dict, list[dict]]:
    rng = np.random.default_rng(0)
    params = {
        "projection": {"kernel": rng.normal(size=(5, 3)), "bias": rng.normal(size=3)},
        "layer_weights": np.zeros(4),
    }
    params = jax.tree.map(lambda p: p.astype(np.float32), params)
    gradients = [jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params) for _ in range(3)]
    return params, gradients


def test_three_steps_equal_torch_adamw(problem):
    torch = pytest.importorskip("torch")
    params, gradients = problem
    settings = OptimConfig(lr=3e-2, min_lr=1e-2, warmup_lr=1e-3, warmup_steps=2, epoch_steps=0, weight_decay=0.05)
    kernel, bias, logits = (torch.nn.Parameter(torch.tensor(p)) for p in leaves(params))
    groups = [{"params": [kernel], "weight_decay": 0.05}, {"params": [bias, logits], "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    ours = jax.tree.map(jnp.asarray, params)
    optimiser = adamw(settings)
    state = optimiser.init(ours)
    for number, gradient in enumerate(gradients):
        for parameter, g in zip((kernel, bias, logits), leaves(gradient), strict=True):
            parameter.grad = torch.tensor(g)
        rate = float(learning_rate(2 * number + 1, settings, 6))
        for group in theirs.param_groups:
            group["lr"] = rate
        theirs.step()
        changes, state = jax.jit(optimiser.update)(gradient, state, ours)
        ours = jax.tree.map(lambda p, change, rate=rate: p + rate * change, ours, changes)
        # As through a checkpoint.
        state = with_opt_state(optimiser.init(ours), named_opt_state(state))
    for parameter, found in zip((kernel, bias, logits), leaves(ours), strict=True):
        # In float32 optax's 1 - 0.999 is off by 5e-5 of itself, so the first changes are by half of that.
        np.testing.assert_allclose(found, parameter.detach().numpy(), rtol=1e-5, atol=5e-6)


def leaves(tree: dict) -> tuple:
    return tree["projection"]["kernel"], tree["projection"]["bias"], tree["layer_weights"]


def test_only_matrices_that_are_no_bias_decay(problem):
    mask = decay_mask({**problem[0], "heads": {"bias": jnp.zeros((2, 3))}})
    assert mask == {
        "projection": {"kernel": True, "bias": False},
        "layer_weights": False,
        "heads": {"bias": False},
    }


def test_clipping_scales_only_what_is_larger():
    # The first moment is linear in the gradient, so it shows what the optimiser was given.
    params = {"a": jnp.zeros(2)}
    for limit, expected in ((1.0, [0.6, 0.8]), (10.0, [3, 4]), (0.0, [3, 4])):
        optimiser = adamw(OptimConfig(clip_norm=limit))
        _, state = optimiser.update({"a": jnp.array([3.0, 4.0])}, optimiser.init(params), params)
        first = next(leaf for name, leaf in named_opt_state(state).items() if name.endswith("mu.a"))
        np.testing.assert_allclose(first / 0.1, expected, rtol=1e-5)

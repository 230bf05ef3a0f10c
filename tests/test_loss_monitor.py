"""What stands out among losses, the same whether a run was interrupted or not."""

import json
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlingo_jax.training.loss_monitor import LossMonitor

finite = st.floats(0, 20, width=32)


def test_a_spike_stands_out_from_noise_and_not_from_a_fall():
    rng = np.random.default_rng(0)
    losses = 3 * np.exp(-np.arange(300) / 60) + 2 + rng.normal(0, 0.05, 300)
    losses[[10, 150, 160]] += 3
    losses[200] = math.nan
    watch = LossMonitor(8.0, {})
    found = {step: remark for step, loss in enumerate(losses.tolist()) if (remark := watch.see(step, loss, 1.0))}
    # Before there is enough to compare with, nothing stands out; one spike does not hide the next.
    assert list(found) == [150, 160, 200]
    assert found[150]["spike"] > 10
    assert found[200] == {"skipped": "loss is nan"}
    assert watch.skipped == [200]
    assert LossMonitor(8.0, {}).see(3, 2.0, math.inf) == {"skipped": "gradient_norm is inf"}


def test_equal_losses_have_no_spikes_and_zero_turns_it_off():
    watch, off = LossMonitor(8.0, {}), LossMonitor(0.0, {})
    for step in range(50):
        assert watch.see(step, 2.0, 1.0) == off.see(step, 2.0, 1.0) == {}
    assert watch.see(50, 2.1, 1.0) == {}
    assert watch.see(51, 3.0, 1.0)
    assert off.see(51, 300.0, 1.0) == {}


@given(st.lists(finite | st.just(math.nan), min_size=30, max_size=150), st.integers(0, 150))
def test_what_is_said_does_not_depend_on_interruptions(losses, cut):
    def remarks(watch: LossMonitor, steps: range) -> list[dict]:
        return [watch.see(step, losses[step], 1.0) for step in steps]

    cut = min(cut, len(losses))
    whole = remarks(LossMonitor(3.0, {}), range(len(losses)))
    first = LossMonitor(3.0, {})
    begun = remarks(first, range(cut))
    saved = json.loads(json.dumps(first.state))
    assert begun + remarks(LossMonitor(3.0, saved), range(cut, len(losses))) == whole

"""The adapter's first draw: the law of torch's linear layer."""

import jax
import numpy as np
import pytest
from flax import nnx

from mlingo_jax.models.adapter import Adapter, AdapterConfig


def test_the_first_draw_is_even_within_torch_s_bound():
    """MusiLingo's own sizes, 1,024 to 4,096: a standard deviation of 0.018, of the bias too."""
    adapter = Adapter(AdapterConfig(1024, 4096), rngs=nnx.Rngs(0))
    bias = adapter.projection.bias
    assert bias is not None
    kernel, bias = np.asarray(adapter.projection.kernel[...]), np.asarray(bias[...])
    for drawn in (kernel, bias):
        assert np.abs(drawn).max() == pytest.approx(1 / 32, rel=1e-3)
        assert drawn.std() == pytest.approx(1 / 32 / 3**0.5, rel=0.02)
        # Even: of ten equal parts of the range each has a tenth.
        np.testing.assert_allclose(np.histogram(drawn, 10, (-1 / 32, 1 / 32))[0] / drawn.size, 0.1, atol=0.02)
    assert abs(np.corrcoef(kernel[0], bias)[0, 1]) < 0.1


def test_the_draw_is_the_seed_s():
    one, same, other = (
        jax.tree.leaves(nnx.state(Adapter(AdapterConfig(8, 6), rngs=nnx.Rngs(seed)))) for seed in (1, 1, 2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_it_is_torch_s_law():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = torch.nn.Linear(1024, 4096)
    ours = Adapter(AdapterConfig(1024, 4096), rngs=nnx.Rngs(0)).projection
    assert ours.bias is not None
    for a, b in ((ours.kernel[...], theirs.weight), (ours.bias[...], theirs.bias)):
        quantiles = np.linspace(0, 1, 11)
        expected = np.quantile(b.detach().numpy(), quantiles)
        np.testing.assert_allclose(np.quantile(np.asarray(a), quantiles), expected, atol=2e-3)

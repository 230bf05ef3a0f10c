"""Operations counted in jaxprs, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from mlingo_jax.planning.devices import cuda_plugin
from mlingo_jax.planning.flops import operations

X, W = jax.ShapeDtypeStruct((3, 5), jnp.float32), jax.ShapeDtypeStruct((5, 5), jnp.float32)
PRODUCT = 2 * 3 * 5 * 5


def scanned(x, w):
    return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=7)[0]


def remade(x, w):
    return jax.checkpoint(lambda x: jnp.tanh(jnp.tanh(x @ w) @ w))(x).sum()


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, w: x @ w, PRODUCT),
        (lambda x, w: jnp.einsum("bd,ed->be", x, w), PRODUCT),
        (scanned, 7 * PRODUCT),
        (lambda x, w: jax.jit(scanned)(jax.jit(scanned)(x, w), w), 14 * PRODUCT),
        (lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w @ w), 2 * PRODUCT),
        (lambda x, w: jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ w, x), PRODUCT),
        # The gradient of the inputs alone: one product backwards for each forwards, none for the weights.
        (jax.grad(lambda x, w: scanned(x, w).sum()), 14 * PRODUCT),
        # Both forwards, both again, both backwards, but the last one's value is not needed again.
        (jax.grad(remade), 6 * PRODUCT),
        (lambda x, w: jnp.sin(x), 0),
    ],
)
def test_matrix_products(function, expected: int):
    assert operations(jax.make_jaxpr(function)(X, W)) == expected


def test_convolutions():
    x, kernel = jnp.zeros((2, 11, 6)), jnp.zeros((3, 2, 9))
    convolve = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (2,), "VALID", dimension_numbers=("NTC", "TIO", "NTC"), feature_group_count=3
    )
    # 2 rows, 5 positions, 9 channels; each sums 3 taps of a group's 2 channels.
    assert operations(jax.make_jaxpr(convolve)(x, kernel)) == 2 * 2 * 5 * 9 * 3 * 2


@pytest.mark.skipif(cuda_plugin() is None, reason="JAX asks for cuDNN's version")
def test_cudnns_attention():
    query, key = (jax.ShapeDtypeStruct((2, 1024, heads, 64), jnp.bfloat16) for heads in (4, 2))
    product = 2 * 2 * 4 * 1024 * 1024 * 64

    def attended(query, key, value):
        return jax.nn.dot_product_attention(query, key, value, implementation="cudnn").astype(jnp.float32).sum()

    assert operations(jax.make_jaxpr(attended)(query, key, key)) == 2 * product
    assert operations(jax.make_jaxpr(jax.grad(attended))(query, key, key)) == (2 + 5) * product


def test_a_mapped_function_counts_on_every_device():
    mesh = jax.sharding.AbstractMesh((4,), ("a",))
    mapped = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(P("a"), P()), out_specs=P("a"))
    x = jax.ShapeDtypeStruct((12, 5), jnp.float32)
    assert operations(jax.make_jaxpr(mapped)(x, W)) == 4 * PRODUCT

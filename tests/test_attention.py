"""Each way to compute attention gives the plain one's numbers, and each is chosen where it can be."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.sharding import AbstractDevice, AbstractMesh

from mlingo_jax.models import attention
from mlingo_jax.models.attention import Segments, attend, choose
from mlingo_jax.planning.devices import cuda_plugin

ROWS, LENGTH, HEADS, KV_HEADS, WIDTH = 2, 150, 4, 2, 8


def heads(dtype: Any, length: int = LENGTH, width: int = WIDTH) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(0)
    sizes = [(ROWS, length, n, width) for n in (HEADS, KV_HEADS, KV_HEADS)]
    query, key, value = (jnp.asarray(rng.normal(size=size), dtype) for size in sizes)
    return query, key, value


def rows(causal: bool, length: int = LENGTH) -> tuple[Segments, Array]:
    """Packed rows with padding behind them, or one clip a row: in words and as a mask."""
    cuts = [[length // 3, length // 3, length // 5], [length - 3]] if causal else [[length - 40], [length]]
    ids = np.zeros((ROWS, length), np.int32)
    for row, lengths in enumerate(cuts):
        ids[row, : sum(lengths)] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    mask = (ids[:, :, None] == ids[:, None]) | (not causal)
    mask &= (ids[:, None] > 0) & (np.tril(np.ones((length, length), bool)) | (not causal))
    return Segments(jnp.asarray(ids), causal), jnp.asarray(mask)


def results(compute: Any, inputs: tuple[Array, ...], segments: Segments) -> list[Array]:
    """The attention of the positions that are no padding, and the gradients of a function of it."""

    def kept(*inputs: Array) -> Array:
        return jnp.where((segments.ids > 0)[..., None, None], compute(*inputs), 0)

    loss = jax.grad(lambda *inputs: jnp.sin(kept(*inputs).astype(jnp.float32)).sum(), argnums=(0, 1, 2))
    return [kept(*inputs), *loss(*inputs)]


@pytest.mark.parametrize("causal", [True, False])
def test_the_tpus_kernel_equals_plain_attention(causal: bool):
    """Interpreted, with blocks of the smallest size: two of them and padding in each row."""
    segments, mask = rows(causal)
    inputs = heads(jnp.float32)
    plain = results(lambda q, k, v: attend(q, k, v, mask), inputs, segments)
    kernel = results(lambda q, k, v: attention._splash(q, k, v, segments, block=128, interpret=True), inputs, segments)
    for one, other in zip(plain, kernel, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("causal", [True, False])
def test_cudnn_equals_plain_attention(causal: bool):
    segments, mask = rows(causal, 1024)
    inputs = heads(jnp.bfloat16, 1024, 64)
    plain = results(lambda q, k, v: attend(q, k, v, mask), inputs, segments)
    kernel = results(lambda q, k, v: attention._cudnn(q, k, v, mask, segments), inputs, segments)
    for one, other in zip(plain, kernel, strict=True):
        # bfloat16 has 8 bits, and the two round in different positions.
        np.testing.assert_allclose(other.astype(jnp.float32), one.astype(jnp.float32), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("platform", "length", "width", "dtype", "causal", "expected"),
    [
        ("tpu", 2249, 64, "bfloat16", False, "splash"),
        ("tpu", 256, 128, "bfloat16", True, "xla"),
        ("tpu", 2250, 64, "float32", False, "xla"),
        ("gpu", 2048, 128, "bfloat16", True, "cudnn"),
        ("gpu", 2049, 128, "bfloat16", True, "xla"),
        ("gpu", 2249, 64, "bfloat16", False, "cudnn"),
        ("gpu", 2048, 256, "bfloat16", False, "xla"),
        ("cpu", 2250, 64, "bfloat16", False, "xla"),
    ],
)
def test_what_is_chosen(platform: str, length: int, width: int, dtype: str, causal: bool, expected: str):
    assert choose(platform, length, width, dtype, causal) == expected


def test_the_platform_is_that_of_the_mesh_in_use():
    device = AbstractDevice("TPU v5 lite", 1, "tpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((8,), ("data",), abstract_device=device)):
        assert attention._platform() == "tpu"
    assert attention._platform() == jax.default_backend()


# Over all axes of a mesh, at a row's and at MERT's length and width of a head: forward, and backward if need be.
SCRIPT = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from mlingo_jax.models.attention import Segments, attend
from mlingo_jax.planning.devices import devices, prepare
from mlingo_jax.planning.machines import parse

machine = parse(sys.argv[1])
prepare(machine)
mesh = Mesh(np.array(devices(machine)).reshape(2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
for causal, length, kernels in ((True, 2048, sys.argv[2:]), (False, 2249, sys.argv[2:3])):
    def loss(query, key, value, ids, mask):
        return attend(query, key, value, mask, Segments(ids, causal)).astype(jnp.float32).sum()
    def rows(shape, dtype, *axes):
        sharding = NamedSharding(mesh, P(("data", "fsdp"), None, *axes))
        return jax.ShapeDtypeStruct((8, length, *shape), dtype, sharding=sharding)
    heads = [rows((n, 64), jnp.bfloat16, "tensor") for n in (4, 2, 2)]
    ids, mask = rows((), jnp.int32), rows((length,), bool)
    computed = jax.grad(loss, argnums=(0, 1, 2)) if causal else loss
    with jax.set_mesh(mesh):
        text = jax.jit(computed).lower(*heads, ids, mask).compile().as_text()
    assert all(kernel in text for kernel in kernels), causal
    # Each device attends for its own rows and heads.
    assert "all-gather" not in text, causal
"""


@pytest.mark.parametrize(
    ("machine", "compiler", "kernels"),
    [
        ("v5e:2x4", find_spec("libtpu"), [f"splash_mha_{part}_segmented" for part in ("fwd", "dq", "dkv")]),
        ("h100:8", cuda_plugin(), ["__cudnn$fmha", "SoftmaxBackward"]),
    ],
)
def test_the_kernels_compile_for_a_mesh(machine: str, compiler: object, kernels: list[str]):
    if compiler is None:
        pytest.skip(f"the compiler for {machine} is not installed")
    root = Path(__file__).parents[1]
    command = [sys.executable, "-W", "error", "-c", SCRIPT, machine, *kernels]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

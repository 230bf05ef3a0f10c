"""What the encoder and the language model share: projections and norms.

Axes: B rows, T positions, D embedding, N heads, K key/value heads, H head dimension, F MLP dimension, L layers.
Every parameter carries its axes as letters (`nnx.Param(..., axes="LNHD")`): conversion and sharding read them.
Layers of one kind are stacked along a leading L and run by `lax.scan` over their split state.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mlingo_jax.models.quantization import (
    INTEGERS,
    Quantization,
    quantize,
    quantized_einsum,
    scale_axes,
    scale_shape,
)

# By transformers' names; its "gelu" is the exact one.
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}


class Projection(nnx.Module):
    """A linear map written as an einsum, e.g. "BTD,NHD->BTNH"; the kernel's axes are the second operand's.

    Those that are not summed over are the result's last.

    Computes in the input's dtype. `bias` names the bias's axes ("NH"), or is empty for none. `layers` stacks that many
    maps along a leading axis, to be sliced by a scan before the call. Quantised, the kernel is integers beside a scale
    in `dtype` (see `quantization`), and neither has a gradient.
    """

    def __init__(
        self,
        equation: str,
        sizes: Mapping[str, int],
        *,
        bias: str = "",
        layers: int | None = None,
        dtype: DTypeLike,
        quantization: Quantization = "none",
        rngs: nnx.Rngs,
    ):
        operands, out = equation.split("->")
        axes = operands.split(",")[1]
        self.equation = equation
        contracted = "".join(a for a in axes if a not in out)
        std = math.prod(sizes[a] for a in contracted) ** -0.5
        kernel = parameter(axes, sizes, layers, normal(rngs, std), dtype)
        self.kernel, self.scale = (
            (kernel, None) if quantization == "none" else _quantized(kernel, contracted, quantization)
        )
        self.bias = parameter(bias, sizes, layers, jnp.zeros, dtype) if bias else None

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        if self.scale is None:
            y = product(self.equation, x, self.kernel[...].astype(x.dtype))
        else:
            y = quantized_einsum(self.equation, x, self.kernel[...], self.scale[...])
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, computed in float32 and returned in the input's dtype."""

    def __init__(self, size: int, *, axis: str = "D", eps: float, layers: int | None = None, dtype: DTypeLike):
        self.eps = eps
        self.scale = parameter(axis, {axis: size}, layers, jnp.ones, dtype)
        self.bias = parameter(axis, {axis: size}, layers, jnp.zeros, dtype)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return (y * self.scale[...].astype(y.dtype) + self.bias[...].astype(y.dtype)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation over the last axis, computed in float32 and returned in the input's dtype."""

    def __init__(self, size: int, *, axis: str = "D", eps: float, layers: int | None = None, dtype: DTypeLike):
        self.eps = eps
        self.scale = parameter(axis, {axis: size}, layers, jnp.ones, dtype)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return (y * self.scale[...].astype(y.dtype)).astype(x.dtype)


def product(equation: str, x: Float[Array, "..."], kernel: Float[Array, "..."]) -> Float[Array, "..."]:
    """A projection's einsum, as a product of two matrices where the kernel's memory is one as it lies.

    Out of an einsum over heads a CPU's compiler makes a transposed copy of the kernel first: three times the traffic of
    decoding. To a GPU's and a TPU's both are the same.
    """
    operands, out = equation.split("->")
    axes = operands.split(",")[1]
    kept = "".join(a for a in axes if a in out)
    contracted = "".join(a for a in axes if a not in out)
    if axes not in (contracted + kept, kept + contracted):
        return jnp.einsum(equation, x, kernel)
    first = axes.startswith(contracted)
    rows, shape = x.shape[: x.ndim - len(contracted)], kernel.shape[len(contracted) :] if first else kernel.shape
    size = math.prod(x.shape[len(rows) :])
    matrix = kernel.reshape(size, -1) if first else kernel.reshape(-1, size)
    y = jax.lax.dot_general(x.reshape(-1, size), matrix, (((1,), (0 if first else 1,)), ((), ())))
    return y.reshape(*rows, *shape[: len(kept)])


def _quantized(kernel: nnx.Param, contracted: str, quantization: Quantization) -> tuple[nnx.Param, nnx.Param]:
    letters, floats = kernel.get_metadata("axes"), kernel[...]
    groups = scale_shape(letters, floats.shape, contracted, quantization)
    integers, scale = quantize(floats.astype(jnp.float32), groups, INTEGERS[quantization], floats.dtype)
    return nnx.Param(integers, axes=letters), nnx.Param(scale, axes=scale_axes(letters, groups))


def parameter(axes: str, sizes: Mapping[str, int], layers: int | None, init, dtype: DTypeLike) -> nnx.Param:
    """A parameter of the given axes, stacked along a leading L if `layers` is given."""
    shape = tuple(sizes[a] for a in axes)
    if layers is not None:
        axes, shape = f"L{axes}", (layers, *shape)
    return nnx.Param(init(shape, dtype), axes=axes)


def normal(rngs: nnx.Rngs, std: float):
    """An initialiser `(shape, dtype) -> array` drawing from a normal distribution."""
    key = rngs.params()
    return lambda shape, dtype: (std * jax.random.normal(key, shape)).astype(dtype)

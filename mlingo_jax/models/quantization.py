"""Kernels kept as small integers: each group of numbers along the contracted axes shares a scale.

A scale has its kernel's axes, as long as there are groups along each: a kernel [D, N, H] = [4096, 32, 128],
contracted over D, has in int8 the scale [1, 32, 128] (a group is all that makes one output) and in int4
[128, 32, 128] (groups of 32 along D). So one rule of letters lays both out on a mesh, and shapes alone say how to
quantise. The number of greatest magnitude in a group becomes the least integer, whichever its sign: all 16 values of
int4 are used, where symmetric ones use 15 (ggml's Q4_0; error in docs/decisions.md).
"""

import math
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

Quantization = Literal["none", "int8", "int4"]
INTEGERS: Mapping[Quantization, DTypeLike] = {"int8": jnp.int8, "int4": jnp.int4}
# In int4, along the last contracted axis. LLaMA 7B's inner width, 43 x 256, makes 344 groups: eight devices can share.
GROUP = 32


def scale_shape(axes: str, shape: tuple[int, ...], contracted: str, quantization: Quantization) -> tuple[int, ...]:
    """The groups along each axis of a kernel that is contracted over the letters `contracted`.

    int8: one along each contracted axis. int4: groups of 32 along the last of them, or of the greatest power of two
    below that divides it; a group lies within one index of the others.
    """
    last = max(contracted, key=axes.index)

    def groups(letter: str, size: int) -> int:
        if quantization == "int8":
            return 1 if letter in contracted else size
        return size // math.gcd(size, GROUP) if letter == last else size

    return tuple(groups(letter, size) for letter, size in zip(axes, shape, strict=True))


def scale_axes(axes: str, groups: tuple[int, ...]) -> str:
    """A scale's letters: its kernel's, and 1 for an axis of one group, which no mesh splits."""
    return "".join("1" if count == 1 else letter for letter, count in zip(axes, groups, strict=True))


def quantize(
    kernel: Float[Array, "*K"] | Float[np.ndarray, "*K"], groups: tuple[int, ...], integer: DTypeLike, dtype: DTypeLike
) -> tuple[Int[Array, "*K"] | Int[np.ndarray, "*K"], Float[Array, "*G"] | Float[np.ndarray, "*G"]]:
    """The integers and the scales (in `dtype`) nearest to a float32 kernel; of NumPy arrays, or of JAX's.

    Every number comes back to within half its group's scale, but for that at the other end of the range: one just
    opposite to the group's greatest, to within a whole one. Element by element, so the same on every machine.
    """
    xp = kernel.__array_namespace__()
    split = _split(kernel.shape, groups)
    parts, within = kernel.reshape(split), tuple(range(1, len(split), 2))
    low, high = parts.min(within, keepdims=True), parts.max(within, keepdims=True)
    least = jnp.iinfo(integer).min
    # Rounded first: the integers are those of the scale that will be multiplied with.
    scale = (xp.where(high > -low, high, low) / least).astype(dtype)
    divisor = scale.astype(kernel.dtype)
    steps = parts / xp.where(divisor == 0, 1, divisor)
    integers = xp.clip(xp.round(steps), least, -least - 1).astype(jnp.int8).astype(integer)
    return integers.reshape(kernel.shape), scale.reshape(groups)


def dequantize(kernel: Int[Array, "*K"], scale: Float[Array, "*G"]) -> Float[Array, "*K"]:
    """The numbers that the integers stand for, in the scale's dtype."""
    split = _split(kernel.shape, scale.shape)
    parts = kernel.reshape(split).astype(scale.dtype) * scale.reshape([n for g in scale.shape for n in (g, 1)])
    return parts.reshape(kernel.shape)


def _per_output(equation: str, scale: Float[Array, "..."]) -> Float[Array, "..."] | None:
    """The scales along the product's last axes, if each makes whole outputs; None if they differ within a sum."""
    operands, out = equation.split("->")
    axes = operands.split(",")[1]
    contracted = tuple(position for position, axis in enumerate(axes) if axis not in out)
    if any(scale.shape[position] > 1 for position in contracted):
        return None
    return scale.squeeze(contracted)


def _integer_einsum(
    equation: str, x: Float[Array, "..."], kernel: Int[Array, "..."], scale: Float[Array, "..."]
) -> Float[Array, "..."]:
    outer = _per_output(equation, scale)
    if outer is None:
        return jnp.einsum(equation, x, dequantize(kernel, scale).astype(x.dtype))
    # Multiplied into the kernel, they would have a GPU write its floats down before every product.
    return jnp.einsum(equation, x, kernel.astype(x.dtype)) * outer.astype(x.dtype)


# Whatever a remat policy keeps of the forward pass, it is not the floats: those of all layers would stand at once.
def _forward(equation: str, x: Array, kernel: Array, scale: Array) -> tuple[Array, tuple[Array, Array]]:
    return _integer_einsum(equation, x, kernel, scale), (kernel, scale)


def _backward(equation: str, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, None, None]:
    (kernel, scale), outer = kept, _per_output(equation, kept[1])
    if outer is None:
        kernel = dequantize(kernel, scale)
    else:
        gradient = gradient * outer.astype(gradient.dtype)
    operands, out = equation.split("->")
    given, axes = operands.split(",")
    return jnp.einsum(f"{out},{axes}->{given}", gradient, kernel.astype(gradient.dtype)), None, None


_differentiable = jax.custom_vjp(_integer_einsum, nondiff_argnums=(0,))
_differentiable.defvjp(_forward, _backward)


def quantized_einsum(
    equation: str, x: Float[Array, "..."], kernel: Int[Array, "..."], scale: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The einsum of `x` with a quantised kernel; its gradient is that of `x`, the kernel is frozen."""
    return _differentiable(equation, x, kernel, scale)


def _split(shape: tuple[int, ...], groups: tuple[int, ...]) -> tuple[int, ...]:
    """Each axis in two: its groups, and the numbers within one."""
    return tuple(n for size, count in zip(shape, groups, strict=True) for n in (count, size // count))

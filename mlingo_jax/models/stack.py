"""The layers of a network: stacked along a leading axis and scanned, or one by one and unrolled.

A stack is a module whose parameters have a leading L; its methods are those of one layer, to be called on a layer's
state. Scanned, the layers are compiled once; unrolled (an `nnx.List` of layers), each is a program of its own, whose
products take whole arrays instead of slices.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def unstack(layers: nnx.Module, count: int) -> list[Any]:
    """The layers of a stack, one by one."""
    graphdef, stack = nnx.split(layers)

    def one(index: int) -> Any:
        parameters = nnx.to_flat_state(stack)
        parts = [(path, p.replace(p[...][index], axes=p.get_metadata("axes")[1:])) for path, p in parameters]
        return nnx.merge(graphdef, nnx.from_flat_state(parts))

    return [one(index) for index in range(count)]


def layer_graph(layers: nnx.Module) -> Any:
    """The static half of one layer, which is the same for all."""
    return nnx.graphdef(layers[0] if isinstance(layers, nnx.List) else layers)


def run_layers(
    layers: nnx.Module, step: Callable[..., tuple[Any, Any]], carry: Any, *each: Sequence[int]
) -> tuple[Any, Any]:
    """Runs the layers one after the other, as `jax.lax.scan` does.

    Args:
        layers: a stack, or an `nnx.List` of layers.
        step: from the carry, a layer's state and its own numbers of `each` to the next carry and an output.
        carry: what the first layer is given.
        each: numbers for the layers: traced where the layers are scanned, Python's own where they are unrolled.

    Returns:
        The last carry, and the outputs stacked along a leading axis (None where they are None).
    """
    if not isinstance(layers, nnx.List):
        scanned = (nnx.state(layers), *(jnp.array(numbers, jnp.int32) for numbers in each))
        return jax.lax.scan(lambda carry, one: step(carry, *one), carry, scanned)
    outputs = []
    for layer, *numbers in zip(layers, *each, strict=True):
        carry, output = step(carry, nnx.state(layer), *numbers)
        outputs.append(output)
    return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *outputs)

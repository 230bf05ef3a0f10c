"""The operations of a function, counted in its jaxpr: of matrix products and convolutions, loops multiplied out.

XLA's own count takes a loop's body once, however often it runs, and the layers are a loop.
"""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def operations(jaxpr: Jaxpr | ClosedJaxpr) -> int:
    """Multiplications and additions of all devices together, in one execution.

    A loop that ends by its data is counted once; of a conditional's branches, the dearest.
    """
    inner = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return sum(_operations(equation) for equation in inner.eqns)


def _operations(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return 2 * equation.outvars[0].aval.size * (kernel.size // outputs)
    if name.startswith("dot_product_attention_"):
        # cuDNN's kernel: scores and values, and backwards the scores again and four gradients.
        query, key = (operand.aval for operand in equation.invars[:2])
        return 2 * (2 if "fwd" in name else 5) * query.size * key.shape[1]
    if name == "cond":
        return max(operations(branch) for branch in params["branches"])
    once = sum(operations(inner) for inner in _inside(params))
    if name == "scan":
        return once * params["length"]
    if name == "shard_map":
        return once * params["mesh"].size
    if name == "pallas_call":
        return once * math.prod(params["grid_mapping"].grid)
    return once


def _inside(params: dict[str, Any]) -> Iterator[Jaxpr | ClosedJaxpr]:
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, Jaxpr | ClosedJaxpr):
                yield one

"""How the networks lie on a mesh of devices: tables from axes' letters to the mesh's axes.

A mesh has the axes `data`, `fsdp` and `tensor`, or some of them. Letters are those of the modules that use them; one
that a table does not name is not split. Parameters are kept by one table and used by another: between the two lies the
gathering over `fsdp`, of one layer at a time.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from mlingo_jax.errors import UserError
from mlingo_jax.wording import counted

Rules = Mapping[str, tuple[str, ...]]

# How parameters are kept: heads, inner width and vocabulary over `tensor`, width over `fsdp`; the channels of
# convolutions, which are gathered where they are used, over both.
PARAM_RULES: Rules = {
    "N": ("tensor",),
    "K": ("tensor",),
    "F": ("tensor",),
    "V": ("tensor",),
    "D": ("fsdp",),
    "O": ("fsdp", "tensor"),
}
# Vectors that are kept whole: gathering them would cost a wait in every layer, and save nothing to speak of.
REPLICATED = ("D", "LD", "O")
# How parameters and activations are computed with: rows over `data` and `fsdp`; heads, inner width and vocabulary over
# `tensor`; the residual stream's width whole.
ACTIVATION_RULES: Rules = {
    "B": ("data", "fsdp"),
    "N": ("tensor",),
    "K": ("tensor",),
    "F": ("tensor",),
    "V": ("tensor",),
}
# How activations come to parameters that stay where they are: to an embedding table, and in decoding to the layers, for
# a few tokens are less to move than weights.
DECODE_RULES: Rules = {"B": ("data",), "D": ("fsdp",)}

GATHERED = "gathered"
ROLES: Mapping[str, str] = {
    "N": "{} head{s}",
    "K": "{} key/value head{s}",
    "F": "an inner width of {}",
    "V": "a vocabulary of {} token{s}",
    "D": "a width of {}",
    "O": "{} channel{s}",
}


def partition(axes: str, mesh: Mesh | AbstractMesh) -> P:
    """How a parameter is kept on a mesh: each axis by its letter (`PARAM_RULES`). See `check_divides`."""
    return _spec(_kept(axes, mesh))


def check_divides(model: nnx.Module, name: str, mesh: Mesh | AbstractMesh) -> None:
    """Checks that a network (real, or of shapes alone) can be split over a mesh evenly.

    Raises:
        UserError: it cannot; names every number that does not divide.
    """
    problems: set[str] = set()
    parameters = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    for path, parameter in parameters.items():
        axes = parameter.get_metadata("axes")
        # A scale of a kernel in groups has the kernel's axes.
        whole = parameters.get((*path[:-1], "kernel"), parameter).shape if path[-1] == "scale" else parameter.shape
        for letter, size, names, length in zip(axes, parameter.shape, _kept(axes, mesh), whole, strict=True):
            if size % _parts(names, mesh):
                over = " x ".join(f"{n} {mesh.shape[n]}" for n in names)
                groups = "" if size == length else f"{counted(size, 'group')} of the {path[-2]} kernel along "
                what = ROLES[letter].format(length, s="s" * (length != 1))
                problems.add(f"{groups}{what} over {over}")
    if problems:
        instead = " (fsdp in place of tensor splits widths alone)" if any("tensor" in p for p in problems) else ""
        raise UserError(f"{name}: cannot be split evenly: {', '.join(sorted(problems))}; choose another mesh{instead}")


def constrain(x: Array, axes: str, table: Rules = ACTIVATION_RULES) -> Array:
    """An array of a computation, laid on the mesh in use (`jax.set_mesh`) by its axes' letters; as it is without one.

    An axis that does not divide evenly, say the one row of a question, is whole on every device.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, used(x.shape, axes, table))


def used(shape: tuple[int, ...], axes: str, table: Rules = ACTIVATION_RULES) -> P:
    """How an array of that shape lies in a computation on the mesh in use: see `constrain`."""
    mesh = jax.sharding.get_abstract_mesh()
    splits = zip(shape, _splits(axes, table, mesh), strict=True)
    return _spec([names if size % _parts(names, mesh) == 0 else () for size, names in splits])


def gather_params(layer: Any) -> Any:
    """One layer's state, sliced from the stack, as its computation takes them: gathered over `fsdp`.

    For the policies of `jax.checkpoint` each has the name GATHERED.
    """

    def whole(parameter: nnx.Variable) -> nnx.Variable:
        value = constrain(parameter[...], parameter.get_metadata("axes").removeprefix("L"))
        return parameter.replace(checkpoint_name(value, GATHERED))

    return jax.tree.map(whole, layer, is_leaf=lambda leaf: isinstance(leaf, nnx.Param))


def _kept(axes: str, mesh: Mesh | AbstractMesh) -> list[tuple[str, ...]]:
    return [()] * len(axes) if axes in REPLICATED else _splits(axes, PARAM_RULES, mesh)


def _splits(axes: str, table: Rules, mesh: Mesh | AbstractMesh) -> list[tuple[str, ...]]:
    """The mesh axes that split each axis. One is used once: of two axes that would go along it, the first does."""
    splits: list[tuple[str, ...]] = []
    for letter in axes:
        used = {name for names in splits for name in names}
        splits.append(tuple(n for n in table.get(letter, ()) if n in mesh.shape and n not in used))
    return splits


def _spec(splits: list[tuple[str, ...]]) -> P:
    return P(*(names[0] if len(names) == 1 else names or None for names in splits))


def _parts(names: tuple[str, ...], mesh: Mesh | AbstractMesh) -> int:
    return math.prod(mesh.shape[name] for name in names)

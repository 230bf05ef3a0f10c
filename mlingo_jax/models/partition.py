"""How the networks lie on a mesh of devices: two tables, from axes' letters to the mesh's axes.

A mesh has the axes `data`, `fsdp` and `tensor`, or some of them. Letters are those of the modules that use them; one
that no table names is never split.
"""

import math
from collections.abc import Mapping

from flax import nnx
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from mlingo_jax.errors import UserError

# How parameters are kept: heads, inner width and vocabulary over `tensor`, width over `fsdp`; the channels of
# convolutions, which are gathered whole where they are used, over both.
STORED: Mapping[str, tuple[str, ...]] = {
    "N": ("tensor",),
    "K": ("tensor",),
    "F": ("tensor",),
    "V": ("tensor",),
    "D": ("fsdp",),
    "O": ("fsdp", "tensor"),
}
ROLES: Mapping[str, str] = {
    "N": "{} heads",
    "K": "{} key/value heads",
    "F": "an inner width of {}",
    "V": "a vocabulary of {} tokens",
    "D": "a width of {}",
    "O": "{} channels",
}


def partition(axes: str, mesh: Mesh | AbstractMesh) -> P:
    """How a parameter is kept on a mesh: each axis by its letter (`STORED`). See `check_divides`."""
    return P(*(names[0] if len(names) == 1 else names or None for names in _splits(axes, mesh)))


def check_divides(model: nnx.Module, name: str, mesh: Mesh | AbstractMesh) -> None:
    """Checks that a network (real, or of shapes alone) can be split over a mesh evenly.

    Raises:
        UserError: it cannot; names every number that does not divide.
    """
    problems: set[str] = set()
    for _, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        axes = parameter.get_metadata("axes")
        for letter, size, names in zip(axes, parameter.shape, _splits(axes, mesh), strict=True):
            if size % math.prod(mesh.shape[n] for n in names):
                over = " x ".join(f"{n} {mesh.shape[n]}" for n in names)
                problems.add(f"{ROLES[letter].format(size)} over {over}")
    if problems:
        raise UserError(f"{name}: cannot be split evenly: {', '.join(sorted(problems))}; change --config.mesh")


def _splits(axes: str, mesh: Mesh | AbstractMesh) -> list[tuple[str, ...]]:
    """The mesh axes that split each axis. One is used once: of two axes that would go along it, the first does."""
    splits: list[tuple[str, ...]] = []
    for letter in axes:
        used = {name for names in splits for name in names}
        splits.append(tuple(n for n in STORED.get(letter, ()) if n in mesh.shape and n not in used))
    return splits

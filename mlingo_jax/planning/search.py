"""The meshes over which a run can be laid, best first."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from jax.sharding import Mesh

from mlingo_jax.errors import UserError
from mlingo_jax.planning.costs import Costs, DoesNotFit, check_fits
from mlingo_jax.planning.machines import GIB
from mlingo_jax.planning.shapes import Shapes, weight_bytes
from mlingo_jax.settings import MeshConfig
from mlingo_jax.training.sharding import check_batch, make_mesh


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A mesh (data, fsdp, tensor): what the train step costs there, or why it was not compiled or does not fit."""

    sizes: tuple[int, int, int]
    costs: Costs | None
    refusal: str


def factorisations(devices: int) -> list[tuple[int, int, int]]:
    """All (data, fsdp, tensor) of so many devices; those that send least come first: tensor small, then fsdp."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    found = [(devices // (f * t), f, t) for t in divisors for f in divisors if devices % (f * t) == 0]
    return sorted(found, key=lambda sizes: (sizes[2], sizes[1]))


def search(
    shapes: Shapes, devices: list[Any], memory: float, compile_on: Callable[[Mesh], Costs], most: int
) -> Iterator[Candidate]:
    """Every mesh of these devices, compiling at most `most` of those whose weights leave room; in the order of trying.

    `memory` is a device's, in bytes; `compile_on` gives the train step's costs on a mesh, or raises `DoesNotFit`.
    """
    compiled = 0
    for sizes in factorisations(len(devices)):
        mesh = make_mesh(MeshConfig(*sizes), devices)
        try:
            check_batch(mesh, shapes.batch_size)
            weights = weight_bytes(shapes, mesh)
            check_fits(weights, memory)
            if compiled == most:
                yield Candidate(sizes, None, f"not compiled (weights {weights / GIB:.1f} GiB); see --most")
                continue
            compiled += 1
            costs = compile_on(mesh)
            check_fits(costs.memory, memory)
            yield Candidate(sizes, costs, "")
        except (UserError, DoesNotFit) as error:
            yield Candidate(sizes, None, str(error))

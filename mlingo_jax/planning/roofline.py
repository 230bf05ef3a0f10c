"""The least time that a program can take on a machine: the slowest of computing, moving and sending, each at its limit.

A lower bound: it takes the three to overlap fully, each at the maker's rate. Good programs reach half of it or more.
"""

import dataclasses

from mlingo_jax.planning.costs import Costs
from mlingo_jax.planning.machines import Kind
from mlingo_jax.planning.shapes import Shapes, parameter_counts


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that one execution takes: to compute, to move to and from memory, and to send to other devices."""

    compute: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        """The limit."""
        return max(self.compute, self.memory, self.links)

    @property
    def bound(self) -> str:
        """Which of the three it is."""
        return {self.compute: "compute", self.memory: "memory", self.links: "links"}[self.seconds]


def roofline(costs: Costs, kind: Kind, devices: int) -> Roofline:
    """A program's limits on so many devices of a kind, if they share its operations evenly."""
    return Roofline(
        compute=costs.operations / devices / kind.flops,
        memory=costs.moved / kind.bandwidth,
        links=costs.sent / kind.link,
    )


def formula(shapes: Shapes) -> int:
    """Operations of an adapter-only step, by parameters: 2 N_encoder for each frame encoded, 4 N_llm for each token.

    Two for the forward pass, two for the activations' gradient; weights have none.
    """
    encoder, llm = parameter_counts(shapes)
    return 2 * encoder * _frames(shapes) + 4 * llm * shapes.batch_size * shapes.length


def besides(shapes: Shapes) -> dict[str, int]:
    """What a step computes that `formula` leaves out, by name.

    Between tokens it is next to nothing: rows are short.
    """
    found: dict[str, int] = {}
    if shapes.llm_settings.remat == "layer":
        found["activations again 2 N_llm tokens"] = 2 * parameter_counts(shapes)[1] * shapes.batch_size * shapes.length
    if _frames(shapes):
        of_clip = shapes.encoder.more_operations(shapes.samples)
        found |= {name: shapes.batch_size * count for name, count in of_clip.items()}
    return found


def _frames(shapes: Shapes) -> int:
    return shapes.batch_size * shapes.frames if shapes.spec.online else 0

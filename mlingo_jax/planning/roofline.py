"""The least time that a program can take on a machine: the slowest of computing, moving and sending, each at its limit.

A lower bound: it takes the three to overlap fully, each at the maker's rate. Good programs reach half of it or more.
"""

import dataclasses

from mlingo_jax.planning.costs import Costs
from mlingo_jax.planning.machines import Kind


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


def formula(encoder: int, llm: int, *, frames: int, tokens: int, passes: int = 4) -> int:
    """Operations of an adapter-only step by parameters alone: two for each of the encoder's for each frame heard, and
    for each token `passes` for each of the language model's.

    4: forward, and the gradient of the activations; weights have none. 6 where activations are computed again.
    """
    return 2 * encoder * frames + passes * llm * tokens

"""What stands out among a run's steps: losses that are no numbers, and spikes.

It remembers the recent losses and the steps that were not applied; every checkpoint holds them, so that a run that is
resumed says what it would have said.
"""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

# A loss is judged by so many before it; the first ones, by none.
RECENT, ENOUGH = 50, 20
# A normal distribution's standard std over its median absolute one; and the least, as a share of the median.
SCALE, LEAST = 1.4826, 0.01


class LossMonitor:
    """Sees every step's numbers in turn. `spike`: how many deviations above the median a loss stands out; 0: none."""

    def __init__(self, spike: float, state: Mapping[str, Any]):
        """`state` as `self.state` gave it, or empty."""
        self._spike = spike
        self._losses: deque[float] = deque(state.get("losses", ()), RECENT)
        self.skipped: list[int] = list(state.get("skipped", ()))

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it: JSON values, floats exactly."""
        return {"losses": list(self._losses), "skipped": list(self.skipped)}

    def see(self, step: int, loss: float, gradient_norm: float) -> dict[str, Any]:
        """What stands out: {"skipped": why} for a step that was not applied, {"spike": deviations}, or nothing.

        The std is the recent losses' median absolute one: an earlier spike does not hide the next.
        """
        numbers = {"loss": loss, "gradient_norm": gradient_norm}
        if bad := [f"{name} is {value}" for name, value in numbers.items() if not math.isfinite(value)]:
            self.skipped.append(step)
            return {"skipped": ", ".join(bad)}
        above = self._deviations(loss)
        self._losses.append(loss)
        return {"spike": round(above, 1)} if self._spike and above > self._spike else {}

    def _deviations(self, loss: float) -> float:
        """How far a loss is above the recent ones' median, in their deviations."""
        if len(self._losses) < ENOUGH:
            return 0.0
        middle = statistics.median(self._losses)
        std = SCALE * statistics.median(abs(x - middle) for x in self._losses)
        return (loss - middle) / max(std, LEAST * middle, math.ulp(1.0))

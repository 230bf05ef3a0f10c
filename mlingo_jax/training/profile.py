"""A trace of some steps, for TensorBoard, XProf or Perfetto."""

import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax

from mlingo_jax.errors import UserError


def profiled_steps(text: str) -> range:
    """The steps of "FIRST,LAST", both included; none of "". Raises UserError for anything else."""
    if not text:
        return range(0)
    match = re.fullmatch(r"(\d+),(\d+)", text)
    steps = range(int(match[1]), int(match[2]) + 1) if match else range(0)
    if not steps or not steps[0]:
        raise UserError(f"config.profile_steps is {text!r}: must be FIRST,LAST, two rising numbers of steps from 1 on")
    return steps


class Profiler:
    """Traces the wanted steps into a folder. A context manager: a trace that was begun is written, however it ends."""

    def __init__(self, folder: Path, steps: range):
        self._folder, self._steps = folder, steps
        self._tracing = False

    def step(self, number: int) -> AbstractContextManager[Any]:
        """To be around the step of this number; the first one that is wanted starts the trace."""
        if number in self._steps and not self._tracing:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._tracing = True
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def done(self, number: int, results: Any) -> bool:
        """To be called after every step, with what it computes; True if that ended the trace."""
        if not self._tracing or number < self._steps[-1]:
            return False
        jax.block_until_ready(results)
        self._end()
        return True

    def _end(self) -> None:
        self._tracing = False
        jax.profiler.stop_trace()

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        if self._tracing:
            self._end()

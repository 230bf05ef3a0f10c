"""Stopping when asked to: after a step, with everything saved, and on all processes after the same one.

SIGTERM (schedulers; the preemption of a TPU or a spot machine), SIGUSR1 (SLURM's --signal, some time ahead) and Ctrl-C
are taken note of while steps are made. Before the first one there is nothing to save, and neither a file being encoded
nor a program being compiled can be left in the middle: until then a signal ends the process at once, as ever.

JAX's preemption service would not do: it knows SIGTERM alone, and from `jax.distributed.initialize` on keeps it from
ending the process, through hours of encoding and minutes of compiling.
"""

import signal
import threading
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class PreemptionHandler:
    """Takes note of signals; a context manager, after which they do again what they did before."""

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        self._most = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, P()))
        self._asked = 0
        self._told: jax.Array | None = None
        self._before: dict[signal.Signals, Any] = {}

    def listen(self) -> None:
        """Takes note of signals from now on. A second Ctrl-C does not wait any more."""
        if not self._before and threading.current_thread() is threading.main_thread():
            # None, for a handler that is not Python's, cannot be set again.
            self._before = {number: signal.signal(number, self._note) or signal.SIG_DFL for number in SIGNALS}

    def asked(self) -> signal.Signals | None:
        """The signal that one of the processes got, the same on all of them; all must ask equally often.

        With several processes the answer is that of the question before: nobody waits for a device.
        """
        if jax.process_count() == 1:
            return signal.Signals(self._asked) if self._asked else None
        told, mine = self._told, np.full(len(self._mesh.local_devices), self._asked, np.int32)
        sharding = NamedSharding(self._mesh, P(self._mesh.axis_names))
        self._told = self._most(jax.make_array_from_process_local_data(sharding, mine))
        number = 0 if told is None else int(told)
        return signal.Signals(number) if number else None

    def _note(self, number: int, _: FrameType | None) -> None:
        self._asked = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __enter__(self) -> "PreemptionHandler":
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

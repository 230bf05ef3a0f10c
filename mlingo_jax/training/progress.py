"""How a run is going, for whoever watches: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm


class Progress:
    """Shows loss, learning rate, examples and seconds of audio per second, and the time left. A context manager.

    Speed and time left are reckoned from the second step on: the first one compiles.
    """

    def __init__(self, *, first: int, steps: int, batch_size: int, seconds: float, print_every: int):
        self._first, self._steps = first, steps
        self._batch_size, self._seconds = batch_size, seconds
        self._print_every = print_every
        self._start: tuple[int, float] | None = None
        self._bar = tqdm(total=steps, initial=first, unit="step", dynamic_ncols=True) if sys.stderr.isatty() else None

    def speed(self, step: int) -> dict[str, float]:
        """Examples and audio-seconds per second; empty before there are any to reckon from."""
        if self._start is None or step == self._start[0]:
            return {}
        rate = (step - self._start[0]) * self._batch_size / (time.perf_counter() - self._start[1])
        return {"examples_per_second": rate, "audio_seconds_per_second": rate * self._seconds}

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """After step number `step` (from 1) has been computed."""
        if self._start is None:
            self._start = step, time.perf_counter()
        speed = self.speed(step)
        texts = [f"loss {metrics['loss']:.4f}", f"lr {metrics['learning_rate']:.2e}"]
        if speed:
            texts += [f"{speed['examples_per_second']:.1f} examples/s"]
            texts += [f"{speed['audio_seconds_per_second']:.0f} audio-s/s"]
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(texts), refresh=False)
            self._bar.update(step - self._bar.n)
        elif step % self._print_every == 0 or step == self._steps:
            left = (self._steps - step) * self._batch_size / speed["examples_per_second"] if speed else None
            texts += [] if left is None else [f"{tqdm.format_interval(left)} left"]
            print(f"step {step}/{self._steps}: {', '.join(texts)}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line of its own, above the bar if there is one."""
        if self._bar is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._bar.write(text, file=sys.stderr)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

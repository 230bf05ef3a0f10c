"""How a run is going, for whoever watches: a bar on a terminal, a plain line now and then elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping

from tqdm import tqdm

from mlingo_jax.processes import is_primary

# A run that waits for its data for less than this share of the time is not worth a word.
STARVING = 0.05


class Progress:
    """Shows loss, learning rate, examples and seconds of audio per second, and the time left. A context manager.

    A run that is short of data says which share of the time it waits for them. Of several processes only the first
    shows anything.

    Speed and time left are reckoned from steps alone; the first one, which compiles, is left out.
    """

    def __init__(self, first: int, steps: int, examples: float, seconds: float | None, print_every: int):
        """Starts after step `first` of `steps`, each of so many examples, with so much audio each on average.

        seconds: None if it is not known.
        """
        self._steps, self._examples, self._seconds = steps, examples, seconds
        self._print_every = print_every
        self._since: tuple[int, float] | None = None
        self._waited = 0.0
        self._shows = is_primary()
        terminal = self._shows and sys.stderr.isatty()
        self._bar = tqdm(total=steps, initial=first, unit="step", dynamic_ncols=True) if terminal else None

    def speed(self, step: int) -> dict[str, float]:
        """Examples and audio-seconds per second, share of waiting; empty before there are any to reckon from."""
        if self._since is None or step == self._since[0]:
            return {}
        passed = time.perf_counter() - self._since[1]
        rate = (step - self._since[0]) * self._examples / passed
        audio = {} if self._seconds is None else {"audio_seconds_per_second": rate * self._seconds}
        return {"examples_per_second": rate, **audio, "waiting_share": self._waited / passed}

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """To be around what waits for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """After step number `step` (from 1) has been computed."""
        if self._since is None:
            self._since, self._waited = (step, time.perf_counter()), 0.0
        if not self._shows:
            return
        speed = self.speed(step)
        texts = [f"loss {metrics['loss']:.4f}", f"lr {metrics['learning_rate']:.2e}"]
        for name, unit in (("examples_per_second", "examples/s"), ("audio_seconds_per_second", "audio-s/s")):
            texts += [f"{speed[name]:.1f} {unit}"] if name in speed else []
        if (share := speed.get("waiting_share", 0)) > STARVING:
            texts.append(f"{share:.0%} waiting for data")
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(texts), refresh=False)
            self._bar.update(step - self._bar.n)
        elif step % self._print_every == 0 or step == self._steps:
            left = (self._steps - step) * self._examples / speed["examples_per_second"] if speed else None
            texts += [] if left is None else [f"{tqdm.format_interval(left)} left"]
            print(f"step {step}/{self._steps}: {', '.join(texts)}", file=sys.stderr, flush=True)

    def interrupt(self) -> None:
        """Other work than steps has been done: speed is reckoned anew from the next step on."""
        self._since = None

    def say(self, text: str) -> None:
        """A line of its own, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif self._shows:
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """What this process alone may have met, so that it is said by whichever one meets it."""
        if self._shows:
            self.say(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

"""How a catalogue is going: a bar on a terminal, elsewhere a line a minute."""

import sys
import time

from tqdm import tqdm

from mlingo_jax.wording import counted

# Seconds between two lines where there is no terminal.
LINE_EVERY = 60.0


class CatalogueProgress:
    """Shows files and seconds of audio per second, the share of rows busy, errors and time left. A context manager.

    total: files; done: those that were answered before. shown: only one of several processes shows it.
    """

    def __init__(self, total: int, done: int, *, shown: bool, line_every: float = LINE_EVERY):
        self._total, self._before, self._done, self._errors = total, done, done, 0
        self._began = self._told = time.perf_counter()
        self._line_every, self._shown = line_every, shown
        terminal = shown and sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, unit="file", dynamic_ncols=True) if terminal else None

    def __enter__(self) -> "CatalogueProgress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def file(self, seconds: float, busy: float | None, failed: bool) -> None:
        """A file is done. `seconds` of audio have been encoded so far, `busy` is the share of row-steps that wrote."""
        self._done += 1
        self._errors += failed
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix_str(self._speed(seconds, busy), refresh=False)
            return
        now = time.perf_counter()
        if self._shown and now - self._told >= self._line_every:
            self._told = now
            print(self.line(seconds, busy), file=sys.stderr, flush=True)

    def line(self, seconds: float, busy: float | None) -> str:
        """Where it stands."""
        passed = time.perf_counter() - self._began
        rate = (self._done - self._before) / passed
        left = _clock((self._total - self._done) / rate) if rate else "?"
        errors = f", {counted(self._errors, 'error')}" if self._errors else ""
        speed = f"{rate:.2f} files/s, {self._speed(seconds, busy)}"
        return f"{self._done:,} of {counted(self._total, 'file')}: {speed}{errors}, {left} left"

    def _speed(self, seconds: float, busy: float | None) -> str:
        rows = "" if busy is None else f", {100 * busy:.0f} % of rows busy"
        return f"{seconds / (time.perf_counter() - self._began):.1f} audio-s/s{rows}"


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"

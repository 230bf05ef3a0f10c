"""How far the asking is: clips/s, tokens, money and the time left; a bar on a terminal, else a line a minute."""

import sys
import time

from tqdm import tqdm

from mlingo_jax.instruction.report import Prices
from mlingo_jax.instruction.requests import Reply, Request

_LINE_SECONDS = 60.0


class Progress:
    """Counts the replies that come while clips are done. A context manager."""

    def __init__(self, clips: int, prices: Prices):
        self.tokens = [0, 0]
        self.requests = 0
        self._prices, self._clips, self._done = prices, clips, 0
        self._begun = self._line = time.monotonic()
        terminal = sys.stderr.isatty()
        self._bar = tqdm(total=clips, unit="clip", dynamic_ncols=True, desc="asking") if terminal else None

    def on_reply(self, request: Request, reply: Reply) -> None:
        """A reply is there."""
        del request
        self.requests += 1
        self.tokens = [total + new for total, new in zip(self.tokens, reply.tokens, strict=True)]
        if self._bar is not None:
            self._bar.set_postfix_str(self._spent(), refresh=False)

    def ended(self) -> None:
        """A clip is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()
        elif time.monotonic() - self._line > _LINE_SECONDS:
            self._line = time.monotonic()
            rate = self._done / (self._line - self._begun)
            left = tqdm.format_interval((self._clips - self._done) / rate)
            print(
                f"{self._done:,} of {self._clips:,} clips, {rate:.2g} clips/s, {self._spent()}, {left} left",
                file=sys.stderr,
                flush=True,
            )

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def _spent(self) -> str:
        prompt, reply = self.tokens
        if not self.requests:
            return "nothing asked"
        cost = self._prices.cost(prompt, reply)
        return f"{prompt:,} + {reply:,} tokens{'' if cost is None else f', {cost:,.2f} spent'}"

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

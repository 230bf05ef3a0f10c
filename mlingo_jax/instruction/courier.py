"""The process that asks: it outlives the command that started it until every reply under way is in the journal.

A reply is paid for when the server writes it, so a command that is killed while it waits would pay again. So a process
of its own sends the requests and writes the replies down. It reads requests from its standard input, a JSON line each,
and tells of replies on its standard output; when its input ends, because the command is done or dead, it sends nothing
more, waits for what is under way, and ends.
"""

import contextlib
import dataclasses
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mlingo_jax.errors import UserError
from mlingo_jax.files import exclusive_lock
from mlingo_jax.instruction.endpoint import Endpoint, Place, Unanswered
from mlingo_jax.instruction.journal import Writer
from mlingo_jax.instruction.requests import Request, Role

LOCK = ".asking.lock"
_SPARE_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class Orders:
    """What the courier is started with. places: the server of each role. tries, seconds: of each request."""

    journal: str
    places: Mapping[Role, Place]
    concurrency: int
    seconds: float
    tries: int

    def text(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def read(cls, text: str) -> "Orders":
        values = json.loads(text)
        places = {role: Place(**place) for role, place in values.pop("places").items()}
        return cls(places=places, **values)


def main() -> None:
    """Reads its orders from stdin and carries them out."""
    orders = Orders.read(sys.stdin.readline())
    with contextlib.suppress(BrokenPipeError):
        try:
            with _sole_writer(orders) as writer:
                _tell({"event": "ready"})
                _Work(orders, writer).run()
        except UserError as error:
            _tell({"event": "failed", "reason": str(error)})


@contextlib.contextmanager
def _sole_writer(orders: Orders) -> Iterator[Writer]:
    """Waits until the courier of a command that was killed has written down what it still waits for."""
    path = Path(orders.journal)
    until, told = time.monotonic() + orders.seconds + _SPARE_SECONDS, False
    while True:
        with contextlib.ExitStack() as stack:
            busy = f"{path.parent}: another process is still asking for this folder; wait until it is done"
            try:
                stack.enter_context(exclusive_lock(path.parent / LOCK, busy))
            except UserError:
                if not (path.parent / LOCK).exists() or time.monotonic() > until:
                    raise
                if not told:
                    _tell({"event": "waiting"})
                told = True
                time.sleep(0.1)
                continue
            writer = Writer(path)
            try:
                yield writer
            finally:
                writer.close()
            return


class _Work:
    """Requests in, replies out, until the input ends or no request can be answered."""

    def __init__(self, orders: Orders, writer: Writer):
        self._orders, self._writer = orders, writer
        self._stop, self._lock = threading.Event(), threading.Lock()
        made: dict[Place, Endpoint] = {}
        for place in orders.places.values():
            if place not in made:
                made[place] = Endpoint(place, orders.concurrency, orders.seconds, orders.tries, self._stop)
        self._endpoints = {role: made[place] for role, place in orders.places.items()}
        self._lost_in_a_row, self._answered = 0, False

    def run(self) -> None:
        with ThreadPoolExecutor(self._orders.concurrency) as pool:
            for line in sys.stdin:
                pool.submit(self._handle, Request(**json.loads(line)))
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
        for endpoint in self._endpoints.values():
            endpoint.close()

    def _handle(self, request: Request) -> None:
        """Asks and tells; whatever goes wrong is told, since nobody waits for this function's result."""
        try:
            self._ask(request)
        except UserError as error:
            self._fail(str(error))
        except Exception as error:
            self._fail(f"{type(error).__name__}: {error}")

    def _ask(self, request: Request) -> None:
        endpoint = self._endpoints[request.role]
        try:
            answer = endpoint.ask(request)
        except Unanswered as error:
            self._note_lost(request, endpoint, str(error))
            return
        self._lost_in_a_row, self._answered = 0, True
        key, place = request.key, endpoint.place
        offset = self._writer.append(
            key, request.role, place.url, answer.body, answer.status, answer.response, place.key
        )
        self._tell({"event": "reply", "key": key, "offset": offset})

    def _note_lost(self, request: Request, endpoint: Endpoint, reason: str) -> None:
        self._lost_in_a_row += 1
        if not self._stop.is_set() and (not self._answered or self._lost_in_a_row >= self._orders.concurrency + 2):
            self._fail(f"{endpoint.place.url} does not answer: {reason}")
        self._tell({"event": "unanswered", "key": request.key, "reason": reason})

    def _fail(self, reason: str) -> None:
        self._stop.set()
        self._tell({"event": "failed", "reason": reason})

    def _tell(self, event: dict[str, Any]) -> None:
        # Nobody listens any more when the command has been killed.
        with self._lock, contextlib.suppress(BrokenPipeError):
            _tell(event)


def _tell(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""One server that speaks OpenAI's chat completions: a request is sent until there is a reply or no hope of one."""

import dataclasses
import email.utils
import os
import random
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from mlingo_jax.errors import UserError
from mlingo_jax.instruction.requests import Dialect, Request, read_reply

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0
_CONNECT_SECONDS = 10.0
_SHOWN = 300
# Statuses by which a server says "later", and those that no other request would fare better with.
_LATER = frozenset((408, 409, 425, 429))
_HOPELESS = {
    401: "it wants a key: put it into the environment variable {key_env} (--key_env names another)",
    402: "it wants to be paid",
    403: "it does not let this key in (environment variable {key_env})",
    404: "there is no such address or model; is --endpoint the address up to /v1, and --model a name the server knows?",
    405: "it takes no requests at this address; is --endpoint the address up to /v1?",
}
# llama-cpp-python's server answers 500 where a request is not as it expects.
_NOT_UNDERSTOOD = (400, 422, 500)
_NO_MONEY = ("insufficient_quota", "billing_hard_limit")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a server is. url: of its chat completions. key_env: the environment variable that holds its key, if any.

    structured: how replies are given their form, or "auto": as the server can.
    """

    url: str
    key_env: str
    structured: str

    @property
    def key(self) -> str:
        return os.environ.get(self.key_env, "")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back. body: as it was sent. status: 200, or that by which the server refused this one request.

    response: the chat completion, or else the server's message.
    """

    body: Mapping[str, Any]
    status: int
    response: Any


class Unanswered(Exception):
    """No reply after all tries, or before the work was to stop; the message is the last reason."""


def chat_url(endpoint: str) -> str:
    """The address of chat completions, given that of a server, with or without /v1. Raises UserError for none."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--endpoint: expected an address as http://localhost:8000/v1, found {endpoint!r}")
    if parts.username or parts.password:
        raise UserError("--endpoint: no keys in the address, please: put the key into the environment (--key_env)")
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path = f"{path or '/v1'}/chat/completions"
    return parts._replace(path=path, fragment="").geturl()


class Endpoint:
    """Asks one server, from any number of threads. All wait when the server says that it has had enough."""

    def __init__(self, place: Place, connections: int, seconds: float, tries: int, stop: threading.Event):
        """seconds: how long a reply may take. tries: of each request, where it may still go well."""
        import httpx2

        self.place, self._tries, self._stop = place, tries, stop
        self._transport_error, self._gate = httpx2.TransportError, _Gate(stop)
        structured = "schema" if place.structured == "auto" else place.structured
        self._dialect = Dialect(structured=structured)  # pyright: ignore[reportArgumentType]
        headers = {"Authorization": f"Bearer {place.key}"} if place.key else {}
        self._client = httpx2.Client(
            headers=headers,
            timeout=httpx2.Timeout(seconds, connect=_CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    def ask(self, request: Request) -> Answer:
        """The server's answer, whatever it says.

        Raises:
            Unanswered: no reply after all tries, or the work is to stop.
            UserError: no request can be answered here (no key, no such model, no money).
        """
        reason, tries = "", 0
        while tries < self._tries:
            self._gate.wait()
            if self._stop.is_set():
                raise Unanswered(reason or "stopped before it was sent")
            dialect = self._dialect
            body = dialect.body(request)
            try:
                response = self._client.post(self.place.url, json=body)
                said = response.text
            except self._transport_error as error:
                reason, wait = f"{type(error).__name__}: {error}".rstrip(": "), None
            else:
                if response.status_code == 200:
                    if (value := _completion(response, body)) is not None:
                        return Answer(body, 200, value)
                    reason, wait = f"no chat completion, but {_shorten(said)!r}", None
                elif self._simplify(dialect, response.status_code, said):
                    continue
                elif self._may_come_later(response.status_code, said):
                    reason, wait = f"{response.status_code}: {_shorten(said)}", _own_word(response.headers)
                else:
                    return Answer(body, response.status_code, self._redact(_shorten(said)))
            tries += 1
            self._gate.close(_backoff(tries) if wait is None else wait, everybody=wait is not None)
        raise Unanswered(self._redact(f"{reason} ({tries} tries)"))

    def close(self) -> None:
        self._client.close()

    def _may_come_later(self, status: int, said: str) -> bool:
        """Whether to ask again. Raises UserError where no request has a chance."""
        if status in _HOPELESS or any(word in said for word in _NO_MONEY):
            why = _HOPELESS.get(status, "there is no money left on its account").format(key_env=self.place.key_env)
            raise UserError(f"{self.place.url} answers {status}: {why}. It says: {self._redact(_shorten(said))}")
        return status in _LATER or status >= 500

    def _simplify(self, dialect: Dialect, status: int, said: str) -> bool:
        """Goes over to a dialect that the server may understand. Raises UserError if the user has forbidden it."""
        simpler = dialect.simpler(said) if status in _NOT_UNDERSTOOD else None
        if simpler is None:
            return False
        if self.place.structured != "auto" and simpler.structured != dialect.structured:
            raise UserError(
                f"{self.place.url} does not take --structured {dialect.structured}: {self._redact(_shorten(said))}"
            )
        # Of several threads that are refused at once the first goes over.
        if self._dialect == dialect:
            self._dialect = simpler
        return True

    def _redact(self, text: str) -> str:
        return text.replace(self.place.key, "***") if self.place.key else text


class _Gate:
    """Where threads wait before they send."""

    def __init__(self, stop: threading.Event):
        self._stop, self._opens, self._own = stop, 0.0, threading.local()

    def close(self, seconds: float, *, everybody: bool) -> None:
        """Stays shut for so long: for everybody where the server has said so, else for this thread alone."""
        until = time.monotonic() + seconds
        if everybody:
            self._opens = max(self._opens, until)
        self._own.opens = until

    def wait(self) -> None:
        """Returns when the gate is open, or when the work is to stop."""
        while (left := max(self._opens, getattr(self._own, "opens", 0.0)) - time.monotonic()) > 0:
            if self._stop.wait(left):
                return


def _completion(response: Any, body: Mapping[str, Any]) -> Any:
    """The chat completion, or None if what came is none."""
    try:
        value = response.json()
        read_reply(value, body)
    except (ValueError, AttributeError):
        return None
    return value


def _backoff(tries: int) -> float:
    return min(_FIRST_WAIT * 2 ** (tries - 1), _LONGEST_WAIT) * random.uniform(0.75, 1.25)


def _own_word(headers: Mapping[str, str]) -> float | None:
    """How many seconds the server asks one to wait, if it says so: in ms, in s, or by a date."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return max(float(headers[name]) * unit, 0.0)
        except (KeyError, ValueError):
            pass
    try:
        return max(email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time(), 0.0)
    except (KeyError, ValueError):
        return None


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."

"""Conversations with a model: many at once, each asking what its last reply calls for, until all have come to an end.

A conversation is a generator that yields requests and is sent replies. Whether these come from the journal or from a
server it does not see, so the same conversations ask, resume, fill batch files, and give the result.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from mlingo_jax.errors import UserError
from mlingo_jax.instruction.courier import Orders
from mlingo_jax.instruction.journal import Journal
from mlingo_jax.instruction.requests import UNANSWERED, Reply, Request

T = TypeVar("T")
Conversation = Generator[Request, Reply, T]
OnReply = Callable[[Request, Reply], None]


class Courier:
    """The command's side of the process that asks. A context manager."""

    def __init__(self, orders: Orders, say: Callable[[str], None]):
        """Raises UserError if another process does not let go of the journal."""
        # A session of its own: what ends the command (Ctrl-C, a hang-up) does not end it.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlingo_jax.instruction.courier"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self._write(orders.text())
        while (event := self.next())["event"] != "ready":
            if event["event"] == "waiting":
                say("waiting for the replies that a run before this one has still under way")

    def send(self, request: Request) -> None:
        self._write(json.dumps({name: getattr(request, name) for name in Request.__dataclass_fields__}))

    def next(self) -> dict[str, Any]:
        """The next thing that happened. Raises UserError if nothing can be asked any more."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        event = json.loads(line) if line else {"event": "failed", "reason": "the process that asks has ended"}
        if event["event"] == "failed":
            raise UserError(f"{event['reason']}; what was answered is kept, the same command goes on from there")
        return event

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        # If it has ended, `next` says so.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def __enter__(self) -> "Courier":
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for the replies under way; a second Ctrl-C leaves them to the courier, which writes them down alone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.read()
        self._process.wait()


def converse(
    conversations: Iterable[Conversation[Any]],
    journal: Journal,
    courier: Courier,
    window: int,
    on_reply: OnReply,
    ended: Callable[[], None],
) -> int:
    """Carries on up to `window` conversations at a time until all have ended.

    on_reply: told of each reply; ended: called at the end of each conversation. Returns how many requests stay
    unanswered. Two conversations that ask the same share a reply.
    """
    waiting: dict[str, list[tuple[Conversation[Any], Request]]] = {}
    upcoming, unanswered = iter(conversations), 0

    def advance(conversation: Conversation[Any], reply: Reply | None) -> None:
        """Goes on with what the journal has, up to a request that it has not."""
        request = _next(conversation, reply)
        while request is not None and request.key in journal:
            known = journal.reply(request)
            on_reply(request, known)
            request = _next(conversation, known)
        if request is None:
            ended()
        elif request.key in waiting:
            waiting[request.key].append((conversation, request))
        else:
            waiting[request.key] = [(conversation, request)]
            courier.send(request)

    while True:
        while sum(map(len, waiting.values())) < window and (conversation := next(upcoming, None)) is not None:
            advance(conversation, None)
        if not waiting:
            return unanswered
        event = courier.next()
        if event["event"] == "reply":
            journal.note(event["key"], event["offset"])
        else:
            unanswered += 1
        for conversation, request in waiting.pop(event["key"]):
            reply = journal.reply(request)
            on_reply(request, reply)
            advance(conversation, reply)


def replay(conversation: Conversation[T], journal: Journal, on_reply: OnReply) -> T:
    """What a conversation comes to by the journal alone. What is not in it counts as unanswered.

    on_reply: told of each reply that is there.
    """
    reply: Reply | None = None
    while True:
        try:
            request = next(conversation) if reply is None else conversation.send(reply)
        except StopIteration as end:
            return end.value
        reply = journal.reply(request)
        if reply is not UNANSWERED:
            on_reply(request, reply)


def missing(conversations: Iterable[Conversation[Any]], journal: Journal) -> Iterator[Request]:
    """The first request of each conversation that the journal has no reply to; each once."""
    seen: set[str] = set()
    for conversation in conversations:
        request = _next(conversation, None)
        while request is not None and request.key in journal:
            request = _next(conversation, journal.reply(request))
        if request is not None and request.key not in seen:
            seen.add(request.key)
            yield request
        conversation.close()


def journal_path(output: Path) -> Path:
    """Where a folder keeps all requests and replies."""
    return output / "requests" / "journal.jsonl"


def _next(conversation: Conversation[Any], reply: Reply | None) -> Request | None:
    try:
        return next(conversation) if reply is None else conversation.send(reply)
    except StopIteration:
        return None

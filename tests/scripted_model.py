"""A small HTTP server that plays a language model: it answers from a script, well or with all that can go wrong.

It writes pairs from the aspects of a caption, judges, and keeps count of what it was paid for: replies that it has sent
to their end.
"""

import dataclasses
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mlingo_jax.instruction.filters.vocabulary import load_vocabulary

MISHAPS = ("broken", "slow", "busy", "error", "cut", "refusal", "repetition", "invention", "long", "empty")
UNTRUE = "a submarine surfaces"
_ITEM = re.compile(r"^(\d+)\. Question: (.*)\n   Answer: (.*)$", re.MULTILINE)
_NAMED = {"genre": "genre", "tempo": "tempo", "vocals": "vocals", "instrument": "instruments"}
_COMPLAINTS = {"max_tokens": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}
_CAPTIONS = {
    "Sum the song up": "Whoever asks for the gist of it should know that one finds",
    "synonyms": "Put in other words, the listener is met here by nothing else than",
    "further tags": "Such songs are commonly catchy as well, and have besides all that",
}
_QUESTIONS = {
    "genre": "What style of music is it?",
    "tempo": "At what pace does it move?",
    "vocals": "What can be said of the voices?",
    "mood": "How does the piece feel?",
    "instruments": "What is played here?",
}


@dataclasses.dataclass
class Script:
    """aspects: of each caption. mishaps: what goes wrong with `mishap_share` of the requests, each by its text.

    pause: seconds before each reply. refuses: fields it does not take. key: that it wants. down: 503 for everybody.
    """

    aspects: Mapping[str, Sequence[str]]
    mishaps: Sequence[str] = ()
    mishap_share: float = 0.5
    pause: float = 0.0
    refuses: Sequence[str] = ()
    key: str = ""
    retry_after: str = "0.05"
    down: bool = False


class ScriptedModel:
    """paid: how often each request was answered in full. seen: how often it came. bodies: each once."""

    def __init__(self, script: Script):
        self.script = script
        self.paid: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.bodies: dict[str, dict[str, Any]] = {}
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        self.url = ""

    @contextmanager
    def serving(self) -> Iterator["ScriptedModel"]:
        model = self

        class Handler(_Handler):
            played = model

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def paid_twice(self) -> list[str]:
        """Requests that were answered in full more than once."""
        with self.lock:
            return [text for text, count in self.paid.items() if count > 1]

    def mishap(self, text: str, before: int) -> str:
        """What goes wrong with a request that came so often before. Each goes wrong twice at most on its way, but what
        is wrong with a reply's text is so for good: the next request tells the fault."""
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
        if not self.script.mishaps or number >= self.script.mishap_share:
            return ""
        kind = self.script.mishaps[int(number / self.script.mishap_share * len(self.script.mishaps))]
        return "" if kind in ("busy", "error", "cut") and before >= 2 else kind

    def write(self, body: Mapping[str, Any]) -> str:
        """The reply's text."""
        system, last = body["messages"][0]["content"], body["messages"][-1]["content"]
        if "You check questions" in system:
            verdicts = [
                {"pair": int(n), "faithful": "no" if UNTRUE in answer else "yes", "reason": "compared"}
                for n, _, answer in _ITEM.findall(last)
            ]
            return json.dumps({"verdicts": verdicts})
        if "you cannot hear" in system:
            return "It is rock." if last == _QUESTIONS["genre"] else "It is a happy song."
        asked = next(
            m["content"] for m in reversed(body["messages"]) if m["content"].startswith(("Caption: ", "Tags: "))
        )
        aspects = self.script.aspects.get(asked.splitlines()[0].partition(": ")[2], ())
        if '"answers"' in system:
            count = int(re.findall(r"(\d+) in all", system)[0])
            extra = {"attributes": ["catchy"]} if '"attributes"' in system else {}
            begin = next((text for word, text in _CAPTIONS.items() if word in system), "Take it: this is music with")
            said = [f"{begin} {' and '.join(aspects)} in it, {'abcdef'[n]}." for n in range(count)]
            return json.dumps(extra | {"answers": said})
        return json.dumps({"pairs": list(short_pairs(aspects) if "- tempo:" in system else long_pairs(aspects))})


def usage_of(body: Mapping[str, Any], said: str) -> dict[str, int]:
    """What a server counts: here characters are tokens."""
    prompt = sum(len(message["content"]) for message in body["messages"])
    return {"prompt_tokens": prompt, "completion_tokens": len(said)}


def short_pairs(aspects: Sequence[str]) -> Iterator[dict[str, str]]:
    """A pair for each kind of fact among the aspects."""
    sorted_by_kind: dict[str, list[str]] = {}
    for aspect in aspects:
        named = {m.category for m in load_vocabulary().mentions(aspect)}
        kind = next((kind for category, kind in _NAMED.items() if category in named), "mood")
        sorted_by_kind.setdefault(kind, []).append(aspect)
    for kind, found in sorted_by_kind.items():
        yield {"kind": kind, "question": _QUESTIONS[kind], "answer": f"One can say: {', '.join(found)[:150]}."}


def long_pairs(aspects: Sequence[str]) -> Iterator[dict[str, str]]:
    """Two portraits, forwards and backwards."""
    told = ", and then ".join(aspects)
    answer = f"Somebody who listens to this recording from its beginning to its end finds {told}."
    yield {"kind": "description", "question": "Could you portray the recording?", "answer": answer}
    told = " next to ".join(reversed(aspects))
    answer = f"What meets the ear here, in short, is {told}, if one pays attention for a while."
    yield {"kind": "summary", "question": "What would a seeker of music want to know?", "answer": answer}


class _Handler(BaseHTTPRequestHandler):
    played: ScriptedModel
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        played, script = self.played, self.played.script
        body, text = json.loads(data), data.decode()
        with played.lock:
            before, played.seen[text] = played.seen[text], played.seen[text] + 1
            played.bodies[text] = body
            played.under_way += 1
            played.most_under_way = max(played.most_under_way, played.under_way)
        try:
            if script.down:
                self._send(503, {"error": {"message": "down"}})
            elif script.key and self.headers.get("Authorization") != f"Bearer {script.key}":
                self._send(401, {"error": {"message": f"Incorrect API key: {self.headers.get('Authorization')}"}})
            elif self.path != "/v1/chat/completions":
                self._send(404, {"error": {"message": "no such route"}})
            elif refused := next((field for field in script.refuses if field in body), None):
                self._send(400, {"error": {"message": _COMPLAINTS.get(refused, f"'{refused}' is not supported here")}})
            else:
                self._answer(body, text, played.mishap(text, before))
        except (BrokenPipeError, ConnectionResetError):
            with played.lock:
                played.events["hung up"] += 1
        finally:
            with played.lock:
                played.under_way -= 1

    def _answer(self, body: dict[str, Any], text: str, mishap: str) -> None:
        played = self.played
        with played.lock:
            played.events[mishap or "well"] += 1
        time.sleep(played.script.pause + (0.3 if mishap == "slow" else 0))
        if mishap == "busy":
            self._send(429, {"error": {"message": "slow down"}}, retry_after=played.script.retry_after)
        elif mishap == "error":
            self._send(500, {"error": {"message": "out of luck"}})
        else:
            self._reply(body, text, mishap)

    def _reply(self, body: dict[str, Any], text: str, mishap: str) -> None:
        said, reason, refusal = self.played.write(body), "stop", None
        if mishap == "broken":
            said = said[: len(said) // 2]
        elif mishap == "refusal":
            said, refusal = "", "I cannot help with that."
        elif mishap == "long":
            said, reason = said[:-5], "length"
        elif mishap == "empty":
            said = ""
        elif mishap in ("repetition", "invention"):
            said = _spoil(said, mishap)
        message = {"role": "assistant", "content": said, "refusal": refusal}
        usage = usage_of(body, said)
        choice = {"index": 0, "message": message, "finish_reason": reason}
        self._send(200, {"object": "chat.completion", "choices": [choice], "usage": usage}, cut=mishap == "cut")
        if mishap != "cut":
            with self.played.lock:
                self.played.paid[text] += 1

    def _send(self, status: int, value: Any, *, retry_after: str | None = None, cut: bool = False) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.wfile.flush()
        if cut:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _spoil(said: str, mishap: str) -> str:
    """A reply in the right form that repeats a question, or tells what nobody knows."""
    reply = json.loads(said)
    pairs = reply.get("pairs", [])
    for pair in pairs[:1]:
        if mishap == "repetition":
            pairs.append(dict(pair))
            pairs[:] = pairs[-5:]
        else:
            pair["answer"] += " A didgeridoo and 17 bagpipes join in."
    return json.dumps(reply)

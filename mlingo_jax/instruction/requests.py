"""A request to a chat model, what it is known by, how it is written for a server, and the reply to it."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

Role = Literal["write", "judge", "blind"]


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked, whatever the server's dialect.

    role: which part of the work it is for, so which endpoint answers. messages: {"role", "content"}. schema: JSON
    schema of the reply, None for free text.
    """

    role: Role
    model: str
    messages: tuple[Mapping[str, str], ...]
    temperature: float
    max_tokens: int
    seed: int
    schema: Mapping[str, Any] | None

    @functools.cached_property
    def key(self) -> str:
        """What it is known by: the same for the same question, in every run and dialect."""
        asked = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        text = json.dumps(asked, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How a server wants it written.

    structured: "schema" (response_format json_schema), "object" (json_object) or
    "text" (nothing: the form is in the prompt). limit: the field's name. seed, temperature: whether it takes them.
    """

    structured: Literal["schema", "object", "text"] = "schema"
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    seed: bool = True
    temperature: bool = True

    def simpler(self, complaint: str) -> "Dialect | None":
        """The dialect to try after a server has refused a request with this message; None if that is not why."""
        said = complaint.lower()
        if "max_completion_tokens" in said and self.limit == "max_tokens":
            return dataclasses.replace(self, limit="max_completion_tokens")
        about_form = any(
            word in said for word in ("response_format", "json_schema", "json_object", "grammar", "schema")
        )
        if about_form and self.structured != "text":
            return dataclasses.replace(self, structured="object" if self.structured == "schema" else "text")
        if "temperature" in said and self.temperature:
            return dataclasses.replace(self, temperature=False)
        if "seed" in said and self.seed:
            return dataclasses.replace(self, seed=False)
        return None

    def body(self, request: Request) -> dict[str, Any]:
        """The request as the body of POST /chat/completions."""
        body: dict[str, Any] = {"model": request.model, "messages": [dict(m) for m in request.messages]}
        body[self.limit] = request.max_tokens
        body |= {"temperature": request.temperature} if self.temperature else {}
        body |= {"seed": request.seed} if self.seed else {}
        if request.schema is not None and self.structured == "schema":
            schema = {"name": request.role, "schema": request.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif request.schema is not None and self.structured == "object":
            # llama.cpp's kin hold replies to a schema given here, others do not look at it.
            body["response_format"] = {"type": "json_object", "schema": request.schema}
        return body


@dataclasses.dataclass(frozen=True)
class Reply:
    """What came of a request.

    problem: why there is no text to read, if so: "refused", "cut off", "unanswered", ...
    tokens: of the prompt and of the reply, as the server counted them, or else a quarter of their characters.
    """

    text: str
    problem: str = ""
    tokens: tuple[int, int] = (0, 0)


UNANSWERED = Reply("", "unanswered")
"""In place of a reply that did not come."""


def read_reply(body: Any, asked: Mapping[str, Any]) -> Reply:
    """The reply in the body of a server's response to the request body `asked`.

    Raises ValueError if it is no chat completion.
    """
    try:
        choice = body["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content") or "", message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError("no chat completion") from error
    if not isinstance(text, str):
        raise ValueError("no text in the chat completion")
    problem = ""
    if refusal or choice.get("finish_reason") == "content_filter":
        problem = "refused"
    elif choice.get("finish_reason") == "length":
        problem = "cut off"
    elif not text.strip():
        problem = "empty"
    return Reply(text or str(refusal or ""), problem, _tokens(body.get("usage"), asked, text))


def _tokens(usage: Any, asked: Mapping[str, Any], text: str) -> tuple[int, int]:
    if isinstance(usage, Mapping):
        counts = tuple(usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
        if all(isinstance(count, int) for count in counts):
            return counts  # pyright: ignore[reportReturnType]
    prompt = sum(len(str(message.get("content"))) for message in asked.get("messages", ()))
    return prompt // 4, len(text) // 4

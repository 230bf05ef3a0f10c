"""What the language model is told, the form of its reply, and what is read from it: all as plain functions."""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from mlingo_jax.instruction.pairs import UNSORTED, Pair, Source, Use
from mlingo_jax.instruction.recipes import Check, Task
from mlingo_jax.instruction.requests import Request

_FENCE = re.compile(r"^```[a-z]*\s*\n(.*?)\n?```$", re.DOTALL | re.IGNORECASE)
_THOUGHT = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)


class Fault(Exception):
    """A reply that cannot be used; the message is what the model is told about it."""


def describe(source: Source, use: Use) -> str:
    """A clip as the model sees it: a line each for caption, tags and facts, as far as they are used and there."""
    lines = []
    if source.caption and use in ("caption", "all"):
        lines.append(f"Caption: {source.caption}")
    if source.tags and (use in ("tags", "all") or not lines):
        for category, tags in source.tags.items():
            lines.append(f"{'Tags' if category == UNSORTED else category.capitalize()}: {', '.join(tags)}")
    lines += [f"{name.replace('_', ' ').capitalize()}: {value}" for name, value in source.facts.items()]
    return "\n".join(lines)


def writing_request(task: Task, source: Source, use: Use, model: str, seed: int, temperature: float | None) -> Request:
    """The first request for a clip's pairs: instruction, form, examples as earlier turns, the source."""
    messages = [{"role": "system", "content": f"{task.instruction}\n\n{_form(task)}"}]
    for shot in task.examples:
        reply: dict[str, Any] = {"attributes": list(shot.attributes)} if task.attributes else {}
        reply |= {"pairs": [dict(p) for p in shot.pairs]} if task.writes == "pairs" else {"answers": list(shot.answers)}
        messages += _turn("user", _ask(task, shot.source)) + _turn("assistant", json.dumps(reply, ensure_ascii=False))
    messages += _turn("user", _ask(task, describe(source, use)))
    return Request(
        role="write",
        model=model,
        messages=tuple(messages),
        temperature=task.temperature if temperature is None else temperature,
        max_tokens=task.max_tokens,
        seed=request_seed(seed, source.clip, task.name, "0"),
        schema=_task_schema(task),
    )


def judging_request(check: Check, source: Source, pairs: Sequence[Pair], model: str, seed: int) -> Request:
    """One request that judges all pairs of a clip."""
    known = [describe(source, "all")]
    if added := sorted({text for pair in pairs for text in pair.attributes}):
        known.append(f"Also taken as known: {', '.join(added)}")
    listed = [f"{n}. Question: {pair.question}\n   Answer: {pair.answer}" for n, pair in enumerate(pairs, 1)]
    form = (
        'Reply with JSON alone: {"verdicts": [{"pair": 1, "faithful": "yes", "reason": "..."}, ...]}, '
        "one verdict for each pair, in their order."
    )
    texts = [f"{check.instruction}\n\n{form}", "\n".join([*known, "", *listed])]
    return _check_request("judge", check, texts, model, request_seed(seed, source.clip, "judge", "0"), _VERDICTS)


def blind_request(check: Check, question: str, model: str, seed: int) -> Request:
    """The question alone. It is the same request for whichever clips it is asked about, so it is asked once."""
    return _check_request("blind", check, [check.instruction, question], model, request_seed(seed, question), None)


def request_seed(seed: int, *parts: str) -> int:
    """31 bits that depend on the run's seed and on what the request is about."""
    return int.from_bytes(hashlib.sha256("\0".join([str(seed), *parts]).encode()).digest()[:4], "big") >> 1


def read_pairs(task: Task, clip: str, text: str, attempt: int) -> list[Pair]:
    """The pairs of a reply as it stands, in their order. Raises Fault if they cannot be read from it."""
    reply = _read_object(text)
    attributes = tuple(_texts(reply, "attributes")) if task.attributes else ()
    if task.writes == "answers":
        answers = _texts(reply, "answers")
        if len(answers) != len(task.questions):
            raise Fault(f'expected {len(task.questions)} texts in "answers", found {len(answers)}')
        return [
            Pair(clip, task.name, task.kind, question, answer.strip(), attempt, attributes)
            for question, answer in zip(task.questions, answers, strict=True)
        ]
    items, (least, most) = _list(reply, "pairs"), task.pairs
    if not least <= len(items) <= most:
        raise Fault(f'expected {least} to {most} items in "pairs", found {len(items)}')
    return [_read_pair(task, clip, n, item, attempt, attributes) for n, item in enumerate(items, 1)]


def read_verdicts(text: str, count: int) -> list[tuple[bool, str]]:
    """(faithful, reason) of each of `count` pairs. Raises Fault if they cannot be read from the reply."""
    items = _list(_read_object(text), "verdicts")
    found: dict[int, tuple[bool, str]] = {}
    for item in items:
        number, verdict = (item.get("pair"), item.get("faithful")) if isinstance(item, dict) else (None, None)
        if not isinstance(number, int) or str(verdict).lower() not in ("yes", "no"):
            raise Fault('each verdict needs a whole number in "pair" and "yes" or "no" in "faithful"')
        found[number] = (str(verdict).lower() == "yes", str(item.get("reason", "")).strip())
    if sorted(found) != list(range(1, count + 1)) or len(items) != count:
        raise Fault(f"expected one verdict for each of the pairs 1 to {count}, found {len(items)} verdicts")
    return [found[number] for number in range(1, count + 1)]


def _read_pair(task: Task, clip: str, n: int, item: Any, attempt: int, attributes: tuple[str, ...]) -> Pair:
    if not isinstance(item, dict):
        raise Fault(f'pair {n}: expected an object, found "{item}"')
    kind, question, answer = (item.get(name) for name in ("kind", "question", "answer"))
    if not isinstance(kind, str) or kind not in task.kinds:
        raise Fault(f'pair {n}: expected one of {", ".join(task.kinds)} in "kind", found "{kind}"')
    if not (isinstance(question, str) and isinstance(answer, str) and question.strip() and answer.strip()):
        raise Fault(f'pair {n}: expected texts in "question" and "answer"')
    return Pair(clip, task.name, kind, question.strip(), answer.strip(), attempt, attributes)


def _read_object(text: str) -> dict[str, Any]:
    """The reply's JSON object; around it may be a code fence, and before it a thought."""
    bare = _THOUGHT.sub("", text).strip()
    if fenced := _FENCE.match(bare):
        bare = fenced[1]
    try:
        value = json.loads(bare)
    except (ValueError, RecursionError) as error:
        raise Fault(f"the reply is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise Fault("the reply is JSON, but not an object")
    return value


def _list(values: dict[str, Any], name: str) -> list[Any]:
    if not isinstance(values.get(name), list):
        raise Fault(f'the reply has no list "{name}"')
    return values[name]


def _texts(values: dict[str, Any], name: str) -> list[str]:
    texts = _list(values, name)
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise Fault(f'expected texts in "{name}"')
    return texts


def _turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def _ask(task: Task, source: str) -> str:
    numbered = [f"{n}. {question}" for n, question in enumerate(task.questions, 1)]
    return "\n".join([source, *(["", *numbered] if len(numbered) > 1 else [])])


def _form(task: Task) -> str:
    """The reply's form in words, for servers that cannot enforce it."""
    added = '"attributes": ["...", ...], ' if task.attributes else ""
    words = f"An answer has {task.answer_words[0]} to {task.answer_words[1]} words"
    if task.writes == "answers":
        count = len(task.questions)
        return f'{words}. Reply with JSON alone: {{{added}"answers": ["...", ...]}}, {count} in all, in their order.'
    kinds = "\n".join(f"- {name}: {meaning}" for name, meaning in task.kinds.items())
    return (
        f"Kinds:\n{kinds}\n\n{words}, a question {task.question_words[0]} to {task.question_words[1]}. "
        f'Reply with JSON alone: {{{added}"pairs": [{{"kind": "...", "question": "...", "answer": "..."}}, ...]}}, '
        f"{task.pairs[0]} to {task.pairs[1]} pairs."
    )


def _object(**properties: Any) -> dict[str, Any]:
    """A JSON schema in the part of the language that OpenAI's strict mode takes."""
    required = list(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_TEXT = {"type": "string"}
_VERDICTS = _object(
    verdicts=_array(_object(pair={"type": "integer"}, faithful={"type": "string", "enum": ["yes", "no"]}, reason=_TEXT))
)


def _task_schema(task: Task) -> dict[str, Any]:
    added = {"attributes": _array(_TEXT)} if task.attributes else {}
    if task.writes == "answers":
        return _object(**added, answers=_array(_TEXT))
    kind = {"type": "string", "enum": list(task.kinds)}
    return _object(**added, pairs=_array(_object(kind=kind, question=_TEXT, answer=_TEXT)))


def _check_request(role: Any, check: Check, texts: list[str], model: str, seed: int, schema: Any) -> Request:
    system, user = texts
    messages = tuple(_turn("system", system) + _turn("user", user))
    return Request(role, model, messages, check.temperature, check.max_tokens, seed, schema)

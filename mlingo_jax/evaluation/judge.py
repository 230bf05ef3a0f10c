"""A language model as judge: it grades answers against their references, and the same answers shuffled.

Any OpenAI-compatible endpoint will do. Every reply is kept, raw, as soon as it is there: a run that is killed, or whose
endpoint fails, resumes where it stopped, and nothing is paid for twice.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mlingo_jax.errors import UserError
from mlingo_jax.evaluation.answers import Answer
from mlingo_jax.evaluation.floors import shuffles
from mlingo_jax.evaluation.kept import Kept
from mlingo_jax.evaluation.statistics import Scored
from mlingo_jax.wording import counted

PROMPT = """You grade answers about a piece of music that you cannot encode. You are given a question about it, a true
answer as reference, and the answer to grade.

Question: {question}
Reference: {reference}
Answer: {answer}

How well does the answer agree with the reference about the music? Judge the facts (instruments, voices, genre, tempo,
mood, use), not wording or length. A claim that the reference does not support counts against the answer.
5: all of it agrees, and nothing important is missing. 4: most of it agrees. 3: some of it agrees. 2: little agrees.
1: nothing agrees, or the answer says nothing about the music.

Reply with one line of JSON: {{"grade": 1 to 5, "reason": "in a few words"}}"""

LOWEST, HIGHEST = 1, 5
_GRADE = re.compile(r'"?(?:grade|rating|score)"?\s*[:=]\s*"?([1-5])(?:\.0)?\b', re.IGNORECASE)
# Waits between tries of one request, in seconds.
_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
# A judge whose first replies cannot be read is not paid for more.
_TRIED_FIRST, _UNREADABLE = 20, 0.5


@dataclasses.dataclass(frozen=True)
class Judge:
    """An endpoint (".../v1") and the model's name there.

    shuffles: how many shuffles of the answers are graded, too. workers: requests at once. timeout: for a reply, in s.
    pauses: before each further try of a request, in s. The key is the environment variable OPENAI_API_KEY, if any.
    """

    endpoint: str
    model: str
    shuffles: int = 1
    workers: int = 8
    timeout: float = 120.0
    pauses: Sequence[float] = _PAUSES

    @property
    def identity(self) -> dict[str, str]:
        """What a grade depends on besides the texts."""
        return {"model": self.model, "prompt": hashlib.sha256(PROMPT.encode()).hexdigest()[:16]}


def judge_answers(judge: Judge, examples: Sequence[Answer], replies: Path) -> tuple[Scored, dict[str, Any]]:
    """`judge.score`'s statistics, each grade as a fraction from 0 (grade 1) to 1 (grade 5), and what to report of it.

    A reply that holds no grade counts in neither sum; how many there are is reported.

    Args:
        judge: who grades. examples: the N answers. replies: a jsonl file of all replies, which is gone on with.

    Raises:
        UserError: the endpoint is down, slow or refuses; or most of its first replies hold no grade.
    """
    dealt = [list(range(len(examples))), *shuffles(examples, judge.shuffles).tolist()]
    prompts = [
        [_prompt(example, examples[i].answer) for example, i in zip(examples, order, strict=True)] for order in dealt
    ]
    with Kept(replies) as kept:
        todo = dict.fromkeys(prompt for each in prompts for prompt in each if _key(judge, prompt) not in kept)
        _ask_all(judge, list(todo), kept)
    grades = [[read_grade(kept[_key(judge, prompt)]["reply"]) for prompt in each] for each in prompts]
    statistics = np.array([[_statistics(grade) for grade in each] for each in grades])
    unread = sum(grade is None for each in grades for grade in each)
    described = {**judge.identity, "endpoint": judge.endpoint, "shuffles": judge.shuffles, "unreadable_replies": unread}
    return Scored(statistics[0], statistics[1:]), described


def read_grade(reply: str) -> int | None:
    """The grade in a reply, as JSON or as "Rating: 4" at its end; None if there is none."""
    for line in reversed(reply.splitlines() or [reply]):
        try:
            grade = json.loads(line.strip().strip("`"))["grade"]
        except (ValueError, KeyError, TypeError):
            continue
        if isinstance(grade, int | float) and LOWEST <= grade <= HIGHEST and grade == int(grade):
            return int(grade)
    found = _GRADE.findall(reply)
    return int(found[-1]) if found else None


def _statistics(grade: int | None) -> tuple[float, float]:
    return (0.0, 0.0) if grade is None else ((grade - LOWEST) / (HIGHEST - LOWEST), 1.0)


def _prompt(example: Answer, answer: str) -> str:
    return PROMPT.format(question=example.question or "(none)", reference=example.reference, answer=answer or "(empty)")


def _key(judge: Judge, prompt: str) -> str:
    return hashlib.sha256(f"{judge.model}\n{prompt}".encode()).hexdigest()[:24]


def _ask_all(judge: Judge, prompts: Sequence[str], kept: Kept) -> None:
    """Asks the judge, and keeps each reply; what is there stays there if one fails."""
    if not prompts:
        return
    lock, stop = threading.Lock(), threading.Event()
    with tqdm(total=len(prompts), desc="judging", disable=None) as bar:

        def ask(prompt: str) -> None:
            if stop.is_set():
                return
            reply = _ask(judge, prompt, stop)
            with lock:
                kept.add(_key(judge, prompt), {**judge.identity, "reply": reply})
                bar.update()

        with ThreadPoolExecutor(judge.workers) as pool:
            try:
                _run(pool, ask, prompts[:_TRIED_FIRST])
                _require_grades([kept[_key(judge, prompt)]["reply"] for prompt in prompts[:_TRIED_FIRST]])
                _run(pool, ask, prompts[_TRIED_FIRST:])
            except UserError as error:
                raise UserError(
                    f"{error}; {counted(len(kept), 'grade')} kept in {kept.path}: the same command resumes"
                ) from error
            finally:
                stop.set()


def _run(pool: ThreadPoolExecutor, ask: Any, prompts: Iterable[str]) -> None:
    """All prompts, or the first one's error."""
    done, waiting = wait([pool.submit(ask, prompt) for prompt in prompts], return_when=FIRST_EXCEPTION)
    for future in waiting:
        future.cancel()
    for future in done:
        future.result()


def _require_grades(replies: Sequence[str]) -> None:
    unread = [reply for reply in replies if read_grade(reply) is None]
    if len(unread) > _UNREADABLE * len(replies):
        shown = " ".join(unread[0].split())[:200]
        raise UserError(f"{len(unread)} of the judge's first {len(replies)} replies hold no grade, as {shown!r}")


def _ask(judge: Judge, prompt: str, stop: threading.Event) -> str:
    """One reply; failures that may pass are tried again."""
    body = {
        "model": judge.model,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": 200,
    }
    failure = ""
    for pause in (0.0, *judge.pauses):
        if stop.wait(pause):
            break
        try:
            return _post(judge, body)["choices"][0]["message"]["content"] or ""
        except urllib.error.HTTPError as error:
            failure = f"answers {error.code}: {_said(error)}"
            if error.code not in (408, 409, 425, 429) and error.code < 500:
                break
        except TimeoutError:
            failure = f"gives no reply within {judge.timeout:g} s"
        except (OSError, ValueError) as error:
            failure = f"cannot be used ({getattr(error, 'reason', None) or error})"
        except (KeyError, IndexError, TypeError):
            failure = "answers something else than a chat completion"
            break
    raise UserError(f"{judge.endpoint}: the judge {failure}")


def _post(judge: Judge, body: Mapping[str, Any]) -> Any:
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    url = f"{judge.endpoint.rstrip('/')}/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=judge.timeout) as response:
        return json.load(response)


def _said(error: urllib.error.HTTPError) -> str:
    """What the endpoint says of its refusal, in a line."""
    text = error.read(2000).decode(errors="replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)["error"]["message"]
    return " ".join(str(text).split())[:200] or error.reason

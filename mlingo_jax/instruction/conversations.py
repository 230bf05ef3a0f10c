"""From a clip to its pairs: written, checked, judged. Generators that yield requests and are sent replies."""

import dataclasses
from collections.abc import Generator, Iterable, Sequence

from mlingo_jax.instruction.filters.checks import ClipChecks
from mlingo_jax.instruction.filters.given_away import is_given_away
from mlingo_jax.instruction.filters.vocabulary import Vocabulary
from mlingo_jax.instruction.pairs import Pair, Rejection, Source, Use
from mlingo_jax.instruction.prompts import (
    Fault,
    blind_request,
    judging_request,
    read_pairs,
    read_verdicts,
    request_seed,
    writing_request,
)
from mlingo_jax.instruction.recipes import Recipe, Task
from mlingo_jax.instruction.requests import Reply, Request

_REPEATED_CHARACTERS = 2000


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is asked about every clip.

    use: overrides the tasks' own. temperature: overrides theirs. judge: the model that judges, "" for none.
    blind: whether the model is also asked each question without the music.
    """

    recipe: Recipe
    model: str
    judge: str
    vocabulary: Vocabulary
    blind: bool = False
    seed: int = 0
    use: Use | None = None
    temperature: float | None = None


@dataclasses.dataclass(frozen=True)
class Made:
    """What came of a clip: its pairs that are sound by themselves, and what was left out.

    repairs: requests beyond the first of their kind, in which a fault was told. unanswered: requests without a reply.
    """

    pairs: tuple[Pair, ...]
    rejected: tuple[Rejection, ...]
    repairs: int
    unanswered: int


Steps = Generator[Request, Reply, None]


class Conversation:
    """All that is said about one clip. `steps` is the generator; afterwards `made` has what came of it."""

    def __init__(self, source: Source, plan: Plan):
        self._source, self._plan = source, plan
        self._checks = ClipChecks(source, plan.vocabulary)
        self._pairs: list[Pair] = []
        self._rejected: list[Rejection] = []
        self._repairs = self._unanswered = 0

    def steps(self) -> Generator[Request, Reply, Made]:
        """Yields each request, is sent its reply, and returns what came of them."""
        for task in self._plan.recipe.tasks:
            yield from self._write(task)
        if self._plan.judge and self._pairs:
            yield from self._judge()
        if self._plan.blind:
            yield from self._ask_blindly()
        return Made(tuple(self._pairs), tuple(self._rejected), self._repairs, self._unanswered)

    def _write(self, task: Task) -> Steps:
        plan, source = self._plan, self._source
        first = writing_request(task, source, plan.use or task.uses, plan.model, plan.seed, plan.temperature)
        request, reply, fault = first, None, ""
        for attempt in range(task.attempts):
            reply = yield request
            try:
                self._take(task, read_pairs(task, source.clip, _readable(reply, task.max_tokens), attempt))
                return
            except Fault as found:
                fault = str(found)
            if reply.problem == "unanswered":
                break
            if attempt + 1 < task.attempts:
                self._repairs += 1
                seed = request_seed(plan.seed, source.clip, task.name, str(attempt + 1))
                request = _repair(first, reply, fault, seed)
        self._lose(task.name, reply, fault)

    def _take(self, task: Task, pairs: Iterable[Pair]) -> None:
        for pair in pairs:
            found = self._checks.find_fault(pair, task)
            if found is None:
                self._pairs.append(pair)
            else:
                self._reject([pair], *found)

    def _judge(self) -> Steps:
        check, plan = self._plan.recipe.judge, self._plan
        first = judging_request(check, self._source, self._pairs, plan.judge, plan.seed)
        request, fault = first, ""
        for attempt in range(check.attempts):
            reply = yield request
            try:
                verdicts = read_verdicts(_readable(reply, check.max_tokens), len(self._pairs))
                self._keep_faithful(verdicts)
                return
            except Fault as found:
                fault = str(found)
            if reply.problem == "unanswered":
                self._unanswered += 1
                break
            if attempt + 1 < check.attempts:
                self._repairs += 1
                seed = request_seed(plan.seed, self._source.clip, "judge", str(attempt + 1))
                request = _repair(first, reply, fault, seed)
        # What nobody has judged is not known to be sound.
        self._reject(self._pairs, "not_judged", fault)
        self._pairs = []

    def _keep_faithful(self, verdicts: Sequence[tuple[bool, str]]) -> None:
        judged = list(zip(self._pairs, verdicts, strict=True))
        for pair, (faithful, reason) in judged:
            if not faithful:
                self._reject([pair], "judged_unfaithful", reason or "the judging model gave no reason")
        self._pairs = [pair for pair, (faithful, _) in judged if faithful]

    def _ask_blindly(self) -> Steps:
        kept = []
        for pair in self._pairs:
            reply = yield blind_request(self._plan.recipe.blind, pair.question, self._plan.model, self._plan.seed)
            if reply.problem == "unanswered":
                self._unanswered += 1
                self._reject([pair], "not_checked_blindly", "no reply")
            elif is_given_away(pair.answer, reply.text, self._plan.vocabulary):
                self._reject([pair], "given_away", f"answered from the question alone: {reply.text.strip()}")
            else:
                kept.append(pair)
        self._pairs = kept

    def _reject(self, pairs: Iterable[Pair], filter: str, reason: str) -> None:
        self._rejected += [Rejection(pair.clip, pair.task, filter, reason, pair) for pair in pairs]

    def _lose(self, task: str, reply: Reply | None, fault: str) -> None:
        problem = reply.problem if reply else ""
        self._unanswered += problem == "unanswered"
        filter = {"unanswered": "unanswered", "refused": "refused", "": "broken_reply"}.get(problem, "broken_reply")
        if problem.startswith("refused by the server"):
            filter = "refused"
        self._rejected.append(Rejection(self._source.clip, task, filter, fault, None, reply.text if reply else ""))


def _readable(reply: Reply, max_tokens: int) -> str:
    """The reply's text. Raises Fault if it is none, or not to be trusted."""
    if reply.problem == "cut off":
        raise Fault(f"the reply was cut off after {max_tokens} tokens; write less")
    if reply.problem:
        raise Fault(f"the reply is no use: {reply.problem}")
    return reply.text


def _repair(first: Request, reply: Reply, fault: str, seed: int) -> Request:
    """The first request again, with the reply that was no use and what is wrong with it."""
    said = reply.text[:_REPEATED_CHARACTERS] or "(nothing)"
    told = f"This cannot be used: {fault}. Reply once more, in the form that was asked for, with JSON alone."
    turns = ({"role": "assistant", "content": said}, {"role": "user", "content": told})
    return dataclasses.replace(first, messages=(*first.messages, *turns), seed=seed)

"""How many pairs came, went and why, and what those that stayed are like; a few bytes a pair.

Axes: N pairs that are kept.
"""

import array
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mlingo_jax.instruction.conversations import Made
from mlingo_jax.instruction.filters.words import count_words, words
from mlingo_jax.instruction.pairs import Pair, Rejection
from mlingo_jax.instruction.recipes import Task
from mlingo_jax.instruction.requests import Reply, Request

_FREQUENT = 5
_QUANTILES = (5, 50, 95)


class Summary:
    """Counts while the result is written."""

    def __init__(self, tasks: Sequence[Task]):
        self._parts = {task.name: task.part for task in tasks}
        self.clips: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.kept: Counter[tuple[str, str]] = Counter()
        self.written = self.repairs = self.unanswered = self.silent_clips = 0
        self.words: Counter[str] = Counter()
        self._kinds: dict[tuple[str, str], int] = {}
        self._kind = array.array("i")
        self._questions, self._answers = array.array("Q"), array.array("Q")
        self._lengths = array.array("i")
        self._blind: set[str] = set()

    def count_reply(self, request: Request, reply: Reply) -> None:
        """A reply that the result is made from; one to a question without music is shared by many clips."""
        if request.role == "blind":
            if request.key in self._blind:
                return
            self._blind.add(request.key)
        values = zip(("requests", "prompt_tokens", "reply_tokens"), (1, *reply.tokens), strict=True)
        self.asked.update({f"{request.role} {name}": value for name, value in values})

    def add_clip(self, split: str, made: Made) -> None:
        """What came of a clip before it is held against the others."""
        self.clips[split] += 1
        self.written += len(made.pairs)
        self.repairs += made.repairs
        self.unanswered += made.unanswered
        self.silent_clips += not made.pairs
        for rejection in made.rejected:
            self.written += rejection.pair is not None
            self.add_rejection(rejection)

    def add_rejection(self, rejection: Rejection) -> None:
        """A pair that is left out, or a reply that no pair could be read from."""
        (self.lost if rejection.pair is None else self.rejected)[rejection.filter] += 1

    def add_pair(self, pair: Pair, split: str) -> None:
        """A pair that is kept."""
        self.kept[self._parts[pair.task], split] += 1
        self._kind.append(self._kinds.setdefault((pair.task, pair.kind), len(self._kinds)))
        self._lengths.append(count_words(pair.answer))
        said = words(pair.answer)
        self.words.update(said)
        plain = " ".join(said)
        self._answers.append(_hash(plain))
        self._questions.append(_hash(" ".join(words(pair.question))))

    def lengths(self) -> dict[str, np.ndarray]:
        """Words of each answer, by task."""
        kinds, lengths = np.array(self._kind, np.int64), np.array(self._lengths)
        found: dict[str, list[np.ndarray]] = {}
        for (task, _), kind in self._kinds.items():
            found.setdefault(task, []).append(lengths[kinds == kind])
        return {task: np.concatenate(parts) for task, parts in found.items()}

    def counts(self) -> dict[str, Any]:
        """Clips, requests, pairs and losses, for report.json."""
        kept = {part: _of_part(self.kept, part) for part in ("short", "long")}
        return {
            "clips": {**dict(sorted(self.clips.items())), "without_pairs": self.silent_clips},
            "asked": dict(sorted(self.asked.items())),
            "pairs": {
                "written": self.written,
                "kept": self.kept.total(),
                "rejected": dict(sorted(self.rejected.items())),
                **kept,
            },
            "replies": {
                "repairs": self.repairs,
                "lost": dict(sorted(self.lost.items())),
                "unanswered": self.unanswered,
            },
        }

    def likeness(self, answers: Iterable[str]) -> dict[str, Any]:
        """Kinds of question, lengths, vocabulary, most frequent answers, for report.json.

        answers: those of the kept pairs once more, in their order. A constant answer's share is what somebody would get
        right who always gave the most frequent answer of the kind (compared by their words).
        """
        kinds, lengths = np.array(self._kind, np.int64), np.array(self._lengths, np.int64)
        said, asked = np.array(self._answers, np.uint64), np.array(self._questions, np.uint64)
        frequent = {kind: _most_frequent(said[kinds == kind]) for kind in self._kinds.values()}
        texts = _first_texts(said, answers, {h for found in frequent.values() for h, _ in found})
        found: dict[str, Any] = {}
        right = 0
        for (task, name), kind in sorted(self._kinds.items()):
            here = kinds == kind
            count, top = int(here.sum()), frequent[kind]
            right += top[0][1]
            found[f"{task}/{name}"] = {
                "pairs": count,
                "distinct_questions": len(np.unique(asked[here])),
                "distinct_answers": len(np.unique(said[here])),
                "answer_words": {f"p{q}": float(np.percentile(lengths[here], q)) for q in _QUANTILES},
                "constant_answer_right": round(top[0][1] / count, 4),
                "frequent_answers": [{"answer": texts[h], "share": round(n / count, 4)} for h, n in top],
            }
        total = self.words.total()
        return {
            "kinds": found,
            "constant_answer_right": round(right / max(len(said), 1), 4),
            "distinct_questions": len(np.unique(asked)),
            "distinct_answers": len(np.unique(said)),
            "vocabulary": {
                "words": total,
                "distinct": len(self.words),
                "most_frequent": [word for word, _ in sorted(self.words.items(), key=lambda w: (-w[1], w[0]))[:50]],
            },
        }


def _of_part(kept: Counter[tuple[str, str]], part: str) -> dict[str, int]:
    return {split: kept[part, split] for split in ("train", "eval")}


def _most_frequent(hashes: np.ndarray) -> list[tuple[int, int]]:
    """(hash, count) of the most frequent, the most frequent first."""
    values, counts = np.unique(hashes, return_counts=True)
    order = np.lexsort((values, -counts))[:_FREQUENT]
    return [(int(values[place]), int(counts[place])) for place in order]


def _first_texts(hashes: np.ndarray, answers: Iterable[str], wanted: set[int]) -> dict[int, str]:
    found: dict[int, str] = {}
    for value, answer in zip(hashes.tolist(), answers, strict=True):
        if value in wanted:
            found.setdefault(value, answer)
    return found


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")

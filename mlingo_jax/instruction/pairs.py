"""What the room passes along: what is known of a clip, and a question with its answer made from it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

Split = Literal["train", "eval"]
Use = Literal["caption", "tags", "all"]

UNSORTED = ""
"""The category of tags that come without one."""


@dataclasses.dataclass(frozen=True)
class Source:
    """What is known of one clip.

    clip: its id. audio: what a manifest calls its file. tags: by category, `UNSORTED` if they have none. facts: named
    properties of the audio (bpm, key, ...). private: texts that no answer may give away (artist, title, album).
    collection: where the id is from ("youtube", "jamendo", "fma", "" if unknown). rate: of its .npy, in Hz, if known.
    """

    clip: str
    audio: str
    caption: str = ""
    tags: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    private: tuple[str, ...] = ()
    split: Split = "train"
    collection: str = ""
    rate: int | None = None

    @property
    def is_known(self) -> bool:
        """Whether there is anything to write about."""
        return bool(self.caption or self.tags or self.facts)

    def evidence(self) -> str:
        """All that is known, as one text: what answers are held against."""
        named = [f"{name} {value}" for name, value in self.facts.items()]
        tags = [tag for category in self.tags.values() for tag in category]
        return ". ".join([self.caption, *tags, *named])


@dataclasses.dataclass(frozen=True)
class Pair:
    """A question about a clip and its answer.

    task, kind: which part of the recipe wrote it, and what it asks about. attempt: of the request it came by, from 0.
    attributes: what the model added to the tags on purpose (the captions recipe's attribute prediction).
    """

    clip: str
    task: str
    kind: str
    question: str
    answer: str
    attempt: int = 0
    attributes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Rejection:
    """A pair that is left out, or a reply without any (`pair` is None then), and why.

    filter: the check that found it. reason: in words, for people. reply: the text that no pair could be read from.
    """

    clip: str
    task: str
    filter: str
    reason: str
    pair: Pair | None = None
    reply: str = ""

    def line(self) -> dict[str, Any]:
        """As rejected.jsonl has it."""
        pair = {} if self.pair is None else {name: getattr(self.pair, name) for name in ("kind", "question", "answer")}
        reply = {"reply": self.reply} if self.reply else {}
        return {"clip": self.clip, "task": self.task, "filter": self.filter, "reason": self.reason, **pair, **reply}

"""Conversations between a human and a model, as LLaVA and MusicQA write them."""

from collections.abc import Iterator, Mapping
from typing import Any

from mlingo_jax.data.annotations import items, text
from mlingo_jax.data.placeholders import without_placeholders
from mlingo_jax.errors import UserError

_ASKING, _ANSWERING = ("human", "user"), ("gpt", "assistant")


def turns(values: Mapping[str, Any], name: str, where: str) -> Iterator[tuple[str, str]]:
    """The (question, answer) pairs of the list `name` of {"from", "value"}.

    Each stands by itself, without the earlier ones. Placeholders for the music are taken out of the questions.

    Raises UserError if human and model do not take turns, or a text is missing.
    """
    where = f"{where}: {name}"
    said = list(items(values.get(name), where))
    if len(said) % 2:
        raise UserError(f"{where}: expected turns of human and gpt, the last question has no answer")
    for (asked, question), (answered, answer) in zip(said[::2], said[1::2], strict=True):
        _require_speaker(question, _ASKING, asked)
        _require_speaker(answer, _ANSWERING, answered)
        plain = without_placeholders(text(question, "value", asked)).strip()
        yield text({"value": plain}, "value", asked), text(answer, "value", answered)


def _require_speaker(said: Mapping[str, Any], expected: tuple[str, ...], where: str) -> None:
    if said.get("from") not in expected:
        raise UserError(f'{where}: expected "{expected[0]}" in "from", found {said.get("from")!r}')

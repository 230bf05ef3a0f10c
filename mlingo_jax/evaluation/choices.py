"""Multiple choice by generated text: which option an answer names, by each benchmark's own rule and by a strict one.

N: questions. D: draws of a floor.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from mlingo_jax.evaluation.answers import Answer
from mlingo_jax.evaluation.floors import shuffles
from mlingo_jax.evaluation.statistics import Scored, mean_statistics

LETTERS = "ABCDEFGHIJ"
_LAST_WORDS = "The correct answer is:"
_RUL_VERBS = "answer is|chose|choose|select|guess is|I choose|I select|I guess"
_LETTER_ALONE = re.compile(r"\W*([A-J])(?:\W.*)?", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Pass:
    """One way a question was put: its options in order, the number of the right one, and what the system wrote."""

    options: tuple[str, ...]
    correct: int
    output: str = ""


@dataclasses.dataclass(frozen=True)
class Choice:
    """A question about a clip, put once or, with its options in other orders, several times.

    benchmark: whose rule reads the answers ("muchomusic", "rul" or "mmau"). category: for the report's rows. audio:
    what the clip's file is called, if not as the clip.
    """

    id: str
    clip: str
    question: str
    passes: tuple[Pass, ...]
    benchmark: str
    category: str = ""
    where: str = dataclasses.field(default="", compare=False)
    audio: str = ""


Rule = Callable[[str, Sequence[str]], int | None]
"""(what was written, options) -> the number of the option it names, or None."""


def muchomusic_rule(output: str, options: Sequence[str]) -> int | None:
    """MuChoMusic's rule.

    The only one of the capitals A to D that occurs anywhere in the text, or else the first option whose text occurs. A
    sentence that starts with "A" names option A.
    """
    said = output.split(_LAST_WORDS)[-1].strip()
    letters = set("ABCD").intersection(said)
    if len(letters) == 1:
        return _within("ABCD".index(letters.pop()), options)
    return _first_named(said.lower().strip(), [option.lower().strip() for option in options])


def rul_rule(output: str, options: Sequence[str]) -> int | None:
    """RUListening's rule.

    The last [[letter]]; or a letter after words of choosing; or (letter) or "option letter"; or the first option whose
    text occurs.
    """
    if found := re.findall(r"\[\[([A-E])\]\]", output):
        return _within(LETTERS.index(found[-1]), options)
    if found := re.findall(rf"(?:{_RUL_VERBS}) ([A-E])\b", output, re.IGNORECASE):
        return _within(LETTERS.index(found[-1].upper()), options)
    for number, letter in enumerate("ABCDE"):
        if any(form in output for form in (f"option {letter}", f"Option {letter}", f"({letter})")):
            return _within(number, options)
    return _first_named(output.lower(), [option.lower() for option in options])


def mmau_matches(output: str, options: Sequence[str], correct: int) -> bool:
    """MMAU's and MMAR's: all words of the right option are there, and no word that only wrong options have."""
    said, answer = _words(output), _words(options[correct])
    wrong = {word for option in options if _words(option) != answer for word in _words(option) - answer}
    return bool(said) and answer <= said and not said & wrong


def mmau_rule(output: str, options: Sequence[str]) -> int | None:
    """The option that MMAU would find in the text, were it the right one: the first, if it would be several."""
    return next((number for number in range(len(options)) if mmau_matches(output, options, number)), None)


def strict_rule(output: str, options: Sequence[str]) -> int | None:
    """Ours: a letter by itself at the start, in any brackets, or the last [[letter]], or exactly an option's text."""
    said = output.split(_LAST_WORDS)[-1].strip()
    plain = [" ".join(_listed_words(option)) for option in options]
    if (text := " ".join(_listed_words(said))) in plain:
        return plain.index(text)
    if found := re.findall(r"\[\[([A-J])\]\]", said):
        return _within(LETTERS.index(found[-1]), options)
    if (found := _LETTER_ALONE.fullmatch(said)) and (len(said) <= 2 or not said[0].isalpha() or said[1] in ").:,"):
        return _within(LETTERS.index(found[1]), options)
    return None


RULES: dict[str, Rule] = {"muchomusic": muchomusic_rule, "rul": rul_rule, "mmau": mmau_rule}


def score_choices(
    choices: Sequence[Choice], baselines: Mapping[str, Sequence[Choice]] | None = None
) -> dict[str, Scored]:
    """Statistics of the share of right answers.

    By each benchmark's rule (`choice.text`) and by the strict one (`choice.text_strict`); and of the share of answers
    that name an option at all (`choice.followed`).

    Their floors encode nothing: the same positions chosen for other questions with as many options (shuffled), the
    longest option, the first one, and a random one (exactly). Where a question was put several times, most passes
    decide.

    baselines: what was written to the same questions without music, or with another clip's, by what that is called.
    """
    baselines = baselines or {}
    dealt = shuffles([as_example(choice) for choice in choices]).tolist()
    floors = without_listening(choices)
    read, strict = _read(choices), [_picks(choice, strict_rule) for choice in choices]
    own_floors = floors | {name: _own_hits(others, _read(others)) for name, others in baselines.items()}
    strict_floors = floors | {
        name: hits(others, [_picks(choice, strict_rule) for choice in others]) for name, others in baselines.items()
    }
    followed = np.array([np.mean([pick is not None for pick in each]) for each in read])
    return {
        "choice.text": _scored(_own_hits(choices, read), [hits(choices, _deal(read, o)) for o in dealt], own_floors),
        "choice.text_strict": _scored(
            hits(choices, strict), [hits(choices, _deal(strict, o)) for o in dealt], strict_floors
        ),
        "choice.followed": _scored(followed, [followed[order] for order in dealt], {}),
    }


def _read(choices: Sequence[Choice]) -> list[list[int | None]]:
    return [_picks(choice, RULES[choice.benchmark]) for choice in choices]


def _deal(picks: Sequence[Sequence[int | None]], order: Iterable[int]) -> list[Sequence[int | None]]:
    return [picks[i] for i in order]


def _scored(own: np.ndarray, shuffled: Sequence[np.ndarray], floors: dict[str, np.ndarray]) -> Scored:
    drawn = {name: mean_statistics(values[None]) for name, values in floors.items()}
    return Scored(mean_statistics(own), mean_statistics(np.stack(shuffled)), drawn)


def without_listening(choices: Sequence[Choice]) -> dict[str, Float[np.ndarray, "N"]]:
    """How often the answer is right that takes the longest option, the first, or any."""
    longest = [[_longest(each.options) for each in choice.passes] for choice in choices]
    first = [[0 for _ in choice.passes] for choice in choices]
    chance = [np.mean([1 / len(each.options) for each in choice.passes]) for choice in choices]
    return {"longest": hits(choices, longest), "first": hits(choices, first), "chance": np.array(chance, float)}


def _longest(options: Sequence[str]) -> int:
    return max(range(len(options)), key=lambda number: len(options[number]))


def _picks(choice: Choice, rule: Rule) -> list[int | None]:
    return [rule(each.output, each.options) for each in choice.passes]


def _own_hits(choices: Sequence[Choice], picks: Sequence[Sequence[int | None]]) -> Float[np.ndarray, "N"]:
    """MMAU asks whether the right option is named, even beside another that it would take as well."""
    right = hits(choices, picks)
    for i, choice in enumerate(choices):
        if choice.benchmark == "mmau":
            right[i] = np.mean([mmau_matches(each.output, each.options, each.correct) for each in choice.passes])
    return right


def hits(choices: Sequence[Choice], picks: Sequence[Sequence[int | None]]) -> Float[np.ndarray, "N"]:
    """Whether each question's right option is picked, given the option that each pass picks (None: none)."""
    return np.array([_is_right(choice, each) for choice, each in zip(choices, picks, strict=True)], float)


def _is_right(choice: Choice, picks: Sequence[int | None]) -> bool:
    """Whether the option that most passes name is the right one; of equally many, the one named first."""
    named = [
        each.options[pick]
        for each, pick in zip(choice.passes, picks, strict=False)
        if pick is not None and pick < len(each.options)
    ]
    right = choice.passes[0].options[choice.passes[0].correct]
    return bool(named) and Counter(named).most_common(1)[0][0] == right


def as_example(choice: Choice) -> Answer:
    """For shuffles: answers are dealt among questions with as many options, about other clips."""
    forms = ",".join(str(len(each.options)) for each in choice.passes)
    return Answer(choice.clip, forms, "", "", choice.benchmark)


def _within(number: int, options: Sequence[str]) -> int | None:
    return number if number < len(options) else None


def _first_named(text: str, options: Sequence[str]) -> int | None:
    return next((number for number, option in enumerate(options) if option and option in text), None)


def _words(text: str) -> set[str]:
    return set(_listed_words(text))


def _listed_words(text: str) -> list[str]:
    return re.findall(r"\b\w+\b", text.lower())

"""Instruments, genres, voices, tempos and numbers in a text, by the list of synonyms in vocabulary.toml."""

import dataclasses
import functools
import tomllib
from collections.abc import Iterator, Mapping
from importlib import resources

from mlingo_jax.instruction.filters.words import tokens

_SMALL = (
    "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen",
    "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_NUMBERS = {word: float(value) for value, word in enumerate(_SMALL, 2)}
_NUMBERS |= {word: 10.0 * value for value, word in enumerate(_TENS, 2)}
_DECADES = {f"{word[:-1]}ies": _NUMBERS[word] for word in _TENS}
_DENIALS = frozenset((
    "no", "not", "without", "lacks", "lacking", "absence", "absent", "never", "neither", "nor", "nobody", "none",
    "isn't", "doesn't", "aren't", "don't", "wasn't", "free", "devoid",
))  # fmt: skip
# A denial reaches so many words ahead, unless one of these comes between.
_REACH = 3
_ENDS = frozenset((
    ".", ",", ";", ":", "!", "?", "but", "just", "only", "instead", "with", "except", "besides", "is", "are",
))  # fmt: skip
_NUMBER = "number"


@dataclasses.dataclass(frozen=True)
class Mention:
    """Something a text names. concept: its name in the list, or "number 120". denied: the text says there is none."""

    category: str
    concept: str
    denied: bool


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The concepts of music, by the words for them.

    forms: from what is written (words joined by blanks) to (category, concept). groups: concept to what it
    also is. categories: of each concept.

    denials: concepts that say that there is none of another ("instrumental": no vocals).
    """

    forms: Mapping[str, tuple[str, str]]
    groups: Mapping[str, frozenset[str]]
    categories: Mapping[str, str]
    denials: Mapping[str, tuple[str, str]]
    longest: int

    def mentions(self, text: str) -> set[Mention]:
        """All that the text names."""
        return set(self._mentions(tokens(text)))

    def known(self, text: str) -> set[Mention]:
        """All that follows from what the text names: a violin is a string instrument, too."""
        found = self.mentions(text)
        more = {
            Mention(self.categories[group], group, False)
            for mention in found
            if not mention.denied
            for group in self.groups.get(mention.concept, ())
        }
        return found | more

    def _mentions(self, said: list[str]) -> Iterator[Mention]:
        place = 0
        while place < len(said):
            length, category, concept = self._longest_form(said, place)
            if length:
                denied = _is_denied(said, place)
                if concept in self.denials:
                    category, concept = self.denials[concept]
                    denied = not denied
                yield Mention(category, concept, denied)
            elif (number := _number(said[place])) is not None:
                length = 1
                yield Mention(_NUMBER, f"number {number:g}", False)
            place += max(length, 1)

    def _longest_form(self, said: list[str], place: int) -> tuple[int, str, str]:
        for length in range(min(self.longest, len(said) - place), 0, -1):
            form = " ".join(said[place : place + length])
            for spelling in (form, form.removesuffix("s"), form.removesuffix("es")):
                if spelling in self.forms:
                    return length, *self.forms[spelling]
        return 0, "", ""


@functools.cache
def load_vocabulary() -> Vocabulary:
    """The project's own list."""
    text = (resources.files("mlingo_jax.instruction.filters") / "vocabulary.toml").read_text(encoding="utf-8")
    values = tomllib.loads(text)
    groups: dict[str, set[str]] = {}
    for group, members in values.pop("groups").items():
        for member in members:
            groups.setdefault(member, set()).add(group)
    denials = {name: tuple(of) for name, of in values.pop("denials").items()}
    forms = {}
    for category, concepts in values.items():
        for concept, spellings in concepts.items():
            for spelling in (concept, *spellings):
                forms[" ".join(tokens(spelling))] = (category, concept)
    closed = {member: frozenset(_upwards(member, groups)) for member in groups}
    categories = {concept: category for category, concept in forms.values()}
    return Vocabulary(forms, closed, categories, denials, max(form.count(" ") + 1 for form in forms))


def _upwards(concept: str, groups: Mapping[str, set[str]]) -> set[str]:
    """All groups that a concept belongs to, through others too."""
    found: set[str] = set()
    new = set(groups.get(concept, ()))
    while new:
        found |= new
        new = {further for group in new for further in groups.get(group, ())} - found
    return found


def _is_denied(said: list[str], place: int) -> bool:
    for word in reversed(said[max(place - _REACH, 0) : place]):
        if word in _ENDS:
            return False
        if word in _DENIALS:
            return True
    return False


def _number(word: str) -> float | None:
    """A number, whether in figures or as a word; "one" is none, since it mostly is not meant as one."""
    if word in _DECADES:
        return _DECADES[word]
    if word in _NUMBERS:
        return _NUMBERS[word]
    if not word[0].isdecimal() or not word.isascii():
        return None
    value = float(word.removesuffix("s"))
    # "1980s" and "80s" are the same years.
    return value % 100 if word.endswith("s") and 1900 <= value < 2000 else float(round(value))

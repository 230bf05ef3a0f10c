"""What is said of a piece: questions, answers and captions in plain English, drawn from templates."""

import re
from collections.abc import Iterator, Mapping

import numpy as np

from mlingo_jax.demo.music import ATTRIBUTES

# Of each attribute, the report asks the first one.
QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "instrument": (
        "What instrument is playing?",
        "Which instrument do you hear?",
        "What is this played on?",
        "Can you name the instrument?",
        "Tell me the instrument.",
    ),
    "register": (
        "In what register is the music?",
        "Is it low, middle or high?",
        "What is the register of this piece?",
        "Does it lie low or high?",
        "Tell me the register.",
    ),
    "tempo": (
        "How fast is it?",
        "What is the tempo?",
        "Is the tempo slow, medium or fast?",
        "How would you describe the speed of the music?",
        "Tell me the tempo.",
    ),
    "mode": (
        "Is it in major or minor?",
        "What is the mode of this piece?",
        "Is the key major or minor?",
        "What kind of scale do you hear?",
        "Tell me the mode.",
    ),
}
ANSWERS: Mapping[str, tuple[str, ...]] = {
    "instrument": (
        "It is {instrument}.",
        "This is played on {instrument}.",
        "You hear {instrument}.",
        "The instrument is {instrument}.",
        "I hear {instrument} playing.",
    ),
    "register": (
        "It lies in the {register} register.",
        "The register is {register}.",
        "The music stays in the {register} register.",
        "It is played in the {register} range.",
    ),
    "tempo": (
        "The tempo is {tempo}.",
        "It goes at a {tempo} tempo.",
        "It is played at a {tempo} pace.",
        "The music moves at a {tempo} speed.",
    ),
    "mode": (
        "It is in {mode}.",
        "The key is {mode}.",
        "This piece is in a {mode} key.",
        "I hear a {mode} scale.",
    ),
}
CAPTION_REQUESTS = (
    "Describe the music.",
    "Please give a caption to the music.",
    "What do you hear?",
    "Tell me about this clip.",
    "Summarise this music in a sentence.",
)
CAPTIONS = (
    "A {tempo} melody in a {mode} key, played on {instrument} in the {register} register.",
    "This is {instrument} playing a {tempo} tune in {mode}, in the {register} register.",
    "In the {register} register, {instrument} plays at a {tempo} tempo in {mode}.",
    "A {mode} melody over three chords, {tempo}, with {instrument} in the {register} range.",
    "You hear {instrument}: the tempo is {tempo}, the register is {register}, the key is {mode}.",
    "The piece is in {mode} and moves at a {tempo} pace; {instrument} plays it in the {register} register.",
    "Chords and a tune in a {mode} key, both on {instrument}, {tempo} and in the {register} range.",
    "At a {tempo} tempo, {instrument} plays a short piece in {mode} in the {register} register.",
)
CAPTION = "caption"


def ask(subject: str, rng: np.random.Generator) -> str:
    """A question about an attribute, or for a caption."""
    return str(rng.choice(CAPTION_REQUESTS if subject == CAPTION else QUESTIONS[subject]))


def tell(subject: str, truth: Mapping[str, str], rng: np.random.Generator) -> str:
    """A true answer about an attribute, or a caption; `truth` gives the value of every attribute."""
    words = {**truth, "instrument": with_article(truth["instrument"])}
    return str(rng.choice(CAPTIONS if subject == CAPTION else ANSWERS[subject])).format(**words)


def with_article(instrument: str) -> str:
    """An instrument's name with "a" or "an" before it."""
    return f"{'an' if instrument[0] in 'aeiou' else 'a'} {instrument}"


def named(attribute: str, text: str) -> str | None:
    """The value of an attribute that a text names; None if it names none, or several."""
    found = [v for v in ATTRIBUTES[attribute] if re.search(rf"\b{v}\b", text, re.IGNORECASE)]
    return found[0] if len(found) == 1 else None


def all_templates() -> Iterator[str]:
    """Every question, request, answer and caption, with some value in each place: what a tokenizer is to know."""
    for values in zip(*(np.resize(values, 8) for values in ATTRIBUTES.values()), strict=True):
        truth = dict(zip(ATTRIBUTES, values, strict=True))
        words = {**truth, "instrument": with_article(truth["instrument"])}
        for templates in (*ANSWERS.values(), CAPTIONS):
            yield from (template.format(**words) for template in templates)
    for questions in (*QUESTIONS.values(), CAPTION_REQUESTS):
        yield from questions

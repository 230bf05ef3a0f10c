"""Five hundred good pairs and five hundred bad ones of ten kinds, planted into replies, to measure the filters by.

    python -m tests.planted_pairs

prints what the filters find. The good ones say what their clips' captions say, in other words where there are some.
"""

import json
import random
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

from mlingo_jax.instruction.asking import journal_path
from mlingo_jax.instruction.conversations import Plan
from mlingo_jax.instruction.filters.vocabulary import load_vocabulary
from mlingo_jax.instruction.journal import Journal
from mlingo_jax.instruction.pairs import Source
from mlingo_jax.instruction.recipes import load_recipe
from mlingo_jax.instruction.requests import Request
from mlingo_jax.instruction.result import MANIFEST, REJECTED, write_result
from tests.instruct_runs import read_lines, record

CLIPS = 250
EACH = 50
# What is planted, and the filter that is to find it.
FILTERS = {
    "an instrument nobody plays": "invented",
    "another genre": "invented",
    "a number from nowhere": "invented",
    "a voice nobody hears": "invented",
    "words on the making": "leak",
    "the artist's name": "leak",
    "the same question again": "repeated_question",
    "another clip's answer": "near_duplicate",
    "an endless answer": "length_outlier",
    "what the question gives away": "given_away",
}
# (as captions say it, as a good answer may say it)
_INSTRUMENTS = (
    ("an acoustic guitar", "an acoustic guitar"), ("a violin", "a string instrument, the violin"),
    ("a sax", "a saxophone"), ("synth pads", "a synthesizer"), ("a fiddle", "a violin"), ("hi-hats", "hi-hat cymbals"),
    ("a grand piano", "the piano"), ("an upright bass", "a double bass"), ("a Rhodes", "an electric piano"),
    ("tin whistle", "a whistle"),
)  # fmt: skip
_GENRES = (
    ("hip-hop", "hip hop"), ("drum & bass", "drum and bass"), ("reggae", "reggae"), ("R&B", "rhythm and blues"),
    ("house music", "electronic dance music"), ("punk", "rock, and punk at that"), ("bossa nova", "Latin music"),
    ("film score", "a soundtrack"), ("country", "country music"), ("Irish folk", "Celtic music"),
)  # fmt: skip
_TEMPOS = (("up-tempo", "fast"), ("slow paced", "slow"), ("mid-tempo", "moderate"), ("at 92 bpm", "92 beats a minute"))
_VOICES = (("a woman sings", "a female voice"), ("no singer", "no vocals"), ("a male vocalist", "a man's voice"),
           ("a choir", "choral singing"), ("instrumental", "no vocals"))  # fmt: skip
_MOODS = ("wistful and tender", "bright as a holiday", "brooding", "restless and nervous", "warm, even cosy", "solemn")
_PLACES = (
    "a night drive",
    "a seaside cafe",
    "a quiet study",
    "the end of a film",
    "a wedding",
    "a gym",
    "a train ride",
)
_ADJECTIVES = ("muffled", "crisp", "hollow", "close", "grainy", "roomy", "thin", "dense", "airy", "sharp")
_NOUNS = ("attic", "chapel", "basement", "meadow", "corridor", "harbour", "courtyard", "cellar", "valley", "kitchen")
_ARTIST = "Quintus Veldhoven"


def planted() -> tuple[list[Source], dict[str, list[tuple[str, str, dict[str, str]]]]]:
    """(clips, what is planted into each clip's replies: (task, what it is, the pair)); "" is a good pair."""
    drawn = random.Random(0)
    bad = [name for name in FILTERS for _ in range(EACH)]
    drawn.shuffle(bad)
    sources, pairs = [], defaultdict(list)
    for n in range(CLIPS):
        facts = _Facts(n, drawn)
        clip = f"clip{n:05d}"
        sources.append(Source(clip, clip, facts.caption(), private=(_ARTIST,)))
        pairs[clip] += [("short", "", facts.short()), ("long", "", facts.long())]
        pairs[clip] += [facts.spoilt(name, pairs, drawn) for name in bad[2 * n : 2 * n + 2]]
        # A question that comes again comes after the first.
        pairs[clip].sort(key=lambda planted: planted[1] != "")
    return sources, pairs


class _Facts:
    """What a clip is like, as its caption says it and as its answers do."""

    def __init__(self, number: int, drawn: random.Random):
        self.number = number
        self.instrument, self.genre = drawn.choice(_INSTRUMENTS), drawn.choice(_GENRES)
        self.tempo, self.voice = drawn.choice(_TEMPOS), drawn.choice(_VOICES)
        self.mood, self.place = drawn.choice(_MOODS), drawn.choice(_PLACES)
        self.sound = (drawn.choice(_ADJECTIVES), drawn.choice(_NOUNS), drawn.choice(_ADJECTIVES), drawn.choice(_NOUNS))

    def caption(self) -> str:
        a, b, c, d = self.sound
        return (
            f"A {self.genre[0]} piece, {self.tempo[0]}, with {self.instrument[0]}; {self.voice[0]}. It is {self.mood} "
            f"and would fit {self.place}. It sounds {a}, as from a {b}, then {c}, as in a {d}."
        )

    def short(self) -> dict[str, str]:
        made = (
            ("genre", "What style of music is this?", f"It is {self.genre[1]}."),
            ("tempo", "How fast does it go?", f"Its pace: {self.tempo[1]}."),
            ("vocals", "Is there anybody who sings?", f"One hears {self.voice[1]}."),
            ("instruments", "What is being played here?", f"Mainly {self.instrument[1]}."),
            ("mood", "Which feeling does it have?", f"It feels {self.mood}."),
        )[self.number % 5]
        return dict(zip(("kind", "question", "answer"), made, strict=True))

    def long(self) -> dict[str, str]:
        a, b, c, d = self.sound
        if self.number % 2:
            answer = (
                f"What a {a} sound this is at first: a {b} might answer so. Later it is {c}, as if played in "
                f"a {d}, and all the while {self.mood}. I would take it along to {self.place}."
            )
            return {"kind": "sound", "question": "What does its sound call to mind?", "answer": answer}
        answer = (
            f"With {self.instrument[1]} at its centre this piece turns out {self.mood}, and its {a} sound could be "
            f"that of a {b} before it grows {c} as a {d}. Its home is {self.genre[1]}; imagine it at {self.place}."
        )
        return {"kind": "description", "question": "Would you portray the piece as a whole?", "answer": answer}

    def spoilt(
        self, name: str, before: Mapping[str, list[tuple[str, str, dict[str, str]]]], drawn: random.Random
    ) -> tuple[str, str, dict[str, str]]:
        """(task, name, a pair that is spoilt in the way of this name)."""
        short = {
            "an instrument nobody plays": ("instruments", "Which sounds support it?", "A bagpipe and a few timpani."),
            "another genre": ("genre", "Where would a shop file this?", "Under bluegrass, surely."),
            "a number from nowhere": (
                "tempo",
                "Could you count its beats?",
                f"Around {drawn.randint(121, 190)} a minute.",
            ),
            "a voice nobody hears": ("vocals", "What of the voices?", "There is yodeling in it."),
            "words on the making": ("mood", "What does one feel?", drawn.choice(_LEAKS)),
            "the artist's name": ("mood", "Whose feelings are these?", f"Those of {_ARTIST}, tender ones."),
            "the same question again": (self.short()["kind"], self.short()["question"], "Hard to miss, in any case."),
            "an endless answer": (
                self.short()["kind"],
                "Is there more to tell of this?",
                f"It is {self.place} {'so ' * 30}.",
            ),
            "what the question gives away": (
                "mood",
                "Does it not feel joyful and merry?",
                "It feels joyful and merry.",
            ),
        }
        if name in short:
            return "short", name, dict(zip(("kind", "question", "answer"), short[name], strict=True))
        others = [pair for pairs in before.values() for _, what, pair in pairs if pair["kind"] == "sound" and not what]
        words = drawn.choice(others[:-1] or others)["answer"].split()
        words[drawn.randrange(len(words))] = "well"
        question = "How would you sketch it for a friend?"
        return "long", name, {"kind": "sound", "question": question, "answer": " ".join(words)}


_LEAKS = (
    "The caption calls it tender.",
    "Its feeling is not mentioned.",
    "According to the description it is calm.",
    "The metadata says that it is sad.",
    "I cannot determine its mood.",
    "As an AI language model I feel nothing.",
)


def measure(folder: Path) -> dict[str, dict[str, float]]:
    """Of each kind of bad pair the share that was found, by any filter and by its own, and of this filter the share of
    what it left out that was planted as bad.
    """
    sources, pairs = planted()
    plan = Plan(load_recipe("both"), "m", "", load_vocabulary(), blind=True)
    texts = {source.caption: source.clip for source in sources}

    def reply(request: Request) -> str:
        asked = request.messages[-1]["content"]
        if request.role == "blind":
            return (
                asked.replace("Does it not feel", "It feels") if "Does it not" in asked else "It is music to dream to."
            )
        clip, task = texts[asked.partition(": ")[2]], "short" if "tempo:" in request.messages[0]["content"] else "long"
        return json.dumps({"pairs": [pair for of, _, pair in pairs[clip] if of == task]})

    record(sources, plan, folder, reply)
    write_result(lambda: sources, plan, Journal(journal_path(folder)), folder, rate=24000, advance=lambda: None)
    planted_as = {(clip, pair["question"], pair["answer"]): name for clip, of in pairs.items() for _, name, pair in of}
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for line in read_lines(folder / REJECTED):
        found[line["filter"]][planted_as[line["clip"], line["question"], line["answer"]]] += 1
    kept = Counter(planted_as[line["clip"], line["question"], line["answer"]] for line in read_lines(folder / MANIFEST))
    rows: dict[str, dict[str, float]] = {}
    for name, filter in FILTERS.items():
        caught = found[filter]
        rows[name] = {
            "recall": 1 - kept[name] / EACH,
            "by its filter": caught[name] / EACH,
            "precision of the filter": 1 - caught[""] / max(caught.total(), 1),
        }
    rows["good pairs"] = {"kept": kept[""] / (2 * CLIPS)}
    return rows


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        for name, row in measure(Path(place)).items():
            print(f"{name:32}", ", ".join(f"{what} {value:.3f}" for what, value in row.items()))

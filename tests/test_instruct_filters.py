"""The filters: each on what it is for, and all on 500 good and 500 bad pairs of ten kinds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlingo_jax.instruction.filters.checks import ClipChecks
from mlingo_jax.instruction.filters.given_away import is_given_away
from mlingo_jax.instruction.filters.leaks import find_leak, find_name
from mlingo_jax.instruction.filters.over_the_set import SetChecks, robust_deviations
from mlingo_jax.instruction.filters.vocabulary import Mention, load_vocabulary
from mlingo_jax.instruction.pairs import Pair, Source
from mlingo_jax.instruction.recipes import load_recipe
from tests.planted_pairs import FILTERS, measure

SHORT, LONG = load_recipe("both").tasks
WORDS = load_vocabulary()


def named(text: str) -> set[str]:
    return {f"{'no ' if m.denied else ''}{m.concept}" for m in WORDS.mentions(text)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Two acoustic guitars and a Hammond organ", {"acoustic guitar", "organ", "number 2"}),
        ("hi-hats, hip-hop and R&B", {"hi hat", "hip hop", "r&b"}),
        ("There are no vocals, just a piano.", {"no vocals", "piano"}),
        ("An instrumental without any drums", {"no vocals", "no drums"}),
        ("no singer, instrumental", {"no vocals"}),
        ("A woman's voice, soulful", {"female vocals"}),
        ("from the 1980s, like the eighties, 120.4 bpm", {"number 80", "number 120"}),
        ("One hears nothing odd", set()),
        ("drum & bass of 174 bpm in 4/4", {"drum and bass", "number 174", "number 4"}),
    ],
)
def test_what_a_text_names(text, expected):
    assert named(text) == expected


def test_a_member_names_its_groups_but_a_group_no_member():
    assert Mention("instrument", "strings", False) in WORDS.known("a fiddle")
    assert Mention("instrument", "percussion", False) in WORDS.known("a snare")
    assert Mention("instrument", "violin", False) not in WORDS.known("strings")
    assert Mention("instrument", "strings", False) not in WORDS.known("no violin")


def test_the_list_is_sound():
    assert {category for category, _ in WORDS.forms.values()} == {"instrument", "genre", "vocals", "tempo"}
    for member, groups in WORDS.groups.items():
        assert member in WORDS.categories
        assert groups <= set(WORDS.categories)


@given(st.text())
def test_any_text_is_supported_by_itself(text):
    assert WORDS.mentions(text) <= WORDS.known(text)
    assert not is_given_away(text, "", WORDS) or not text


SOURCE = Source(
    "a", "a", "A slow folk song: a woman sings to her guitar.", facts={"bpm": "71.8"}, private=("Ann Bell", "Sun")
)


@pytest.mark.parametrize(
    ("question", "answer", "filter"),
    [
        ("Who sings here?", "A female vocalist does.", None),
        ("Who sings here?", "A man sings.", "invented"),
        ("Who sings here?", "Nobody; there is no singing.", "invented"),
        ("How fast is it?", "It has 72 beats per minute.", None),
        ("How fast is it?", "It has 90 beats per minute.", "invented"),
        ("What does the piano do?", "It stays in the background.", "invented"),
        ("Is there a piano in it?", "Not that one could hear it.", None),
        ("Whose song is it?", "It is Ann Bell's song.", None),
        ("Whose song is it?", "It is by Ann Bell.", "leak"),
        ("Where is it bright?", "In the sun.", None),
        ("What is the mood?", "The mood isn’t mentioned.", "leak"),
        ("What does the caption say of it?", "It is slow.", "leak"),
        ("Mood?", "It is slow.", "length"),
        ("What is the mood here?", " ".join(["slow"] * 60), "length"),
    ],
)
def test_pairs_by_themselves(question, answer, filter):
    found = ClipChecks(SOURCE, WORDS).find_fault(Pair("a", "short", "mood", question, answer), SHORT)
    assert (found and found[0]) == filter


def test_what_the_model_adds_on_purpose_counts_as_known():
    pair = Pair("a", "attribute_prediction", "x", "Please give a caption to the music.", "Folk with a banjo in it.", 0)
    task = load_recipe("captions").tasks[3]
    assert ClipChecks(SOURCE, WORDS).find_fault(pair, task) == ("invented", "not in the source: banjo")
    added = Pair(*[getattr(pair, name) for name in list(Pair.__dataclass_fields__)[:6]], attributes=("banjo",))
    assert ClipChecks(SOURCE, WORDS).find_fault(added, task) is None


def test_a_question_is_asked_once_of_a_clip():
    checks = ClipChecks(SOURCE, WORDS)
    pairs = [
        Pair("a", "short", "mood", question, "It is slow.")
        for question in ("How does it make you feel?", "how does it make you feel", "How does it make others feel?")
    ]
    assert [checks.find_fault(pair, SHORT) is None for pair in pairs] == [True, False, True]


@pytest.mark.parametrize(
    "text",
    [
        "The description mentions a slow tempo.",
        "It is not specified.",
        "There is no information on that.",
        "It cannot be determined.",
        "As an AI, I do not know.",
        "Based on the tags, it is rock.",
    ],
)
def test_words_on_the_making(text):
    assert find_leak("What is it?", text)


@pytest.mark.parametrize(
    "text",
    [
        "It is described by its calm.",
        "The rhythm is provided by drums; the theme is stated by a flute.",
        "A tag-team of drums.",
        "Its text is sung softly.",
    ],
)
def test_words_that_give_nothing_away(text):
    assert find_leak("What is it?", text) is None


def test_names():
    assert find_name("Sung by the Ann Bell Band.", ["Ann Bell"], "") == "Ann Bell"
    assert find_name("Annabell.", ["Ann Bell"], "") is None
    assert find_name("A love song.", ["Love"], "a song on love") is None


def test_answers_without_the_music():
    assert is_given_away("It is rock.", "I would guess rock music.", WORDS)
    assert not is_given_away("Rock with a flute.", "I would guess rock music.", WORDS)
    assert is_given_away("It feels joyful and merry.", "It feels joyful and merry.", WORDS)
    assert not is_given_away("It feels joyful.", "It feels sad.", WORDS)


def words_of(number: int) -> str:
    drawn = np.random.default_rng(number)
    return " ".join(f"w{n}" for n in drawn.integers(0, 500, 30))


@given(st.lists(st.integers(0, 30), max_size=60))
def test_only_later_near_duplicates_go(numbers):
    checks = SetChecks([SHORT, LONG])
    for n, number in enumerate(numbers):
        checks.add(Pair(str(n), "long", "summary", "?", words_of(number)))
    repeated = {n for n, number in enumerate(numbers) if number in numbers[:n]}
    assert set(checks.faults()) == repeated


def test_short_answers_may_repeat_each_other():
    checks = SetChecks([SHORT, LONG])
    for n in range(50):
        checks.add(Pair(str(n), "short", "tempo", "?", words_of(0)))
    assert checks.faults() == {}


def test_lengths_far_from_the_usual():
    checks = SetChecks([SHORT])
    for n in range(60):
        checks.add(Pair(str(n), "short", ("tempo", "mood")[n % 2], "?", "so " * (6 + n % 5)))
    checks.add(Pair("x", "short", "tempo", "?", "so " * 40))
    checks.add(Pair("y", "short", "vocals", "?", "so " * 40))
    assert list(checks.faults()) == [60]
    assert checks.faults()[60][0] == "length_outlier"
    np.testing.assert_allclose(
        robust_deviations(np.array([1.0, 2.0, 3.0, 10.0])), (np.array([1, 2, 3, 10]) - 2.5) / 1.4826
    )


def test_filters_find_what_is_planted(tmp_path):
    """500 good and 500 bad pairs; docs/recipes.md has the figures of `python -m tests.planted_pairs`."""
    rows = measure(tmp_path)
    assert rows.pop("good pairs")["kept"] >= 0.99
    assert set(rows) == set(FILTERS)
    for name, row in rows.items():
        assert row["recall"] >= 0.9, name
        assert row["by its filter"] >= 0.8, name
        assert row["precision of the filter"] >= 0.9, name

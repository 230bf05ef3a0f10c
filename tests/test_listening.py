"""Which answers and clips are compared, and what is made of their likelihoods."""

from collections import Counter

import pytest
from hypothesis import given, strategies

from mlingo_jax.evaluation.answers import Answer
from mlingo_jax.evaluation.listening import (
    NONE,
    SILENCE,
    Pairing,
    group,
    nll_pairings,
    nll_statistics,
    retrieval_pairings,
    retrieval_statistics,
)
from mlingo_jax.evaluation.statistics import ratio


@given(
    asked=strategies.lists(strategies.tuples(strategies.integers(0, 9), strategies.sampled_from("ab")), max_size=60),
    candidates=strategies.integers(2, 5),
)
def test_every_example_counts_once_among_other_clips(asked, candidates):
    examples = [Answer(str(clip), question, f"{clip} {i % 3}") for i, (clip, question) in enumerate(asked)]
    clips = {q: {clip for clip, question in asked if question == q} for q in "ab"}
    groups = group(examples, candidates)
    counted = Counter(int(members[place]) for members, place in groups.rows())
    assert counted == {i: 1 for i, e in enumerate(examples) if len(clips[e.question]) >= candidates}
    for members in groups.members:
        assert len({examples[i].clip for i in members}) == candidates
        assert len({examples[i].question for i in members}) == 1


def test_equal_answers_go_into_different_groups():
    examples = [Answer(str(i), "What plays?", f"answer {i % 5}") for i in range(40)]
    for members in group(examples, 5).members:
        assert len({examples[i].reference for i in members}) == 5


def listener(examples: list[Answer], pairs: list[Pairing], gain: float) -> dict[Pairing, tuple[float, int]]:
    """Likelihoods that grow by `gain` where the music is that of a clip with this answer."""
    found = {}
    for pair in pairs:
        own = isinstance(pair.music, int) and examples[pair.music].reference == examples[pair.answer].reference
        # Some answers are likelier than others, whatever the music.
        found[pair] = (-10.0 - pair.answer % 7 + gain * own, 5)
    return found


@pytest.mark.parametrize("gain", [0.0, 3.0])
def test_who_listens_finds_its_own(gain):
    examples = [Answer(str(i), "What plays?", f"answer {i}") for i in range(35)]
    groups = group(examples, 5)
    likelihoods = listener(examples, retrieval_pairings(groups), gain)
    found = {
        name: ratio(one.own.sum(axis=0)) for name, one in retrieval_statistics(examples, likelihoods, groups).items()
    }
    # Without gain all clips are alike and share; answers differ, but not by the clip.
    assert found["retrieval.clip"] == pytest.approx(1.0 if gain else 0.2)
    assert found["retrieval.answer_pmi"] == pytest.approx(1.0 if gain else 0.2)
    assert found["retrieval.answer"] == pytest.approx(0.2) if not gain else found["retrieval.answer"] > 0.2


def test_nats_are_counted_over_tokens():
    examples = [Answer(str(i), "What plays?", f"answer {i}") for i in range(4)]
    pairs = nll_pairings(examples, silence=True)
    likelihoods = {p: (-2.0 if p.music == p.answer else -4.0, 2 + p.answer) for p in pairs}
    found = {name: ratio(one.own.sum(axis=0)) for name, one in nll_statistics(examples, likelihoods, True).items()}
    tokens = 2 + 3 + 4 + 5
    assert found == pytest.approx(
        {"nll.own": 8 / tokens} | dict.fromkeys(("nll.other", "nll.silence", "nll.none"), 16 / tokens)
    )
    assert {p.music for p in pairs} >= {NONE, SILENCE}

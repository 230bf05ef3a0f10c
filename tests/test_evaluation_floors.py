"""Floors and intervals: every shuffle takes each answer to another clip, and chance looks like chance."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlingo_jax.errors import UserError
from mlingo_jax.evaluation.answers import Answer
from mlingo_jax.evaluation.floors import SHUFFLES, constant_answers, shuffles, training_answers
from mlingo_jax.evaluation.intervals import Resamples, chance_probability, interval
from mlingo_jax.evaluation.report import OTHER_QUESTIONS, question_types, summarise
from mlingo_jax.evaluation.statistics import Scored, mean_statistics, ratio

ROWS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 1)), min_size=2, max_size=30)


def ask(clip: object, question: object = "?", reference: str = "r", source: object = "s") -> Answer:
    return Answer(str(clip), str(question), reference, "a", str(source))


@given(ROWS)
def test_shuffled_answers_are_about_other_clips(rows):
    examples = [ask(*row[:2], source=row[2]) for row in rows]
    if 2 * max(Counter(example.clip for example in examples).values()) > len(examples):
        with pytest.raises(UserError, match="about one clip"):
            shuffles(examples, 2)
        return
    dealt = shuffles(examples, 4)
    for order in dealt:
        assert sorted(order) == list(range(len(examples)))
        assert all(examples[i].clip != examples[j].clip for i, j in enumerate(order))


def test_shuffles_stay_within_the_question_where_they_can():
    examples = [ask(clip, question) for clip in range(10) for question in ("a", "b")]
    examples += [ask(clip, f"open {clip}") for clip in range(10)]
    for order in shuffles(examples):
        for i, j in enumerate(order):
            fixed = examples[i].question in ("a", "b")
            assert examples[j].question == examples[i].question if fixed else examples[j].question.startswith("open")


def test_shuffles_are_seeded_and_differ():
    examples = [ask(i) for i in range(50)]
    first, again, other = shuffles(examples), shuffles(examples), shuffles(examples, seed=1)
    assert first.shape == (SHUFFLES, 50)
    assert (first == again).all()
    assert (first != other).any()
    assert len({tuple(order) for order in first.tolist()}) == SHUFFLES


def test_shuffles_reach_every_other_example():
    examples = [ask(i // 2) for i in range(8)]
    reached = {(i, int(j)) for order in shuffles(examples, 400) for i, j in enumerate(order)}
    assert reached == {(i, j) for i in range(8) for j in range(8) if i // 2 != j // 2}


def test_one_answer_is_the_most_typical():
    references = ["a sad song", "a sad song with drums", "a piano", "zither"]
    examples = [ask(i, "?", text) for i, text in enumerate(references)]
    assert set(constant_answers(examples)) == {"a sad song"}
    training = [ask(9, "?", text) for text in ("a trumpet", "a trumpet", "a trumpet solo")] + [ask(9, "other", "yes")]
    assert set(constant_answers(examples, training)) == {"a trumpet"}
    alone = [ask(0, "what?", "a bell"), ask(1, "who?", "a man"), ask(2, "why?", "a bell")]
    assert set(constant_answers(alone)) == {"a bell"}


def test_training_answers_are_to_the_same_question():
    training = [ask(0, "?", "one"), ask(1, "?", "two"), ask(2, "else", "three")]
    examples = [ask(i, "?") for i in range(20)] + [ask(i, "new") for i in range(40)]
    draws = training_answers(examples, training, draws=3)
    assert all(set(draw[:20]) == {"one", "two"} for draw in draws)
    assert all(set(draw[20:]) == {"one", "two", "three"} for draw in draws)
    assert draws[0] != draws[1]
    assert draws == training_answers(examples, training, draws=3)


def test_resampled_sums_are_those_of_whole_clips():
    statistics = np.array([[1.0, 1], [2, 1], [40, 1], [800, 1]])
    sums = Resamples(["a", "a", "b", "c"], resamples=200).sums(statistics)
    counts = (sums[:, 0] // 800, sums[:, 0] % 800 // 40, sums[:, 0] % 40 / 3)
    assert {tuple(each) for each in np.transpose(counts)} <= {
        (c, b, a) for a, b, c in np.ndindex(4, 4, 4) if a + b + c == 3
    }
    assert (sums[:, 1] == counts[0] + counts[1] + 2 * counts[2]).all()


def test_the_interval_is_the_textbooks():
    """Of a mean of independent clips: 1.96 standard errors."""
    scores = np.random.default_rng(0).normal(5, 2, 400)
    resamples = Resamples([str(i) for i in range(400)], 4000)
    low, high = interval(ratio(resamples.sums(mean_statistics(scores))))
    error = scores.std() / np.sqrt(400)
    np.testing.assert_allclose([low, high], scores.mean() + 1.96 * error * np.array([-1, 1]), atol=0.1 * error)


def test_rows_of_one_clip_do_not_narrow_the_interval():
    scores = np.random.default_rng(0).normal(0, 1, 50)

    def width(repeats: int) -> float:
        rows = np.repeat(scores, repeats)
        resamples = Resamples([str(i) for i in np.repeat(np.arange(50), repeats)])
        low, high = interval(ratio(resamples.sums(mean_statistics(rows))))
        return high - low

    assert width(9) == pytest.approx(width(1))


@pytest.mark.parametrize(("gain", "listens"), [(0.5, True), (0.0, False)])
def test_the_gap_tells_listening_from_none(gain, listens):
    random = np.random.default_rng(3)
    own = mean_statistics(random.normal(gain, 1, 300))
    scored = Scored(own, mean_statistics(random.normal(0, 1, (SHUFFLES, 300))))
    entry = summarise(scored, ratio, Resamples([str(i) for i in range(300)]))
    low, high = entry["gap"]["interval"]
    assert (low > 0) == listens
    assert low < entry["gap"]["value"] < high
    assert entry["gap"]["value"] == pytest.approx(entry["value"] - entry["shuffled"]["mean"])
    assert 0 < entry["shuffled"]["deviation"] < 0.2


def test_chance_is_two_sided():
    assert chance_probability(np.array([1.0, 2, 3, 4])) == 2 / 5
    assert chance_probability(np.arange(1.0, 1000)) == 2 / 1000
    assert chance_probability(np.array([-1.0, 2, 3, 4])) == 4 / 5
    assert chance_probability(np.array([-1.0, 1])) == 1


def test_questions_asked_often_stand_for_themselves():
    examples = [ask(clip, question) for clip in range(20) for question in ("What?", f"open {clip}")]
    assert Counter(question_types(examples)) == {"What?": 20, OTHER_QUESTIONS: 20}

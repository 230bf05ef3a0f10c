"""Multiple choice by text: the benchmarks' own rules, their files, and floors that encode nothing."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlingo_jax.errors import UserError
from mlingo_jax.evaluate import main
from mlingo_jax.evaluation.choice_files import prompt, read_choices, read_questions
from mlingo_jax.evaluation.choices import (
    Choice,
    Pass,
    mmau_matches,
    mmau_rule,
    muchomusic_rule,
    rul_rule,
    score_choices,
    strict_rule,
)
from mlingo_jax.evaluation.formats import read_file
from mlingo_jax.evaluation.statistics import ratio

SHARED = Path(__file__).parents[1].parent / "shared" / "data" / "choices"
OPTIONS = ("A calm guitar", "Fast drums", "A soft piano", "Loud horns")


@pytest.mark.parametrize(
    ("output", "muchomusic", "rul", "mmau", "strict"),
    [
        ("B", 1, None, None, 1),
        ("(B)", 1, 1, None, 1),
        ("B. Fast drums", 1, 1, 1, 1),
        ("(C) fast drums", 2, 2, 1, 2),
        ("fast drums", 1, 1, 1, 1),
        ("The correct answer is: D", 3, None, None, 3),
        # The quirks: a sentence that starts with "A", a word with a capital letter beside another, a lower-case letter.
        ("An upbeat piece", 0, None, None, None),
        ("Answer: B", None, None, None, None),
        ("b", None, None, None, None),
        ("I choose c, the piano", None, 2, None, None),
        ("[[A]] or rather [[D]]", None, 3, None, 3),
        ("fast drums and loud horns", 1, 1, None, None),
        ("", None, None, None, None),
    ],
)
def test_each_rule_reads_as_its_benchmark_does(output, muchomusic, rul, mmau, strict):
    found = [rule(output, OPTIONS) for rule in (muchomusic_rule, rul_rule, mmau_rule, strict_rule)]
    assert found == [muchomusic, rul, mmau, strict]


@given(st.text(), st.lists(st.text(min_size=1), min_size=2, max_size=5, unique=True))
def test_a_rule_names_an_option_that_is_there_or_none(output, options):
    for rule in (muchomusic_rule, rul_rule, mmau_rule, strict_rule):
        assert rule(output, options) in (None, *range(len(options)))


def test_mmaus_words_are_those_of_the_right_option_alone():
    assert mmau_matches("I encode a calm guitar there", OPTIONS, 0)
    assert not mmau_matches("A calm guitar with drums", OPTIONS, 0)
    assert mmau_matches("A calm guitar, a calm guitar", ("a guitar", "a calm guitar"), 1)
    assert not mmau_matches("A calm guitar", ("a guitar", "a calm guitar"), 0)
    assert not mmau_matches("", OPTIONS, 0)


def ask(i: int, output: str, correct: int, benchmark: str = "rul") -> Choice:
    return Choice(str(i), f"clip {i}", "What plays?", (Pass(OPTIONS, correct, output),), benchmark)


def test_floors_hear_nothing():
    choices = [ask(i, f"[[{'ABCD'[i % 4]}]]", i % 4) for i in range(40)]
    scored = score_choices(choices)
    value = {name: float(ratio(one.own.sum(axis=0))) for name, one in scored.items()}
    assert value == {"choice.text": 1, "choice.text_strict": 1, "choice.followed": 1}
    floors = {name: float(ratio(drawn[0].sum(axis=0))) for name, drawn in scored["choice.text"].floors.items()}
    assert floors == {"longest": 0.25, "first": 0.25, "chance": 0.25}
    assert 0.1 < ratio(scored["choice.text"].shuffled.sum(axis=(0, 1))) < 0.4


def test_one_position_for_all_is_no_listening():
    """A system that always says B is right as often with other questions' answers as with its own."""
    scored = score_choices([ask(i, "[[B]]", 1 if i % 2 else 0) for i in range(20)])["choice.text"]
    assert ratio(scored.own.sum(axis=0)) == 0.5
    assert (ratio(scored.shuffled.sum(axis=1)) == 0.5).all()


def test_most_passes_decide():
    orders = [(OPTIONS, 1), (OPTIONS[::-1], 2), (OPTIONS, 1)]
    votes = ("[[B]]", "[[C]]", "[[A]]"), ("[[A]]", "[[D]]", "[[B]]"), ("nothing", "[[C]]", "nothing"), ("?", "?", "?")
    choices = [
        Choice(str(i), str(i), "", tuple(Pass(o, c, v) for (o, c), v in zip(orders, vote, strict=True)), "rul")
        for i, vote in enumerate(votes)
    ]
    scored = score_choices(choices)
    assert scored["choice.text"].own[:, 0].tolist() == [1, 0, 1, 0]
    assert scored["choice.followed"].own[:, 0] == pytest.approx([1, 1, 1 / 3, 0])


def mmau_rows() -> list[dict]:
    return [
        {
            "id": f"q{i}",
            "audio_id": f"./{i}.wav",
            "question": "What plays?",
            "choices": list(OPTIONS),
            "answer": OPTIONS[i % 4],
            "task": "music" if i < 8 else "speech",
            "sub-category": "Instrumentation" if i % 2 else "Genre",
            "model_output": OPTIONS[i % 4] if i < 6 else "no idea",
        }
        for i in range(12)
    ]


def test_answers_to_mmau_are_reported(tmp_path):
    (tmp_path / "answers.json").write_text(json.dumps(mmau_rows()))
    main(["--answers", str(tmp_path / "answers.json"), "--output", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["counts"]["examples"] == 8, "those about music"
    assert report["metrics"]["choice.text"]["value"] == 0.75
    assert report["metrics"]["choice.text"]["chance"]["mean"] == 0.25
    assert report["by_category"]["Genre"]["counts"]["examples"] == 4
    page = (tmp_path / "out" / "report.md").read_text()
    assert "| longest option | first option | chance |" in page
    main(["compare", str(tmp_path / "out"), str(tmp_path / "out")])


def test_answers_to_muchomusic_are_read(tmp_path):
    rows = [
        {
            "id": i,
            "prompt": prompt("What plays?", OPTIONS),
            "answers": list(OPTIONS),
            "answer_orders": [2, 0, 1, 3],
            "genre": "rock",
            "audio_path": f"{i}.wav",
            "model_output": "The correct answer is: B",
        }
        for i in range(3)
    ]
    (tmp_path / "answers.json").write_text(json.dumps(rows))
    choices = read_choices(read_file(tmp_path / "answers.json"))
    assert [choice.passes[0].correct for choice in choices] == [1, 1, 1]
    assert score_choices(choices)["choice.text"].own[:, 0].tolist() == [1, 1, 1]
    (tmp_path / "answers.json").write_text(json.dumps([{**rows[0], "answer_orders": [1, 1]}]))
    with pytest.raises(UserError, match=r"answer_orders is \[1, 1\]; expected the numbers of the 4 answers"):
        read_choices(read_file(tmp_path / "answers.json"))


def test_answers_to_rul_are_read(tmp_path):
    one = {"letter_mapping": {"A": "harp", "B": "bell"}, "model_output": "[[B]]"}
    rows = [{"question_id": str(i), "correct_answer": "bell", "passes": [one, one]} for i in range(2)]
    rows += [{"question_id": "2", "correct_answer": "harp", **one}]
    (tmp_path / "answers.json").write_text(json.dumps(rows))
    choices = read_choices(read_file(tmp_path / "answers.json"))
    assert [len(choice.passes) for choice in choices] == [2, 2, 1]
    assert score_choices(choices)["choice.text"].own[:, 0].tolist() == [1, 1, 0]


def test_muchomusics_questions_are_put_in_seeded_orders(tmp_path):
    with (tmp_path / "muchomusic.csv").open("w", newline="") as file:
        names = ["question", "dataset_identifier", "correct_answer", *(f"distractor_{k}_answer" for k in (1, 2, 3))]
        csv.writer(file).writerows([names, ["What?", "abc_2.json", "right", "w1", "w2", "w3"]])
    (choice,) = read_questions(tmp_path / "muchomusic.csv")
    assert choice.clip == "abc"
    assert [each.options[each.correct] for each in choice.passes] == ["right"] * 3
    assert len({each.options for each in choice.passes}) > 1
    assert read_questions(tmp_path / "muchomusic.csv") == [choice]
    assert read_questions(tmp_path / "muchomusic.csv", seed=1) != [choice]


def test_ones_own_questions_are_read(tmp_path):
    lines = [{"audio": "a.wav", "question": "?", "choices": ["x", "y"], "answer": answer} for answer in ("y", "(A)")]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [choice.passes[0].correct for choice in read_questions(tmp_path / "own.jsonl")] == [1, 0]
    (tmp_path / "own.jsonl").write_text(json.dumps({**lines[0], "answer": "z"}))
    with pytest.raises(UserError, match=r"own\.jsonl:1: the answer 'z' is none of the choices"):
        read_questions(tmp_path / "own.jsonl")
    (tmp_path / "own.jsonl").write_text(json.dumps({**lines[0], "task": "speech"}))
    with pytest.raises(UserError, match="no question about music in it"):
        read_questions(tmp_path / "own.jsonl")


def test_the_real_question_files():
    if not SHARED.is_dir():
        pytest.skip("the benchmarks' questions (../shared/data/choices) are not here")
    rul = read_questions(SHARED / "RUL-MuchoMusic.json")
    assert (len(rul), {len(choice.passes) for choice in rul}) == (1187, {4})
    assert {len(each.options) for choice in rul for each in choice.passes} == {4}
    mmau = read_questions(SHARED / "mmau-test-mini.json")
    assert len(mmau) == 334
    # What policies that encode nothing get by MMAU's rule: measured with its own evaluator.
    policies = {
        1.0: lambda each: each.options[each.correct],
        0.964: lambda each: f"The correct answer is {each.options[each.correct]}",
        0.006: lambda each: "ABCD"[each.correct],
        0.425: lambda each: max(each.options, key=len),
        0.302: lambda each: each.options[0],
    }
    for expected, policy in policies.items():
        answered = [
            dataclasses.replace(c, passes=tuple(dataclasses.replace(p, output=policy(p)) for p in c.passes))
            for c in mmau
        ]
        assert score_choices(answered)["choice.text"].own[:, 0].mean() == pytest.approx(expected, abs=5e-4)

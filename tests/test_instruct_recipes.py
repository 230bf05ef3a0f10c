"""Recipes as files, what the model is told by them, and what is read from its replies."""

import contextlib
import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlingo_jax.errors import UserError
from mlingo_jax.instruction.filters.checks import ClipChecks
from mlingo_jax.instruction.filters.vocabulary import load_vocabulary
from mlingo_jax.instruction.pairs import Pair, Source
from mlingo_jax.instruction.prompts import Fault, describe, judging_request, read_pairs, read_verdicts, writing_request
from mlingo_jax.instruction.recipes import BUILT_IN, load_recipe
from mlingo_jax.instruction.requests import Dialect, read_reply

SOURCE = Source("a", "a.flac", "A calm lute.", {"": ("lute", "calm"), "genre": ("folk",)}, {"bpm": "60"}, ("Ann Bell",))
SHORT = load_recipe("short").tasks[0]


@pytest.mark.parametrize("name", BUILT_IN)
def test_examples_of_the_recipes_pass_their_own_checks(name):
    recipe = load_recipe(name)
    assert recipe.summary
    for task in recipe.tasks:
        assert task.examples
        for shot in task.examples:
            source = Source("x", "x", shot.source)
            checks = ClipChecks(source, load_vocabulary())
            reply = {"pairs": [dict(pair) for pair in shot.pairs], "answers": list(shot.answers)}
            pairs = read_pairs(task, "x", json.dumps(reply | {"attributes": list(shot.attributes)}), 0)
            assert [checks.find_fault(pair, task) for pair in pairs] == [None] * len(pairs)


def test_the_papers_recipe_and_those_of_others():
    assert [task.name for task in load_recipe("both").tasks] == ["short", "long"]
    assert list(SHORT.kinds) == ["genre", "tempo", "vocals", "mood", "instruments"]
    assert [task.name for task in load_recipe("captions").tasks] == [
        "writing",
        "summary",
        "paraphrase",
        "attribute_prediction",
    ]
    assert "advise against" in load_recipe("captions").warning
    assert load_recipe("captions", ["writing"]).digest != load_recipe("captions").digest
    fixed, open_ended = load_recipe("qa").tasks
    assert (len(fixed.questions), open_ended.pairs) == (4, (1, 5))


OWN = """
summary = "mine"
include = ["short"]
[[tasks]]
name = "keys"
writes = "answers"
kind = "key"
questions = ["Which key?"]
instruction = "Tell the key."
answer_words = [1, 5]
temperature = 0
max_tokens = 20
attempts = 1
[judge]
instruction = "Be strict."
temperature = 0.0
max_tokens = 100
attempts = 1
"""


def test_a_recipe_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(OWN)
    recipe = load_recipe(str(path))
    assert [task.name for task in recipe.tasks] == ["short", "keys"]
    assert (recipe.name, recipe.judge.instruction) == ("mine", "Be strict.")
    assert recipe.blind.instruction == load_recipe("short").blind.instruction


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("kind = ", "kinds = ", "tasks[0]: kinds: expected a table of texts, found 'key'"),
        ('"answers"', '"songs"', "tasks[0]: writes: expected pairs or answers, found 'songs'"),
        ("[1, 5]", "[5, 1]", "keys: answer_words: expected 0 < least <= most, found 5 and 1"),
        ("[1, 5]", "[1]", "tasks[0]: answer_words: expected a list of 2, found [1]"),
        ("max_tokens = 20\n", "", "tasks[0]: max_tokens is missing"),
        ("attempts = 1\n[judge]", 'attempts = "1"\n[judge]', "tasks[0]: attempts: expected a int, found '1'"),
        ("summary", "sumary", "'sumary' is nothing that a recipe has; is it misspelt?"),
        ('questions = ["Which key?"]', "", "the task keys writes answers, so it needs questions"),
        ('name = "keys"', 'name = "short"', "two tasks of one name among short, short"),
        ('"mine"', "mine", "not a readable toml file"),
        ('["short"]', '["nothing.toml"]', "--recipe: expected short, long, both, captions, qa or a toml file"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_named(tmp_path, old, new, expected):
    assert old in OWN
    path = tmp_path / "mine.toml"
    path.write_text(OWN.replace(old, new, 1))
    with pytest.raises(UserError) as error:
        load_recipe(str(path))
    assert expected in str(error.value)
    assert "mine.toml" in str(error.value) or "nothing.toml" in str(error.value)


def test_what_the_model_is_shown():
    assert describe(SOURCE, "caption") == "Caption: A calm lute.\nBpm: 60"
    assert describe(SOURCE, "tags") == "Tags: lute, calm\nGenre: folk\nBpm: 60"
    assert describe(SOURCE, "all") == "Caption: A calm lute.\nTags: lute, calm\nGenre: folk\nBpm: 60"
    assert describe(dataclasses.replace(SOURCE, caption=""), "caption") == describe(SOURCE, "tags")
    request = writing_request(SHORT, SOURCE, "caption", "m", 3, None)
    roles = [message["role"] for message in request.messages]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    assert request.messages[-1]["content"] == describe(SOURCE, "caption")
    assert "Ann Bell" not in json.dumps([dict(message) for message in request.messages])
    again = writing_request(SHORT, SOURCE, "caption", "m", 3, None)
    other = writing_request(SHORT, SOURCE, "caption", "m", 4, None)
    assert request.key == again.key != other.key
    judging = judging_request(load_recipe("short").judge, SOURCE, [Pair("a", "short", "genre", "Q?", "A.")], "j", 0)
    assert "1. Question: Q?\n   Answer: A." in judging.messages[1]["content"]


def test_every_schema_is_of_openais_strict_kind():
    def check(schema):
        if schema["type"] == "object":
            assert schema["additionalProperties"] is False
            assert schema["required"] == list(schema["properties"])
            for part in schema["properties"].values():
                check(part)
        elif schema["type"] == "array":
            check(schema["items"])

    for name in BUILT_IN:
        for task in load_recipe(name).tasks:
            request = writing_request(task, SOURCE, "all", "m", 0, None)
            assert request.schema is not None
            check(request.schema)
            body = Dialect().body(request)
            assert body["response_format"]["json_schema"]["strict"] is True
            assert "response_format" not in Dialect(structured="text").body(request)


PAIR = '{"kind": "genre", "question": "What is it?", "answer": "Folk."}'


@pytest.mark.parametrize(
    "text",
    [
        f'{{"pairs": [{PAIR}]}}',
        f'```json\n{{"pairs": [{PAIR}]}}\n```',
        f'<think>Hm, {{"pairs"...</think>\n{{"pairs": [{PAIR}]}}',
    ],
)
def test_replies_that_can_be_read(text):
    assert read_pairs(SHORT, "a", text, 1) == [Pair("a", "short", "genre", "What is it?", "Folk.", 1)]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "the reply is not JSON"),
        (f'Here you are: {{"pairs": [{PAIR}]}}', "the reply is not JSON"),
        ("[1]", "the reply is JSON, but not an object"),
        ('{"pair": []}', 'the reply has no list "pairs"'),
        ('{"pairs": []}', 'expected 1 to 5 items in "pairs", found 0'),
        ('{"pairs": ["x"]}', 'pair 1: expected an object, found "x"'),
        (f'{{"pairs": [{PAIR.replace("genre", "colour")}]}}', "pair 1: expected one of genre, tempo, vocals"),
        (f'{{"pairs": [{PAIR.replace(chr(34) + "Folk." + chr(34), "3")}]}}', 'pair 1: expected texts in "question"'),
    ],
)
def test_faults_of_replies_are_named(text, fault):
    with pytest.raises(Fault) as error:
        read_pairs(SHORT, "a", text, 0)
    assert fault in str(error.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["pairs", "kind", "question", "verdicts", "x"]), inner)
    ),
    max_leaves=8,
)


@given(st.one_of(st.text(), JSON.map(json.dumps)))
def test_whatever_a_model_says_is_pairs_or_a_fault(text):
    for read in (lambda: read_pairs(SHORT, "a", text, 0), lambda: read_verdicts(text, 2)):
        with contextlib.suppress(Fault):
            assert len(read()) >= 1


def test_verdicts():
    text = '{"verdicts": [{"pair": 2, "faithful": "NO", "reason": "no lute"}, {"pair": 1, "faithful": "yes"}]}'
    assert read_verdicts(text, 2) == [(True, ""), (False, "no lute")]
    for wrong in (
        '{"verdicts": [{"pair": 1, "faithful": "yes"}]}',
        '{"verdicts": [{"pair": 1, "faithful": "yes"}, {"pair": 1, "faithful": "no"}]}',
        '{"verdicts": [{"pair": 1, "faithful": "perhaps"}, {"pair": 2, "faithful": "no"}]}',
    ):
        with pytest.raises(Fault):
            read_verdicts(wrong, 2)


@given(JSON)
def test_whatever_a_server_sends_is_a_reply_or_none(body):
    with contextlib.suppress(ValueError):
        assert isinstance(read_reply(body, {}).text, str)
    full = {"choices": [{"message": {"content": "Hm."}, "finish_reason": "stop"}], "usage": body}
    assert read_reply(full, {"messages": [{"content": "12345678"}]}).text == "Hm."


@pytest.mark.parametrize(
    ("choice", "problem"),
    [
        ({"message": {"content": "A"}, "finish_reason": "length"}, "cut off"),
        ({"message": {"content": None, "refusal": "No."}}, "refused"),
        ({"message": {"content": "A"}, "finish_reason": "content_filter"}, "refused"),
        ({"message": {"content": "  "}}, "empty"),
    ],
)
def test_replies_that_are_no_use(choice, problem):
    assert read_reply({"choices": [choice]}, {"messages": []}).problem == problem

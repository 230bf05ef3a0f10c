"""Manifests of anyone's own music: what is read, what is refused, and which clips are held out."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlingo_jax.data.examples import Example
from mlingo_jax.data.manifest import read_manifest, split_examples
from mlingo_jax.errors import UserError


def line(**changes) -> str:
    values = {"audio": "a.wav", "question": "What plays?", "answer": "A bell.", **changes}
    return json.dumps({name: value for name, value in values.items() if value is not None})


def write_manifest(folder: Path, *lines: str | bytes) -> Path:
    (folder / "a.wav").touch()
    path = folder / "data.jsonl"
    path.write_bytes(b"\n".join(text if isinstance(text, bytes) else text.encode() for text in lines))
    return path


def test_a_manifest_is_read(tmp_path):
    path = write_manifest(
        tmp_path, b"\xef\xbb\xbf" + line().encode(), "", line(split="eval", year=1999, question="") + "\r"
    )
    first, second = read_manifest(path)
    assert first == Example("a.wav", tmp_path / "a.wav", "What plays?", "A bell.", None, f"{path}:1")
    assert (second.question, second.split, second.where) == ("", "eval", f"{path}:3")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{'audio': 1}", "not JSON"),
        (line()[:-5], "not JSON"),
        ("[" * 100_000, "not JSON"),
        (line(question="\ud800"), 'half a surrogate pair .* in "question"'),
        ("[1, 2]", r"expected a JSON object, found \[1, 2\]"),
        (line(answer=None), "the field answer is missing; found audio, question"),
        ("{}", "the field audio is missing; found none"),
        (line(question=5), 'expected a text in "question", found 5'),
        (line(answer=" "), 'expected a text in "answer", found " "'),
        (line(audio=""), 'expected a text in "audio", found ""'),
        (line(split="test"), 'expected "train" or "eval" in "split", found \'test\''),
        (line().encode() + b"\xff", "not UTF-8"),
        (line(audio="b.wav"), r"there is no audio file .*b\.wav; missing in all: 1 of 2 clips"),
    ],
)
def test_a_bad_line_is_named(tmp_path, bad, message):
    path = write_manifest(tmp_path, line(), "", bad, line())
    with pytest.raises(UserError, match=message) as error:
        read_manifest(path)
    assert str(error.value).startswith(f"{path}:3: ")
    assert "\n" not in str(error.value)


def test_a_clip_belongs_to_one_split(tmp_path):
    path = write_manifest(tmp_path, line(split="train"), line(), line(split="eval"))
    with pytest.raises(UserError, match=r"data\.jsonl:3: 'a.wav' is in the split 'eval' here and in 'train' at .*:1"):
        read_manifest(path)


def test_manifests_without_examples_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: No such file"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="the file is empty"):
        read_manifest(write_manifest(tmp_path, "", " "))
    (tmp_path / "data.csv").write_text("audio,question,answer\n")
    with pytest.raises(UserError, match="no examples in it"):
        read_manifest(tmp_path / "data.csv")


def test_conversations_and_tables_are_manifests_too(tmp_path):
    (tmp_path / "a.wav").touch()
    said = [{"from": "human", "value": "<audio>\nWhat plays?"}, {"from": "gpt", "value": "A bell."}]
    (tmp_path / "data.json").write_text(json.dumps([{"audio": "a.wav", "conversations": said, "split": "eval"}]))
    (tmp_path / "data.csv").write_text("audio,question,answer,split\na.wav,What plays?,A bell.,eval\n")
    for name, where in (("data.json", ": item 0"), ("data.csv", ":2")):
        path = tmp_path / name
        assert read_manifest(path) == [
            Example("a.wav", tmp_path / "a.wav", "What plays?", "A bell.", "eval", f"{path}{where}")
        ]


def test_heard_clips_need_no_audio(tmp_path):
    path = write_manifest(tmp_path, line(audio="gone.wav"), line())
    assert len(read_manifest(path, encoded={"gone.wav"})) == 2


def outcome(path: Path) -> list[Example] | UserError:
    try:
        return read_manifest(path)
    except UserError as error:
        return error


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.binary(max_size=30) | st.text(max_size=30).map(str.encode), max_size=5))
def test_any_bytes_give_examples_or_one_line(tmp_path, texts):
    path = write_manifest(tmp_path, *texts)
    read = outcome(path)
    assert read
    if isinstance(read, UserError):
        assert str(read).startswith(str(path))
        assert len(str(read).splitlines()) == 1


@given(
    questions=st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=30),
    splits=st.lists(st.sampled_from(["train", "eval", None]), min_size=10, max_size=10),
    fraction=st.floats(0, 1),
)
def test_a_clips_questions_stay_together(questions, splits, fraction):
    """A clip's split may be given with some of its questions only."""
    examples = [Example(str(clip), Path(), "Q", "A", splits[clip] if says else None, "") for clip, says in questions]
    train, held_out = split_examples(examples, fraction)
    assert len(train) + len(held_out) == len(examples)
    assert not {e.clip for e in train} & {e.clip for e in held_out}
    assert all(e.split != "eval" for e in train)
    assert all(e.split != "train" for e in held_out)


def test_about_the_fraction_is_held_out_whatever_else_is_there():
    examples = [Example(f"clip {i}", Path(), "Q", "A", None, "data:1") for i in range(2000)]
    _, held_out = split_examples(examples, 0.1)
    assert 150 < len(held_out) < 250
    assert split_examples(examples[::2], 0.1)[1] == [e for e in held_out if e in examples[::2]]
    assert not split_examples(examples, 0.0)[1]
    assert not split_examples(examples, 1.0)[0]

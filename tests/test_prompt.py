"""Rows of token ids: the reference implementation's ids, compactness, cutting, batches, settings."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlingo_jax.data.prompt import STAGE_1, Prompt, PromptSettings, collate, load_tokenizer, read_context
from mlingo_jax.errors import UserError
from tests.tiny import tiny_tokenizer

TEXTS = st.text(max_size=40)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(folder)
    return load_tokenizer(folder)


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("model", ["pre_ln", "post_ln"])
def test_rows_have_the_original_ids(golden: Path, model: str):
    expected = json.loads((golden / model / "expected.json").read_text())
    tokenizer = load_tokenizer(golden / model / "llm")
    prompt = Prompt(tokenizer, PromptSettings())
    for example in expected["examples"]:
        ids = example["token_ids"]
        music = expected[example["clip"]]["music_tokens"]
        row = prompt.row(example["question"], example["answer"], music)
        assert row.tokens.tolist() == ids["bos"] + ids["before"] + [0] * music + ids["after"] + ids["answer"]
        assert row.music_index[row.music_index >= 0].tolist() == list(range(music))
        assert row.loss_weights.sum() == len(ids["answer"])
        assert not row.truncated
    pretraining = Prompt(tokenizer, STAGE_1)
    for name, cut in (("pretrain_short", False), ("pretrain_truncated", True)):
        row = pretraining.row("", expected[name]["caption"], 3)
        assert row.tokens.tolist() == [1, 0, 0, 0, *expected[name]["token_ids"]]
        assert row.truncated == cut


def test_a_row_is_its_pieces_in_order(tokenizer):
    """The hermetic twin of the golden test."""
    row = Prompt(tokenizer, PromptSettings()).row("What plays?", "A bell.", 2)
    before = [tokenizer.bos_token_id, *encode(tokenizer, "###Human: <Audio>")]
    after, answer = encode(tokenizer, "</Audio> What plays? ###Assistant: "), encode(tokenizer, "A bell.###")
    assert row.tokens.tolist() == [*before, 0, 0, *after, *answer]
    assert row.music_index.tolist() == [-1] * len(before) + [0, 1] + [-1] * len(after + answer)
    assert row.loss_weights.tolist() == [0] * (len(before) + 2 + len(after)) + [1] * len(answer)


def test_an_inference_row_is_the_training_row_without_its_answer(tokenizer):
    prompt = Prompt(tokenizer, PromptSettings())
    training, inference = prompt.row("What plays?", "A bell.", 2), prompt.row("What plays?", None, 2)
    size = len(inference.tokens)
    assert training.tokens[:size].tolist() == inference.tokens.tolist()
    assert training.loss_weights[:size].sum() == inference.loss_weights.sum() == 0
    assert training.loss_weights[size:].all()


def test_stage_1_has_no_prompt_and_no_question(tokenizer):
    row = Prompt(tokenizer, STAGE_1).row("unused", "A bell.", 1)
    assert row.tokens.tolist() == [tokenizer.bos_token_id, 0, *encode(tokenizer, "A bell.\n")]


def test_without_a_bos_token_nothing_is_predicted_from_nothing(tmp_path):
    tiny_tokenizer(tmp_path, bos=False)
    tokenizer = load_tokenizer(tmp_path)
    row = Prompt(tokenizer, PromptSettings()).row("What plays?", "A bell.", 1)
    assert row.tokens[0] == encode(tokenizer, "###Human: <Audio>")[0]
    bare = Prompt(tokenizer, STAGE_1).row("", "A bell.", 0)
    assert bare.loss_weights.tolist() == [0] + [1] * (len(bare.tokens) - 1)


def test_long_answers_are_cut_from_the_right(tokenizer):
    ids = encode(tokenizer, "A slow bell plays.###")
    row = Prompt(tokenizer, PromptSettings(max_answer_tokens=len(ids))).row("Q", "A slow bell plays.", 1)
    assert not row.truncated
    row = Prompt(tokenizer, PromptSettings(max_answer_tokens=len(ids) - 1)).row("Q", "A slow bell plays.", 1)
    assert row.truncated
    assert row.tokens[row.loss_weights > 0].tolist() == ids[:-1]


@settings(max_examples=50)
@given(
    examples=st.lists(st.tuples(TEXTS, TEXTS, st.integers(0, 5)), max_size=4),
    limit=st.integers(1, 30),
    spare=st.integers(0, 3),
    stage_1=st.booleans(),
)
def test_rows_and_batches(tokenizer, examples, limit, spare, stage_1):
    template = "" if stage_1 else "Human: {} Answer: "
    prompt = Prompt(tokenizer, PromptSettings(template=template, max_answer_tokens=limit))
    rows = [prompt.row(*example) for example in examples]
    lengths, cut = prompt.lengths([q for q, _, _ in examples], [a for _, a, _ in examples])
    assert (lengths + [music for *_, music in examples]).tolist() == [len(row.tokens) for row in rows]
    assert cut.tolist() == [row.truncated for row in rows]
    length = max((len(row.tokens) for row in rows), default=0) + spare
    batch = collate(rows, length, len(rows) + spare)
    assert {name: values.shape for name, values in batch.items()} == dict.fromkeys(batch, (len(rows) + spare, length))
    for b, (row, (_, _, music)) in enumerate(zip(rows, examples, strict=True)):
        size = len(row.tokens)
        assert batch["positions"][b, :size].tolist() == list(range(size))
        assert (batch["segments"][b] == (np.arange(length) < size)).all()
        assert batch["music_index"][b].max(initial=-1) == music - 1
        assert not batch["tokens"][b][(batch["music_index"][b] >= 0) | (batch["segments"][b] == 0)].any()
        assert batch["loss_weights"][b].sum() <= limit
    assert not batch["segments"][len(rows) :].any()
    assert not batch["loss_weights"][batch["segments"] == 0].any()


def test_collate_never_cuts(tokenizer):
    row = Prompt(tokenizer, PromptSettings()).row("What plays?", "A bell.", 1)
    with pytest.raises(ValueError, match="do not fit"):
        collate([row], len(row.tokens) - 1, 1)
    with pytest.raises(ValueError, match="do not fit"):
        collate([row, row], len(row.tokens), 1)


@given(stop=st.lists(st.text(min_size=1)), end=st.text(min_size=1), limit=st.integers(1, 500), before=st.text())
def test_settings_survive_json(stop, end, limit, before):
    chosen = PromptSettings(before.replace("{", "") + "{}", end, limit, (*stop, end))
    assert PromptSettings.from_json(json.loads(json.dumps(chosen.to_json()))) == chosen


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"template": "no place"}, "exactly one"),
        ({"template": "{} and {}"}, "exactly one"),
        ({"max_answer_tokens": 0}, "at least 1"),
        ({"end_symbol": "\n"}, "must occur in the end symbol"),
        ({"stop": ("###", "")}, "none may be empty"),
    ],
)
def test_settings_that_cannot_work_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        PromptSettings(**values)


def test_settings_of_another_version_are_refused():
    values = PromptSettings().to_json()
    with pytest.raises(UserError, match="colour"):
        PromptSettings.from_json({**values, "colour": "red"})
    with pytest.raises(UserError, match="expected the fields"):
        PromptSettings.from_json({"template": ""})


@pytest.mark.parametrize(
    ("values", "context"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"max_sequence_length": 2048}, 2048),
        ({"max_position_embeddings": 0, "rope_scaling": None}, None),
        # Vicuna 1.5 16k's, in transformers' spellings of version 4 and 5, and LLaMA 3.2's.
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "linear", "factor": 4.0}}, 16384),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 32.0}}, 131072),
    ],
)
def test_how_long_a_text_a_language_model_was_made_for(tmp_path, values, context):
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_context(tmp_path) == context


def test_a_folder_without_a_usable_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer \(tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{ cut off")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_tokenizer(tmp_path)

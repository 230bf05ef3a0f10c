"""The reference implementation's numbers: what PyTorch MusiLingo computes with two small models must come out here as
well.

Relative errors are taken against the largest magnitude of the expected array, in float32.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mlingo_jax
from mlingo_jax.data.prompt import STAGE_1, PromptSettings, collate
from mlingo_jax.inference.generate import Options
from mlingo_jax.models.musilingo import answer_loss
from mlingo_jax.settings import OptimConfig
from mlingo_jax.training.optim import adamw

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["pre_ln", "post_ln"])
def folder(request, golden) -> Path:
    return golden / request.param


@pytest.fixture(scope="module")
def expected(folder) -> dict:
    return json.loads((folder / "expected.json").read_text())


@pytest.fixture(scope="module")
def arrays(folder) -> dict[str, np.ndarray]:
    return dict(np.load(folder / "expected.npz"))


@pytest.fixture(scope="module")
def model(folder) -> mlingo_jax.MusiLingo:
    return load(folder, PromptSettings(stop=()))


def load(folder: Path, prompt: PromptSettings) -> mlingo_jax.MusiLingo:
    return mlingo_jax.load(
        mert=folder / "mert", llm=folder / "llm", adapter=folder / "adapter.pth", dtype="float32", prompt=prompt
    )


def relative_error(found, wanted) -> float:
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def clip(folder: Path, name: str) -> Path:
    return folder / "audio" / f"{name}.wav"


CLIPS = ["violin_10s", "bell_4s", "guitar_13s5"]


def test_clips_are_heard_as_the_original_hears_them(folder, model, expected, arrays):
    features = model.encode([clip(folder, name) for name in CLIPS])
    adapter = nnx.merge(model.adapter_graph, nnx.State(model.adapter))
    for name, feature in zip(CLIPS, features, strict=True):
        assert len(feature) == expected[name]["music_tokens"]
        assert relative_error(feature, arrays[f"{name}/layer_mean_pooled"]) < TOLERANCE
        assert relative_error(adapter.tokens(jnp.asarray(feature)[None])[0], arrays[f"{name}/music_tokens"]) < TOLERANCE


@pytest.mark.parametrize("number", range(3))
def test_answers_are_scored_as_the_original_scores_them(folder, model, expected, number):
    example = expected["examples"][number]
    scores = model.score([clip(folder, example["clip"])], [example["question"]], [example["answer"]])[0]
    assert relative_error(scores, example["answer_log_probs"]) < TOLERANCE
    assert -scores.mean() == pytest.approx(example["loss"], rel=TOLERANCE)


def test_prompts_have_the_original_token_ids(model, expected):
    for example in expected["examples"]:
        row = model.prompt.row(example["question"], example["answer"], 3)
        ids = example["token_ids"]
        assert row.tokens.tolist() == ids["bos"] + ids["before"] + [0, 0, 0] + ids["after"] + ids["answer"]


def test_greedy_tokens_are_the_original_ones(folder, model, expected):
    examples = expected["examples"]
    answers = model.generate(
        [clip(folder, e["clip"]) for e in examples], [e["question"] for e in examples], Options(16)
    )
    assert [list(answer.tokens) for answer in answers] == [e["greedy_16"] for e in examples]


def test_a_padded_batch_gives_the_rows_alone(folder, model, expected):
    padded = expected["original_padded_batch"]
    rows = padded["rows"]
    scores = model.score(
        [clip(folder, r["clip"]) for r in rows], [r["question"] for r in rows], [r["answer"] for r in rows]
    )
    for score, alone in zip(scores, padded["rows_alone"], strict=True):
        assert len(score) == alone["answer_tokens"]
        assert -score.mean() == pytest.approx(alone["loss"], rel=TOLERANCE)
    assert -np.concatenate(scores).mean() == pytest.approx(padded["token_weighted_mean_of_rows_alone"], rel=TOLERANCE)


@pytest.mark.parametrize("name", ["pretrain_truncated", "pretrain_short"])
def test_stage_1_has_no_prompt(folder, expected, name):
    example = expected[name]
    model = load(folder, STAGE_1)
    row = model.prompt.row("", example["caption"], 3)
    assert row.tokens.tolist() == [1, 0, 0, 0, *example["token_ids"]]
    scores = model.score([clip(folder, example["clip"])], "", [example["caption"]])[0]
    assert -scores.mean() == pytest.approx(example["loss"], rel=TOLERANCE)


def example_loss(model, folder, example):
    """The loss as a function of the adapter's parameters."""
    features = model.encode([clip(folder, example["clip"])])[0]
    row = model.prompt.row(example["question"], example["answer"], len(features))
    batch = jax.tree.map(jnp.asarray, collate([row], 64, 1))
    llm = nnx.merge(model.llm.graphdef, nnx.State(model.llm.params))

    def loss(adapter):
        merged = nnx.merge(model.adapter_graph, nnx.State(adapter))
        total, weight = answer_loss(llm, merged, batch, jnp.asarray(features)[None])
        return total / weight

    return loss


@pytest.mark.parametrize("number", range(3))
def test_gradients_are_the_original_ones(folder, model, expected, arrays, number):
    gradient = jax.grad(example_loss(model, folder, expected["examples"][number]))(model.adapter)
    assert relative_error(gradient["projection"]["kernel"].T, arrays[f"example{number}/grad_weight"]) < TOLERANCE
    assert relative_error(gradient["projection"]["bias"], arrays[f"example{number}/grad_bias"]) < TOLERANCE


def test_three_adamw_steps(folder, model, expected, arrays):
    steps = expected["three_adamw_steps"]
    loss = jax.jit(jax.value_and_grad(example_loss(model, folder, expected["examples"][0])))
    optimiser = adamw(OptimConfig(weight_decay=0.05))
    adapter, losses = model.adapter, []
    state = optimiser.init(adapter)
    for _ in range(3):
        value, gradient = loss(adapter)
        changes, state = optimiser.update(gradient, state, adapter)
        adapter = jax.tree.map(lambda p, change: p + steps["lr"] * change, adapter, changes)
        losses.append(float(value))
    assert losses == pytest.approx(steps["losses"], rel=TOLERANCE)
    assert relative_error(adapter["projection"]["kernel"].T, arrays["three_adamw_steps/weight"]) < TOLERANCE
    assert relative_error(adapter["projection"]["bias"], arrays["three_adamw_steps/bias"]) < TOLERANCE

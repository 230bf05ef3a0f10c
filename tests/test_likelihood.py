"""Likelihoods of many answers at once: each is that of the answer by itself."""

import numpy as np
import pytest

import mlingo_jax
from mlingo_jax.data.prompt import STAGE_1, PromptSettings
from mlingo_jax.inference.likelihood import Asked, answer_log_probs, tokens_read
from mlingo_jax.models.musilingo import Networks

WIDTH = 24
ANSWERS = ("A bell.", "A slow bell plays in a low register, and then a drum.", "No.", "The tempo is fast.")


@pytest.fixture(scope="module")
def model(towers) -> mlingo_jax.MusiLingo:
    return mlingo_jax.load(mert=towers[0], llm=towers[1], dtype="float32", frames_per_token=20)


def asked(answers: int, prompts: int = 5) -> list[Asked]:
    """Questions about clips of 0 to 8 music tokens."""
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(2 * k, WIDTH)).astype(np.float32) for k in range(prompts)]
    questions = ["What instrument plays?", "Describe the tempo of the music."]
    return [Asked(f, questions[k % 2], ANSWERS[: 1 + (answers - 1 + k) % 4]) for k, f in enumerate(features)]


def score(model: mlingo_jax.MusiLingo, some: list[Asked], tokens: int = 8192) -> list[list[np.ndarray]]:
    networks = Networks(model.llm.graphdef, model.adapter_graph)
    params = {"llm": model.llm.params}, {"adapter": model.adapter}
    return answer_log_probs(networks, params, model.prompt, some, tokens=tokens)


def alone(model: mlingo_jax.MusiLingo, some: list[Asked]) -> list[list[np.ndarray]]:
    """Each answer in a call by itself."""
    return [[score(model, [Asked(s.features, s.question, (a,))])[0][0] for a in s.answers] for s in some]


@pytest.fixture(scope="module")
def each_alone(model) -> list[list[np.ndarray]]:
    return alone(model, asked(4))


@pytest.mark.parametrize("tokens", [256, 8192])
def test_answers_are_scored_as_each_alone(model, each_alone, tokens):
    some = asked(4)
    for one, found, expected in zip(some, score(model, some, tokens=tokens), each_alone, strict=True):
        for answer, scores, by_itself in zip(one.answers, found, expected, strict=True):
            assert len(scores) == len(model.prompt.answer_ids(answer)[0])
            np.testing.assert_allclose(scores, by_itself, rtol=1e-5, atol=1e-5)


def test_they_are_what_the_interface_scores(model):
    clips = [(np.random.default_rng(i).normal(0, 0.1, 9000 + 1000 * i).astype(np.float32), 24000) for i in range(3)]
    expected = model.score(clips, "What plays?", list(ANSWERS[:3]))
    some = [Asked(f, "What plays?", (a,)) for f, a in zip(model.encode(clips), ANSWERS, strict=False)]
    for found, alone in zip(score(model, some), expected, strict=True):
        np.testing.assert_allclose(found[0], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [STAGE_1, PromptSettings(max_answer_tokens=3)])
def test_prompts_of_any_kind_are_scored(towers, settings):
    model = mlingo_jax.load(mert=towers[0], llm=towers[1], dtype="float32", frames_per_token=20, prompt=settings)
    some = asked(4, prompts=2)
    for found, expected in zip(score(model, some), alone(model, some), strict=True):
        for scores, by_itself in zip(found, expected, strict=True):
            np.testing.assert_allclose(scores, by_itself, rtol=1e-5, atol=1e-5)


def test_a_prompt_of_several_answers_is_read_once(model):
    one = asked(4)[4]
    texts = model.prompt.rows([(one.question, answer, 8) for answer in one.answers])
    prompt = len(model.prompt.row(one.question, None, 8).tokens)
    read, whole = tokens_read(model.prompt, [(one.question, one.answers, 8)])
    assert whole == sum(len(row.tokens) for row in texts)
    assert read == whole - (len(one.answers) - 1) * prompt

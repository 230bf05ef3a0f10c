"""The Python interface on tiny models: the same numbers alone and in a batch, streaming, sampling, refusals."""

import dataclasses
import doctest
import json
import os
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
import soundfile
from safetensors.numpy import save_file

import mlingo_jax
from mlingo_jax import api
from mlingo_jax.data.prompt import Question
from mlingo_jax.errors import UserError
from mlingo_jax.features.encode import AudioEncoder
from mlingo_jax.inference.generate import Options
from mlingo_jax.settings import MeshConfig
from mlingo_jax.sources import tower_of
from mlingo_jax.training.sharding import make_mesh
from tests.tiny import tiny_llama

RATE = 24000
QUESTIONS = [
    "What plays?",
    "Is it fast or slow, and in which key?",
    "Describe the music.",
    "Who?",
    "What is the tempo of this piece?",
    "Why does it sound so sad?",
    "Name one instrument that you encode in it.",
]


@pytest.fixture(scope="module")
def model(towers) -> mlingo_jax.MusiLingo:
    return mlingo_jax.load(mert=towers[0], llm=towers[1], dtype="float32", frames_per_token=20)


@pytest.fixture(scope="module")
def clips() -> list[tuple[np.ndarray, int]]:
    """Seven clips of seven lengths, from 0.3 to 2.4 seconds."""
    rng = np.random.default_rng(0)
    return [(rng.normal(0, 0.1, int(RATE * seconds)).astype(np.float32), RATE) for seconds in np.linspace(0.3, 2.4, 7)]


def test_seven_clips_are_heard_as_each_alone(model, clips):
    together = model.encode(clips)
    for clip, features in zip(clips, together, strict=True):
        alone = model.encode([clip])[0]
        assert features.dtype == np.float32
        assert features.shape == alone.shape == (-(-model.encoder.config.frames(len(clip[0])) // 20), 24)
        np.testing.assert_allclose(features, alone, rtol=1e-5, atol=1e-5)


def test_seven_answers_are_scored_as_each_alone(model, clips):
    answers = [f"It is {question}" for question in QUESTIONS]
    together = model.score(clips, QUESTIONS, answers)
    for clip, question, answer, scores in zip(clips, QUESTIONS, answers, together, strict=True):
        ids, _ = model.prompt.answer_ids(answer)
        assert scores.shape == (len(ids),)
        assert (scores < 0).all()
        np.testing.assert_allclose(scores, model.score([clip], [question], [answer])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [Options(12), Options(12, temperature=0.8, top_p=0.9), Options(6, num_beams=3)])
def test_seven_questions_are_answered_as_each_alone(model, clips, options):
    together = model.generate(clips, QUESTIONS, options, seed=3)
    alone = [model.generate([c], [q], options, seed=3)[0] for c, q in zip(clips, QUESTIONS, strict=True)]
    assert together == alone
    assert len({answer.tokens for answer in together}) > 1


def test_draws_differ_by_seed_clip_and_question(model, clips):
    options = Options(8, temperature=1.0)
    first = model.generate([clips[0]] * 2, ["What?", "What?"], options)
    assert first[0] == first[1]
    assert model.generate([clips[0]], "What?", options, seed=1)[0] != first[0]
    assert model.generate([clips[1]], "What?", options)[0] != first[0]


def test_answers_past_what_the_language_model_was_made_for_are_told(towers, clips, tmp_path):
    """But they come, as they do with transformers."""
    model = mlingo_jax.load(mert=towers[0], llm=tiny_llama(tmp_path, max_position_embeddings=90), dtype="float32")
    prompt = len(model.prompt.row("What?", None, len(model.encode(clips[:1])[0])).tokens)
    fits = model.answer(clips[:1], "What?", max_new_tokens=90 - prompt)
    with pytest.warns(UserWarning, match="^rows of up to 128 tokens.* longer than the 90 that"):
        longer = model.answer(clips[:1], "What?", max_new_tokens=91 - prompt)
    assert longer[0].startswith(fits[0])
    with pytest.warns(UserWarning, match="longer than the 90 that"):
        model.score(clips[:1], "What?", ["A bell. " * 20])


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_stream_gives_the_answer_in_pieces(model, clips, temperature):
    pieces = list(model.stream(clips[4], QUESTIONS[4], max_new_tokens=20, temperature=temperature))
    answer = model.answer(clips[4:5], QUESTIONS[4], max_new_tokens=20, temperature=temperature)
    assert "".join(pieces) == answer[0]
    assert len(pieces) > 1


def test_one_question_is_asked_about_every_clip(model, clips):
    assert model.answer(clips[:2], "What?", max_new_tokens=4) == model.answer(
        clips[:2], ["What?"] * 2, max_new_tokens=4
    )


def test_a_long_clip_is_heard_in_windows(towers):
    model = mlingo_jax.load(mert=towers[0], llm=towers[1], dtype="float32", frames_per_token=20)
    rng = np.random.default_rng(1)
    clip = rng.normal(0, 0.1, 75 * RATE).astype(np.float32)
    features = model.encode([(clip, RATE)])[0]
    pieces = [clip[: 30 * RATE], clip[30 * RATE : 60 * RATE], clip[60 * RATE :]]
    apart = np.concatenate(model.encode([(piece, RATE) for piece in pieces]))
    np.testing.assert_allclose(features, apart, rtol=1e-5, atol=1e-5)
    assert model.encoder.tokens(len(clip)) == len(features)


def test_features_are_taken_wherever_a_clip_is(model, clips):
    features = model.encode(clips)
    assert all(a is b or (a == b).all() for a, b in zip(model.encode(features), features, strict=True))
    answers = model.answer(clips, QUESTIONS, max_new_tokens=12)
    assert model.answer(features, QUESTIONS, max_new_tokens=12) == answers
    assert model.answer([*features[:3], *clips[3:]], QUESTIONS, max_new_tokens=12) == answers
    scores_of = model.score(features, QUESTIONS, answers)
    assert all((a == b).all() for a, b in zip(scores_of, model.score(clips, QUESTIONS, answers), strict=True))
    # Both answers to the first question are read behind one prompt.
    several = model.score([*features, features[0]], [*QUESTIONS, QUESTIONS[0]], [*answers, "A bell."])
    for one, alone in zip(several, [*scores_of, model.score(clips[:1], QUESTIONS[0], ["A bell."])[0]], strict=True):
        np.testing.assert_allclose(one, alone, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match=r"music features: expected the shape \[K, 24\].*found \[24000\]; give samples"):
        model.answer([np.zeros(24000, np.float32)], "What?")


class Counting(AudioEncoder):
    """An encoder that notes how many clips it has encoded."""

    def __call__(self, waveforms):
        encoded.append(len(waveforms))
        return super().__call__(waveforms)


encoded: list[int] = []


class Watched(mlingo_jax.MusiLingo):
    """A model whose engines can be looked at."""

    def writer(self, *arguments, **settings):
        writers.append(super().writer(*arguments, **settings))
        return writers[-1]


writers: list[Any] = []


def test_many_questions_about_few_clips_encode_and_read_each_clip_once(model, clips, tmp_path):
    files = [tmp_path / f"{i}.wav" for i in range(3)]
    for file, (samples, rate) in zip(files, clips, strict=False):
        soundfile.write(file, samples, rate)
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
    encoder = model.encoder
    counting = Counting(**{f.name: getattr(encoder, f.name) for f in dataclasses.fields(encoder)})
    watched = Watched(**{**fields, "encoder": counting})
    asked = [(file, QUESTIONS) for file in files]
    found = list(watched.ask(asked, Options(4)))
    assert sum(encoded) == len(files)
    assert writers[-1].counts.prefixes_read == len(files)
    assert writers[-1].counts.questions_read == len(files) * len(QUESTIONS)
    encoded.clear()
    # The same as pairs, the questions in turn: a file is still read once.
    pairs = [(file, question) for question in QUESTIONS for file in files]
    plain = watched.generate([file for file, _ in pairs], [question for _, question in pairs], Options(4))
    of_file = dict(zip(files, found, strict=True))
    for answer, (file, question) in zip(plain, pairs, strict=True):
        answers = of_file[file]
        assert not isinstance(answers, UserError)
        assert answer == answers[QUESTIONS.index(question)]
    assert sum(encoded) == writers[-1].counts.prefixes_read == len(files)


def test_what_cannot_be_answered_says_why_and_the_others_go_on(model, clips, tmp_path):
    """A generator of them; the first and the last are none, and one overflows."""
    features = model.encode(clips[:2])
    broken = np.full_like(features[0], np.nan)
    given = ["nowhere.wav", clips[0], broken, features[1], tmp_path]
    found = list(model.ask(((clip, ["What?", "Who?"]) for clip in given), Options(4)))
    assert [isinstance(some, UserError) for some in found] == [True, False, True, False, True]
    assert "nowhere.wav" in str(found[0])
    assert "because its music is not" in str(found[2])
    assert found[1] == model.generate(clips[:1] * 2, ["What?", "Who?"], Options(4))
    given = [("nowhere.wav", "What?"), (clips[0], []), (clips[0], "What?")]
    assert list(model.ask(given, Options(4)))[1:] == [[], model.generate(clips[:1], "What?", Options(4))]
    with pytest.raises(UserError, match="because its music is not"):
        model.answer([clips[0], broken], "What?", max_new_tokens=4)


def test_earlier_turns_are_read_and_a_row_with_them_is_that_row_alone(model, clips):
    questions = [Question(q, (("What plays?", "A bell."), ("Why?", "So."))[: i % 3]) for i, q in enumerate(QUESTIONS)]
    options = Options(12, temperature=0.7)
    together = model.generate(clips, questions, options)
    alone = [model.generate([c], q, options)[0] for c, q in zip(clips, questions, strict=True)]
    assert together == alone
    with_turns = model.score(clips[1:2], questions[1], ["A bell."])[0]
    assert (with_turns != model.score(clips[1:2], QUESTIONS[1], ["A bell."])[0]).all()
    assert "".join(model.stream(clips[1], questions[1], max_new_tokens=12, temperature=0.7)) == together[1].text


def test_two_streams_in_turn_leave_no_mesh_behind(towers, model, clips):
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    meshed = mlingo_jax.load(mert=towers[0], llm=towers[1], dtype="float32", frames_per_token=20, mesh=mesh)
    streams = {i: meshed.stream(clips[i], QUESTIONS[i], max_new_tokens=20) for i in (4, 5)}
    pieces: dict[int, list[str]] = {i: [] for i in streams}
    while streams:
        for i in tuple(streams):
            if piece := next(streams[i], None):
                pieces[i].append(piece)
            else:
                del streams[i]
            assert jax.sharding.get_abstract_mesh().empty
    assert min(map(len, pieces.values())) > 1
    for i, some in pieces.items():
        assert some == list(model.stream(clips[i], QUESTIONS[i], max_new_tokens=20))


def test_a_mesh_changes_no_number(towers, clips):
    script = f"""
import jax, json, numpy as np
from jax.sharding import AxisType
import mlingo_jax
rng = np.random.default_rng(0)
clips = [(rng.normal(0, 0.1, 24000).astype(np.float32), 24000)] * 2
mesh = jax.make_mesh((1, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
model = mlingo_jax.load(mert={str(towers[0])!r}, llm={str(towers[1])!r}, dtype="float32", mesh=mesh)
shards = jax.tree.leaves(model.llm.params["layers"]["mlp"]["up"])[0].addressable_shards
scores = model.score(clips, "What?", ["A bell."] * 2)[0].tolist()
answers = [model.answer(clips, "What?", max_new_tokens=8, num_beams=beams) for beams in (1, 2)]
print(json.dumps([scores, answers, len({{str(s.index) for s in shards}})]))
"""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    scores, answers, parts = json.loads(done.stdout)
    assert parts == 4
    rng = np.random.default_rng(0)
    clip = (rng.normal(0, 0.1, 24000).astype(np.float32), 24000)
    plain = mlingo_jax.load(mert=towers[0], llm=towers[1], dtype="float32")
    np.testing.assert_allclose(scores, plain.score([clip], "What?", ["A bell."])[0], rtol=1e-5)
    assert answers == [plain.answer([clip] * 2, "What?", max_new_tokens=8, num_beams=beams) for beams in (1, 2)]


def test_towers_keep_the_dtype_asked_for(towers):
    model = mlingo_jax.load(mert=towers[0], llm=towers[1])
    assert {str(p.dtype) for p in jax.tree.leaves((model.llm.params, model.encoder.params))} == {"bfloat16"}
    assert {str(p.dtype) for p in jax.tree.leaves(model.adapter)} == {"float32"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no adapter: does not say which towers belong to it; give mert and llm"),
        ({"mert": "nowhere", "llm": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_loaded_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        mlingo_jax.load(**arguments)


@pytest.mark.parametrize(("name", "what"), [("mert", "encoder"), ("llm", "language model")])
def test_a_run_whose_towers_have_moved_says_how_to_name_them(name, what, towers, tmp_path):
    run = tmp_path / "run"
    weights = {"llama_proj.weight": np.zeros((32, 24), np.float32), "llama_proj.bias": np.zeros(32, np.float32)}
    save_file(weights, tmp_path / "adapter.safetensors")
    record = {"mert": {"folder": str(towers[0])}, "llm": {"folder": str(towers[1])}}
    record[name] = {"folder": str(tmp_path / "gone")}
    with pytest.raises(UserError, match=rf"run: its {what} was \S+/gone, and is not there; .*: --{name} FOLDER, or"):
        tower_of(record, name, run)
    other = {"mert": "llm", "llm": "mert"}[name]
    assert tower_of(record, other, run) == record[other]["folder"]


def test_an_adapter_of_another_width_is_refused(towers, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "adapter.pth"
    torch.save({"model": {"llama_proj.weight": torch.zeros(32, 23), "llama_proj.bias": torch.zeros(32)}}, path)
    with pytest.raises(UserError, match=r"adapter\.pth: the adapter does not fit.*width 24"):
        mlingo_jax.load(mert=towers[0], llm=towers[1], adapter=path)


def test_an_adapter_that_is_not_finite_is_refused(towers, tmp_path):
    weights = {"llama_proj.weight": np.full((32, 24), np.nan, np.float32), "llama_proj.bias": np.zeros(32, np.float32)}
    save_file(weights, tmp_path / "adapter.safetensors")
    with pytest.raises(UserError, match=r"adapter\.safetensors: the adapter holds numbers that are not finite"):
        mlingo_jax.load(mert=towers[0], llm=towers[1], adapter=tmp_path / "adapter.safetensors")


def test_lists_of_different_lengths_are_refused(model, clips):
    with pytest.raises(UserError, match="expected one for each of 2 clips, found 1"):
        model.answer(clips[:2], ["What?"])


def test_a_single_clip_is_not_taken_for_a_list(model):
    for ask in (model.encode, lambda c: model.answer(c, "Who?"), lambda c: model.score(c, "Who?", "You.")):
        with pytest.raises(UserError, match=r"expected a list .* give \[clip\]"):
            ask("bell.wav")
        with pytest.raises(UserError, match="the list is empty"):
            ask([])


def test_a_model_is_shown_in_a_line(model):
    assert repr(model) == "MusiLingo(llm llm, float32, adapter 24 to 32)"


METHODS = ("encode", "score", "answer", "generate", "stream")


@pytest.mark.parametrize("function", ["load", *(f"MusiLingo.{name}" for name in METHODS)])
def test_the_examples_of_the_interface_run(function, model, towers, clips, tmp_path, monkeypatch):
    for name, folder in (("mert", towers[0]), ("llm", towers[1])):
        (tmp_path / "weights").mkdir(exist_ok=True)
        (tmp_path / "weights" / name).symlink_to(folder)
    for name, clip in zip(("song.wav", "other.wav"), clips, strict=False):
        soundfile.write(tmp_path / name, clip[0], RATE)
    monkeypatch.chdir(tmp_path)
    names = {"mlingo_jax": mlingo_jax, "Options": Options, "model": model}
    found = doctest.DocTestFinder().find(api, globs=names)
    (test,) = (test for test in found if test.name == f"mlingo_jax.api.{function}")
    assert test.examples
    result = doctest.DocTestRunner().run(test)
    assert result.failed == 0

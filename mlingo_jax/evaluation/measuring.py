"""What is asked of a model and made of its replies: `nll`, `retrieval`, multiple choice by likelihood and by text."""

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from mlingo_jax.errors import UserError
from mlingo_jax.evaluation import listening
from mlingo_jax.evaluation.answering import Asked, write_answers
from mlingo_jax.evaluation.answers import Answer
from mlingo_jax.evaluation.choice_files import prompt
from mlingo_jax.evaluation.choice_likelihood import OTHER, OWN, Scores, other_questions, score_likelihoods
from mlingo_jax.evaluation.choices import Choice
from mlingo_jax.evaluation.kept import Kept
from mlingo_jax.evaluation.likelihoods import Music, Query, find_likelihoods
from mlingo_jax.evaluation.listening import CANDIDATES, NONE, SILENCE, Listened, Pairing
from mlingo_jax.evaluation.model import Model
from mlingo_jax.evaluation.statistics import Scored
from mlingo_jax.inference.generate import Options

NLL, RETRIEVAL = "nll", "retrieval"


def measure_listening(
    model: Model,
    examples: Sequence[Answer],
    kept: Kept,
    measures: Collection[str] = (NLL, RETRIEVAL),
    candidates: int = CANDIDATES,
) -> Listened:
    """`nll` and `retrieval` (`mlingo_jax.evaluation.listening`).

    Raises:
        UserError: the examples are about too few clips to be given other clips' music; or as `find_likelihoods`.
    """
    missing: dict[str, str] = {}
    no_silence = _lacks_silence(model) if NLL in measures else None
    if no_silence:
        missing["nll.silence"] = no_silence
    pairs = listening.nll_pairings(examples, not no_silence) if NLL in measures else []
    groups = listening.group(examples, candidates)
    if RETRIEVAL in measures and len(groups.members):
        pairs += listening.retrieval_pairings(groups)
    queries = {pair: _query(pair, examples) for pair in pairs}
    found = find_likelihoods(model, queries.values(), kept)
    likelihoods = {pair: found[query] for pair, query in queries.items()}
    scored: dict[str, Scored] = {}
    if NLL in measures:
        scored |= listening.nll_statistics(examples, likelihoods, not no_silence)
    if RETRIEVAL in measures and len(groups.members):
        scored |= listening.retrieval_statistics(examples, likelihoods, groups)
    elif RETRIEVAL in measures:
        names = ("retrieval.answer", "retrieval.answer_pmi", "retrieval.clip")
        missing |= dict.fromkeys(names, f"no question is asked about {candidates} clips; --candidates N takes fewer")
    return Listened(scored, missing, {"candidates": candidates, "model": dict(model.identity)})


def _lacks_silence(model: Model) -> str | None:
    """Why there are no features of silence; None if there are."""
    try:
        model.silence()
    except UserError as error:
        return f"the features of silence are not kept in {model.spec.cache}, and the encoder cannot make them: {error}"
    return None


def _query(pair: Pairing, examples: Sequence[Answer]) -> Query:
    example = examples[pair.answer]
    if pair.music == NONE:
        music = Music()
    elif pair.music == SILENCE:
        music = Music(silent_like=example.clip)
    else:
        music = Music(examples[int(pair.music)].clip)
    return Query(music, example.question, example.reference)


def measure_choices(model: Model, choices: Sequence[Choice], kept: Kept) -> Listened:
    """Multiple choice by the options' likelihoods (`mlingo_jax.evaluation.choice_likelihood`).

    Each option is taken for the answer to the question with all options, with the clip's own music, with another
    clip's and without.

    Raises:
        UserError: the questions are about too few clips; or as `find_likelihoods`.
    """
    queries = {
        music: [
            [[Query(Music(clip), question, option) for option in options] for question, options in passes]
            for clip, passes in zip(clips, map(_puts, choices), strict=True)
        ]
        for music, clips in _musics(choices).items()
    }
    wanted = (query for of_music in queries.values() for passes in of_music for each in passes for query in each)
    found = find_likelihoods(model, wanted, kept)
    scores: dict[str, Scores] = {
        music: [[np.array([found[query] for query in each]) for each in passes] for passes in of_music]
        for music, of_music in queries.items()
    }
    return Listened(score_likelihoods(choices, scores), {}, {"model": dict(model.identity)})


def choose_by_text(
    model: Model, choices: Sequence[Choice], options: Options, seed: int, kept: Kept
) -> dict[str, list[Choice]]:
    """The choices with what the model writes to them, with the clip's own music, with another clip's and without."""
    musics = _musics(choices)
    asked = [
        Asked(clip, question)
        for clips in musics.values()
        for clip, choice in zip(clips, choices, strict=True)
        for question, _ in _puts(choice)
    ]
    found = write_answers(model, asked, options, seed, kept)

    def written(choice: Choice, clip: str | None) -> Choice:
        outputs = [found[Asked(clip, question)]["answer"] for question, _ in _puts(choice)]
        passes = [dataclasses.replace(p, output=output) for p, output in zip(choice.passes, outputs, strict=True)]
        return dataclasses.replace(choice, passes=tuple(passes))

    return {m: [written(c, clip) for c, clip in zip(choices, clips, strict=True)] for m, clips in musics.items()}


def _musics(choices: Sequence[Choice]) -> dict[str, list[str | None]]:
    """The clip of each question, another one, and none."""
    others = [choices[i].clip for i in other_questions(choices).tolist()]
    return {OWN: [choice.clip for choice in choices], OTHER: list(others), NONE: [None] * len(choices)}


def _puts(choice: Choice) -> list[tuple[str, tuple[str, ...]]]:
    """Each way in which a question is put, and the options in its order."""
    return [(prompt(choice.question, each.options), each.options) for each in choice.passes]

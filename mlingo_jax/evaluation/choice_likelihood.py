"""Multiple choice by likelihood: which option a model finds the likeliest answer, with and without the music.

N: questions. O: options.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from mlingo_jax.evaluation.choices import Choice, as_example, hits, without_listening
from mlingo_jax.evaluation.floors import shuffles
from mlingo_jax.evaluation.statistics import Scored, mean_statistics

OWN, OTHER, NONE = "own", "other", "none"

Scores = Sequence[Sequence[Float[np.ndarray, "O 2"]]]
"""Of each question, for each order of its options, the options' (log-likelihood, tokens)."""


def other_questions(choices: Sequence[Choice], seed: int = 0) -> Int[np.ndarray, "N"]:
    """For each question another one, about another clip, whose music stands in for its own."""
    return shuffles([as_example(choice) for choice in choices], 1, seed)[0]


def score_likelihoods(choices: Sequence[Choice], scores: Mapping[str, Scores]) -> dict[str, Scored]:
    """Statistics of the share of right answers, taking each time the likeliest option.

    By its likelihood (`choice.likelihood`), by that per token, and by that corrected by the option's likelihood without
    music.

    scores: with the clip's own music, with another clip's (each metric's shuffled floor) and with none. Where the
    options come in several orders, most of them decide. Further floors: the option that is likeliest without music,
    the longest, the first, any.
    """
    ways = {
        "choice.likelihood": lambda music: _picks(scores[music]),
        "choice.likelihood_per_token": lambda music: _picks(_per_token(scores[music])),
        "choice.likelihood_corrected": lambda music: _picks(_minus(scores[music], scores[NONE])),
    }
    simple = without_listening(choices)
    scored = {}
    for name, pick in ways.items():
        floors = dict(simple)
        if not name.endswith("corrected"):
            floors[NONE] = hits(choices, pick(NONE))
        drawn = {floor: mean_statistics(values[None]) for floor, values in floors.items()}
        own, other = (mean_statistics(hits(choices, pick(music))) for music in (OWN, OTHER))
        scored[name] = Scored(own, other[None], drawn)
    return scored


def _picks(scores: Scores) -> list[list[int]]:
    return [[int(np.argmax(options[:, 0])) for options in passes] for passes in scores]


def _per_token(scores: Scores) -> Scores:
    return [[options / options[:, 1:] for options in passes] for passes in scores]


def _minus(scores: Scores, others: Scores) -> Scores:
    return [[a - b for a, b in zip(one, other, strict=True)] for one, other in zip(scores, others, strict=True)]

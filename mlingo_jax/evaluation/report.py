"""The report's numbers: every score with its interval, its floors and its listening gap.

N: examples. S: statistics of an example. K: shuffles.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlingo_jax.evaluation.answers import Answer
from mlingo_jax.evaluation.intervals import Resamples, interval
from mlingo_jax.evaluation.standard import describe
from mlingo_jax.evaluation.statistics import Scored, select
from mlingo_jax.evaluation.values import Value, is_likelihood, value_of

OTHER_QUESTIONS = "other questions"
# A question that is asked about a tenth of a source's clips stands for itself; all others are counted together.
_OWN_ROW = 0.1
# What the best and worst answers are chosen by: the first of these that is there.
_RANKED_BY = ("standard.rouge_l", "paper.rouge_l", "paper.bleu")
_SHOWN = 5

OWN_NLL = "nll.own"
"""The metric that the other likelihoods are compared with."""

Metrics = dict[str, dict[str, Any]]


def build_report(
    examples: Sequence[Answer],
    scored: Mapping[str, Scored],
    missing: Mapping[str, str],
    settings: Mapping[str, Any],
    parts: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """report.json's values. All numbers are fractions, but for CIDEr-D, which goes to 10, and `nll`, in nats a token.

    Args:
        examples: the N answers. scored: their statistics, by metric. missing: why other metrics are not there.
        settings: all that the numbers depend on. parts: how to divide the examples, as {"by_source": each one's}.
    """
    return {
        "counts": {**_counts(examples), "duplicates": len(examples) - len(set(examples))},
        "missing": dict(missing),
        "metrics": summarise_all(examples, scored),
        **{name: _by(labels, examples, scored) for name, labels in parts.items()},
        "answers": describe([example.answer for example in examples]) if _answered(examples) else {},
        "references": describe([example.reference for example in examples]),
        "shown": _extremes(examples, scored),
        "settings": dict(settings),
    }


def summarise_all(examples: Sequence[Answer], scored: Mapping[str, Scored]) -> Metrics:
    """Each metric's entry of the report, over the same resamples of the examples' clips."""
    resamples = Resamples([example.clip for example in examples])
    metrics = {name: summarise(one, value_of(name), resamples) for name, one in scored.items()}
    for name, entry in metrics.items():
        if is_likelihood(name) and name != OWN_NLL and OWN_NLL in scored:
            entry["above_own"] = difference(scored[name], scored[OWN_NLL], value_of(name), resamples)
    return metrics


def difference(one: Scored, other: Scored, value: Value, resamples: Resamples) -> dict[str, Any]:
    """How far a metric's value is above another one's, and the 95 % interval of that."""
    between = value(resamples.sums(one.own)) - value(resamples.sums(other.own))
    apart = float(value(one.own.sum(axis=0)) - value(other.own.sum(axis=0)))
    return {"value": apart, "interval": interval(between)}


def summarise(scored: Scored, value: Value, resamples: Resamples) -> dict[str, Any]:
    """A metric's value and 95 % interval, its floors, and the listening gap: what it gains over shuffled answers."""
    own = float(value(scored.own.sum(axis=0)))
    shuffled = value(scored.shuffled.sum(axis=1))
    resampled = value(resamples.sums(scored.own))
    of_shuffled = value(resamples.sums(np.moveaxis(scored.shuffled, 0, 1))).mean(axis=1)
    floors = {name: value(drawn.sum(axis=1)) for name, drawn in scored.floors.items()}
    return {
        "value": own,
        "interval": interval(resampled),
        "shuffled": {"mean": float(shuffled.mean()), "deviation": _deviation(shuffled)},
        "gap": {"value": own - float(shuffled.mean()), "interval": interval(resampled - of_shuffled)},
        **{name: {"mean": float(drawn.mean()), "deviation": _deviation(drawn)} for name, drawn in floors.items()},
    }


def question_types(examples: Sequence[Answer]) -> list[str]:
    """Each example's question, or `OTHER_QUESTIONS` where it is asked about few of its source's clips."""
    clips: defaultdict[str, set[str]] = defaultdict(set)
    asked: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for example in examples:
        clips[example.source].add(example.clip)
        asked[example.source, example.question].add(example.clip)
    often = {key for key, about in asked.items() if len(about) >= max(2, _OWN_ROW * len(clips[key[0]]))}
    return [e.question if (e.source, e.question) in often else OTHER_QUESTIONS for e in examples]


def _by(labels: Sequence[str], examples: Sequence[Answer], scored: Mapping[str, Scored]) -> dict[str, Any]:
    """The counts and metrics of each label's examples; empty where all have the same."""
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for i, label in enumerate(labels):
        rows[label].append(i)
    if len(rows) < 2:
        return {}
    parts = {}
    for label, where in rows.items():
        some = [examples[i] for i in where]
        parts[label] = {
            "counts": _counts(some),
            "metrics": summarise_all(some, {name: select(one, where) for name, one in scored.items()}),
        }
    return parts


def _counts(examples: Sequence[Answer]) -> dict[str, int]:
    return {
        "examples": len(examples),
        "clips": len({example.clip for example in examples}),
        "questions": len({example.question for example in examples}),
        **({"empty_answers": sum(not e.answer.strip() for e in examples)} if _answered(examples) else {}),
    }


def _answered(examples: Sequence[Answer]) -> bool:
    """Whether there are answers at all: to measure likelihoods needs none."""
    return any(example.answer for example in examples)


def _extremes(examples: Sequence[Answer], scored: Mapping[str, Scored]) -> dict[str, Any]:
    """The best and the worst answers, by a metric that scores each answer alone."""
    by = next((name for name in _RANKED_BY if name in scored), None)
    if by is None:
        return {}
    scores = scored[by].own[:, 0]
    order = np.argsort(-scores, kind="stable")
    shown = min(_SHOWN, len(order) // 2)

    def show(i: int) -> dict[str, Any]:
        one = examples[i]
        return {
            "clip": one.clip,
            "question": one.question,
            "answer": one.answer,
            "reference": one.reference,
            "score": float(scores[i]),
        }

    return {
        "by": by,
        "best": [show(int(i)) for i in order[:shown]],
        "worst": [show(int(i)) for i in order[::-1][:shown]],
    }


def _deviation(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0

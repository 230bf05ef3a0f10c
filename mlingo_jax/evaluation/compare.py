"""Evaluations side by side, on the examples they share: is one system better than another, beyond chance?

N: shared examples. B: resamples.
"""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mlingo_jax.errors import UserError
from mlingo_jax.evaluation.answers import Answer
from mlingo_jax.evaluation.formats import read_file, read_table
from mlingo_jax.evaluation.intervals import Resamples, chance_probability, interval
from mlingo_jax.evaluation.markdown import brackets, percent
from mlingo_jax.evaluation.report import summarise
from mlingo_jax.evaluation.run import ANSWERS, REPORT, STATISTICS
from mlingo_jax.evaluation.statistics import Scored, load_scored, select
from mlingo_jax.evaluation.values import is_likelihood, value_of

_CHANCE = 0.05

Key = tuple[str, str, str, int]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A folder that `evaluate` wrote: the system's name, its answers and each metric's statistics."""

    name: str
    answers: Sequence[Answer]
    scored: Mapping[str, Scored]


def read_evaluation(folder: Path) -> Evaluation:
    """Reads an evaluation's folder.

    Raises:
        UserError: it is not one, or it is not finished.
    """
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        name, metrics = report["settings"]["name"], list(report["metrics"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}: no finished evaluation there ({REPORT} is missing or damaged); run it first"
        ) from error
    scored = {metric: load_scored(folder / STATISTICS, metric) for metric in metrics}
    lost = [metric for metric, one in scored.items() if one is None]
    if lost:
        raise UserError(f"{folder / STATISTICS}: the statistics of {', '.join(lost)} are missing; evaluate again")
    return Evaluation(name, read_table(read_file(folder / ANSWERS)), {m: s for m, s in scored.items() if s is not None})


def compare(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Every system's values and gaps on the examples that all share, and each two systems' difference.

    All are resampled alike (paired bootstrap over clips), so what is hard about a clip cancels out. `chance` is the
    two-sided probability of so clear a difference between equal systems.

    Raises:
        UserError: they share no example, or no metric.
    """
    places = _shared([evaluation.answers for evaluation in evaluations])
    metrics = [m for m in evaluations[0].scored if all(m in other.scored for other in evaluations)]
    if not len(places[0]) or not metrics:
        what = "metric" if len(places[0]) else "question with the same clip and true answer"
        raise UserError(f"{', '.join(e.name for e in evaluations)} have no {what} in common: nothing to compare")
    names = _distinct([evaluation.name for evaluation in evaluations])
    clips = [evaluations[0].answers[i].clip for i in places[0]]
    resamples = Resamples(clips)
    scored = {m: [select(e.scored[m], p) for e, p in zip(evaluations, places, strict=True)] for m in metrics}
    return {
        "counts": {"examples": len(clips), "clips": len(set(clips))},
        "of": {name: len(evaluation.answers) for name, evaluation in zip(names, evaluations, strict=True)},
        "metrics": {metric: _compare(metric, names, of_systems, resamples) for metric, of_systems in scored.items()},
    }


def render_comparison(comparison: Mapping[str, Any]) -> str:
    """The comparison as Markdown: a table of all systems, and one of their differences."""
    names = list(comparison["of"])
    counts = comparison["counts"]
    lines = [
        f"{counts['examples']:,} answers about {counts['clips']:,} clips, shared by {len(names)} systems; times 100, "
        "but for likelihoods (`nll`).",
        "",
        f"| metric | {' | '.join(names)} |",
        f"|---|{'---:|' * len(names)}",
    ]
    for metric, entry in comparison["metrics"].items():
        cells = [_with_gap(metric, one) for one in entry["systems"].values()]
        lines.append(f"| {metric} | {' | '.join(cells)} |")
    lines += [
        "",
        "| metric | difference | score | beyond chance | gap | beyond chance |",
        "|---|---|---:|---|---:|---|",
    ]
    for metric, entry in comparison["metrics"].items():
        for one in entry["differences"]:
            cells = [f"{_signed(metric, one[of])} | {_verdict(one[of])}" for of in ("score", "gap")]
            lines.append(f"| {metric} | {one['first']} - {one['second']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _compare(metric: str, names: Sequence[str], scored: Sequence[Scored], resamples: Resamples) -> dict[str, Any]:
    value = value_of(metric)
    systems = {name: summarise(one, value, resamples) for name, one in zip(names, scored, strict=True)}
    resampled = {name: _resample(metric, one, resamples) for name, one in zip(names, scored, strict=True)}
    differences = []
    for first, second in itertools.combinations(names, 2):
        entry: dict[str, Any] = {"first": first, "second": second}
        for k, of in enumerate(("score", "gap")):
            between = resampled[first][k] - resampled[second][k]
            points = [
                systems[name]["value"] if of == "score" else systems[name]["gap"]["value"] for name in (first, second)
            ]
            entry[of] = {
                "value": points[0] - points[1],
                "interval": interval(between),
                "chance": chance_probability(between),
            }
        differences.append(entry)
    return {"systems": systems, "differences": differences}


def _resample(metric: str, scored: Scored, resamples: Resamples) -> tuple[np.ndarray, np.ndarray]:
    """The score and the gap in each resample."""
    value = value_of(metric)
    own = value(resamples.sums(scored.own))
    return own, own - value(resamples.sums(np.moveaxis(scored.shuffled, 0, 1))).mean(axis=1)


def _shared(systems: Sequence[Sequence[Answer]]) -> list[list[int]]:
    """Where in each system's answers the examples stand that all of them have, in the first one's order."""
    keyed = [{key: i for i, key in enumerate(_keys(answers))} for answers in systems]
    shared = [key for key in keyed[0] if all(key in other for other in keyed[1:])]
    return [[numbers[key] for key in shared] for numbers in keyed]


def _keys(answers: Sequence[Answer]) -> list[Key]:
    """Clip, question, reference, and the how-many-eth of equal ones.

    Clips go by their file's name, so that systems may have their audio in different folders, unless two clips have the
    same.
    """
    clips = {answer.clip for answer in answers}
    stems = {clip: PurePosixPath(clip).stem for clip in clips}
    named = stems if len(set(stems.values())) == len(clips) else {clip: clip for clip in clips}
    seen: Counter[tuple[str, str, str]] = Counter()
    keys = []
    for answer in answers:
        key = (named[answer.clip], answer.question, answer.reference)
        keys.append((*key, seen[key]))
        seen[key] += 1
    return keys


def _distinct(names: Sequence[str]) -> list[str]:
    """The systems' names; those of one name are numbered."""
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


def _with_gap(metric: str, one: Mapping[str, Any]) -> str:
    value, gap = one["value"], one["gap"]["value"]
    return f"{value:.4f} (gap {gap:+.4f})" if is_likelihood(metric) else f"{percent(value)} (gap {100 * gap:+.2f})"


def _signed(metric: str, difference: Mapping[str, Any]) -> str:
    if is_likelihood(metric):
        low, high = difference["interval"]
        return f"{difference['value']:+.4f} [{low:.4f}, {high:.4f}]"
    return f"{100 * difference['value']:+.2f} {brackets(difference['interval'])}"


def _verdict(difference: Mapping[str, Any]) -> str:
    return f"{'yes' if difference['chance'] < _CHANCE else 'no'}, p = {difference['chance']:.3f}"

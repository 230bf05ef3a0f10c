"""One evaluation's folder: the answers, their statistics, report.json, report.md and figures."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlingo_jax.evaluation.answers import Answer, require_one_answer, write_answers
from mlingo_jax.evaluation.choices import Choice, score_choices
from mlingo_jax.evaluation.cmi_tasks import NO_TAGGING, TAGGING, TASK_MEASURES
from mlingo_jax.evaluation.figures import draw_gaps, draw_scores
from mlingo_jax.evaluation.floors import SHUFFLES
from mlingo_jax.evaluation.intervals import RESAMPLES
from mlingo_jax.evaluation.judge import Judge, judge_answers
from mlingo_jax.evaluation.listening import Listened
from mlingo_jax.evaluation.markdown import render
from mlingo_jax.evaluation.report import build_report, question_types
from mlingo_jax.evaluation.resources import Resources
from mlingo_jax.evaluation.scoring import MEASURES, score, versions
from mlingo_jax.evaluation.statistics import Scored, save_scored
from mlingo_jax.evaluation.values import is_likelihood
from mlingo_jax.files import write_atomic

ANSWERS = "answers.jsonl"
STATISTICS = "statistics"
REPORT = "report.json"
REPLIES = "judge.jsonl"
JUDGED = "judge.score"


def evaluate_answers(
    folder: Path,
    name: str,
    examples: Sequence[Answer],
    resources: Resources,
    training: Sequence[Answer] = (),
    judge: Judge | None = None,
    task: str | None = None,
    listened: Listened | None = None,
) -> dict[str, Any]:
    """Scores answers by both families of metrics, and writes the report; returns its values.

    Answers for a task of CMI-Bench other than captioning are scored by the metric that the benchmark names for it.

    Args:
        folder: the report's. name: the system's. examples: the answers beside their references. resources: data that
            metrics need. training: the training split's true answers, for their floor. judge: who grades as well.
            task: of CMI-Bench, if the answers are for one. listened: what was measured of the system besides.

    Raises:
        UserError: as `write_report`; one question has two answers; the answers are about too few clips to be shuffled;
            or the judge fails.
    """
    require_one_answer(examples)
    settings: dict[str, Any] = {"name": name, "training_answers": len(training)}
    settings |= {"shuffles": SHUFFLES, "resamples": RESAMPLES, "task": task, **versions(resources)}
    measures = (TASK_MEASURES[task],) if task and task in TASK_MEASURES else MEASURES
    scored, missing = score(examples, resources, folder / STATISTICS, training, measures)
    if task in TAGGING:
        missing |= dict.fromkeys(("cmi.roc_auc", "cmi.pr_auc"), NO_TAGGING)
    if listened is not None:
        _save(folder, listened, name)
        scored, missing, settings = scored | listened.scored, missing | listened.missing, settings | listened.settings
    if judge is not None:
        scored[JUDGED], settings["judge"] = judge_answers(judge, examples, folder / REPLIES)
        save_scored(folder / STATISTICS, JUDGED, scored[JUDGED], judge.model)
    parts = {"by_question": question_types(examples), "by_source": [example.source for example in examples]}
    return write_report(folder, examples, scored, missing, settings, parts)


def report_listening(folder: Path, name: str, examples: Sequence[Answer], listened: Listened) -> dict[str, Any]:
    """Writes the report of what was measured of a system that wrote no answers; returns its values.

    Raises:
        UserError: as `write_report`.
    """
    _save(folder, listened, name)
    settings = {"name": name, "resamples": RESAMPLES, **listened.settings}
    parts = {"by_question": question_types(examples), "by_source": [example.source for example in examples]}
    return write_report(folder, examples, listened.scored, listened.missing, settings, parts)


def _save(folder: Path, listened: Listened, name: str) -> None:
    for metric, one in listened.scored.items():
        save_scored(folder / STATISTICS, metric, one, name)


def evaluate_choices(
    folder: Path,
    name: str,
    choices: Sequence[Choice],
    baselines: Mapping[str, Sequence[Choice]] | None = None,
    listened: Listened | None = None,
) -> dict[str, Any]:
    """Scores what a system wrote to multiple-choice questions, and writes the report; returns its values.

    Args:
        folder: the report's. name: the system's. choices: the questions and what was written to them, if anything was.
        baselines: the same questions with what was written without their music. listened: what was measured besides.

    Raises:
        UserError: as `write_report`; or the questions are about too few clips to be shuffled.
    """
    written = any(each.output for choice in choices for each in choice.passes)
    scored = score_choices(choices, baselines) if written else {}
    scored |= listened.scored if listened else {}
    for metric, one in scored.items():
        save_scored(folder / STATISTICS, metric, one, name)
    rows = [(choice, choice.passes[0]) for choice in choices]
    examples = [
        Answer(choice.clip, choice.question, each.options[each.correct], each.output, choice.benchmark, choice.where)
        for choice, each in rows
    ]
    settings = {"name": name, "shuffles": SHUFFLES, "resamples": RESAMPLES, "passes": len(choices[0].passes)}
    settings |= listened.settings if listened else {}
    parts = {"by_category": [choice.category for choice in choices]}
    return write_report(folder, examples, scored, listened.missing if listened else {}, settings, parts)


def write_report(
    folder: Path,
    examples: Sequence[Answer],
    scored: Mapping[str, Scored],
    missing: Mapping[str, str],
    settings: Mapping[str, Any],
    parts: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """Writes the answers, figures, report.md and, last, report.json; returns the report's values.

    Args: as `report.build_report`.

    Raises:
        UserError: a file cannot be written.
    """
    report = build_report(examples, scored, missing, settings, parts)
    write_answers(folder / ANSWERS, examples)
    figures = []
    if drawn := {metric: entry for metric, entry in report["metrics"].items() if not is_likelihood(metric)}:
        for name, draw in (("scores.png", draw_scores), ("gaps.png", draw_gaps)):
            draw(drawn, folder / name)
            figures.append(name)
    write_atomic(folder / "report.md", [render(report, figures)])
    write_atomic(folder / REPORT, [json.dumps(_finite(report), indent=2, ensure_ascii=False), "\n"])
    return report


def _finite(values: Any) -> Any:
    """JSON has no infinity and no "not a number": these become null."""
    if isinstance(values, Mapping):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values

"""One evaluation's folder: the answers, their statistics, report.json, report.md and figures."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlingo_jax.evaluation.answers import Answer, write_answers
from mlingo_jax.evaluation.figures import draw_gaps, draw_scores
from mlingo_jax.evaluation.floors import SHUFFLES
from mlingo_jax.evaluation.intervals import RESAMPLES
from mlingo_jax.evaluation.markdown import render
from mlingo_jax.evaluation.report import build_report
from mlingo_jax.evaluation.resources import Resources
from mlingo_jax.evaluation.scoring import score, versions
from mlingo_jax.evaluation.statistics import Scored
from mlingo_jax.files import write_atomic

ANSWERS = "answers.jsonl"
STATISTICS = "statistics"
REPORT = "report.json"


def evaluate_answers(
    folder: Path, name: str, examples: Sequence[Answer], resources: Resources, training: Sequence[Answer] = ()
) -> dict[str, Any]:
    """Scores answers by both families of metrics, and writes the report; returns its values.

    Args:
        folder: the report's. name: the system's. examples: the answers beside their references. resources: data that
            metrics need. training: the training split's true answers, for their floor.

    Raises:
        UserError: as `write_report`; or the answers are about too few clips to be shuffled.
    """
    scored, missing = score(examples, resources, folder / STATISTICS, training)
    settings = {"name": name, "training_answers": len(training), "shuffles": SHUFFLES, "resamples": RESAMPLES}
    return write_report(folder, examples, scored, missing, settings | versions(resources))


def write_report(
    folder: Path,
    examples: Sequence[Answer],
    scored: Mapping[str, Scored],
    missing: Mapping[str, str],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the answers, figures, report.md and, last, report.json; returns the report's values.

    Raises:
        UserError: a file cannot be written, or one question has two answers.
    """
    report = build_report(examples, scored, missing, settings)
    write_answers(folder / ANSWERS, examples)
    figures = []
    if report["metrics"]:
        for name, draw in (("scores.png", draw_scores), ("gaps.png", draw_gaps)):
            draw(report["metrics"], folder / name)
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

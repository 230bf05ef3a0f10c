"""The report's pictures: every score beside its floors, and the listening gaps with their intervals."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mlingo_jax.files import atomic_replace

_OWN, _SHUFFLED, _CONSTANT, _TRAINING = "#3b6fb6", "#d9822b", "#888888", "#7a9a5b"
_MARKERS = {
    "shuffled": ("shuffled", _SHUFFLED, "s"),
    "constant": ("one answer for all", _CONSTANT, "|"),
    "training": ("training answers", _TRAINING, "x"),
    "none": ("no music", _TRAINING, "s"),
    "other": ("another clip", _SHUFFLED, "x"),
    "chance": ("chance", _CONSTANT, "|"),
    "longest": ("longest option", _TRAINING, "x"),
}


def draw_scores(metrics: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Scores with their intervals beside the floors, a row for each metric; CIDEr-D on a tenth of its scale."""
    names = list(metrics)
    figure, axes = _page(len(names))
    for floor, (label, color, marker) in _MARKERS.items():
        rows = [i for i, name in enumerate(names) if floor in metrics[name]]
        values = [_scale(names[i]) * metrics[names[i]][floor]["mean"] for i in rows]
        if rows:
            axes.scatter(values, rows, color=color, marker=marker, label=label, zorder=2)
    for i, name in enumerate(names):
        low, high = (_scale(name) * bound for bound in metrics[name]["interval"])
        axes.plot([low, high], [i, i], color=_OWN, linewidth=2)
    axes.scatter(
        [_scale(n) * metrics[n]["value"] for n in names], range(len(names)), color=_OWN, label="score", zorder=3
    )
    axes.set(xlabel="score x 100", title="Scores beside their floors", yticks=range(len(names)), yticklabels=names)
    axes.legend(frameon=False)
    _save(figure, path)


def draw_gaps(metrics: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """The listening gaps with their intervals."""
    names = list(metrics)
    figure, axes = _page(len(names))
    axes.axvline(0, color=_SHUFFLED, linewidth=1)
    for i, name in enumerate(names):
        gap = metrics[name]["gap"]
        low, high = (_scale(name) * bound for bound in gap["interval"])
        color = _OWN if low > 0 or high < 0 else _CONSTANT
        axes.plot([low, high], [i, i], color=color, linewidth=2)
        axes.scatter([_scale(name) * gap["value"]], [i], color=color, zorder=3)
    title = "Listening gap: score minus shuffled, 95 % of resampled clips"
    axes.set(xlabel="points", title=title, yticks=range(len(names)), yticklabels=names)
    _save(figure, path)


def _scale(name: str) -> float:
    return 10.0 if name.endswith("cider_d") else 100.0


def _page(rows: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 1.4 + 0.32 * rows), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.invert_yaxis()
    axes.grid(alpha=0.25, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    with atomic_replace(path) as partial:
        figure.savefig(partial, format="png")

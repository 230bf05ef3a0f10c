"""The picture of a run: its losses over the steps."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mlingo_jax.files import atomic_replace
from mlingo_jax.training.record import read_metrics

BLUE, ORANGE = "#3b6fb6", "#d9822b"


def plot_losses(workdir: Path) -> Path:
    """Draws the train and evaluation losses of metrics.jsonl into the workdir's loss.png."""
    records = read_metrics(workdir)
    train = [(r["step"], r["loss"]) for r in records if r.get("loss") is not None]
    evaluation = [(r["step"], r["eval_loss"]) for r in records if r.get("eval_loss") is not None]
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    if train:
        steps, losses = np.array(train).T
        axes.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=0.8)
        axes.plot(steps, _smooth(losses), color=BLUE, linewidth=1.8, label="train (smoothed)")
    if evaluation:
        steps, losses = np.array(evaluation).T
        axes.plot(steps, losses, color=ORANGE, marker="o", markersize=4, linewidth=1.8, label="held out")
        axes.annotate(
            f"{losses[-1]:.3f}", (steps[-1], losses[-1]), xytext=(0, 8), textcoords="offset points", ha="center"
        )
    axes.set(xlabel="step", ylabel="loss per answer token [nats]", title=f"MusiLingo adapter: {workdir.name}")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if train or evaluation:
        axes.legend(frameon=False)
    path = workdir / "loss.png"
    with atomic_replace(path) as partial:
        figure.savefig(partial, format="png")
    return path


def _smooth(losses: np.ndarray) -> np.ndarray:
    """A running mean over a 20th of the run, both neighbours' sides alike; shorter at the ends."""
    half = max(len(losses) // 40, 1)
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    positions = np.arange(len(losses))
    low, high = np.maximum(positions - half, 0), np.minimum(positions + half + 1, len(losses))
    return (sums[high] - sums[low]) / (high - low)

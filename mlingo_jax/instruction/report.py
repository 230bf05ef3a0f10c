"""What a run leaves beside its pairs: report.json, figures, the dataset's card, and a table for the screen."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlingo_jax.files import atomic_replace, write_atomic
from mlingo_jax.instruction.recipes import Recipe
from mlingo_jax.instruction.result import MANIFEST
from mlingo_jax.instruction.summary import Summary

REPORT, CARD, FIGURES = "report.json", "README.md", "figures"
_MILLION = 1e6
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclasses.dataclass(frozen=True)
class Prices:
    """Of a million tokens, in any currency; None where nothing is said."""

    prompt: float | None = None
    reply: float | None = None

    def cost(self, prompt_tokens: int | float, reply_tokens: int | float) -> float | None:
        """None if there are no prices."""
        if self.prompt is None and self.reply is None:
            return None
        return ((self.prompt or 0.0) * prompt_tokens + (self.reply or 0.0) * reply_tokens) / _MILLION


@dataclasses.dataclass(frozen=True)
class Origin:
    """What the pairs were made of. source: the file's name or the dataset's; digest: of its bytes.

    excluded: clips that were left out, by reason.
    """

    source: str
    digest: str
    licence: str
    model: str
    judge: str
    blind: bool
    seed: int
    recipe: Recipe
    excluded: Mapping[str, int]


def write_report(output: Path, origin: Origin, summary: Summary, prices: Prices) -> dict[str, Any]:
    """Writes report.json, the figures and the card. The report."""
    report = {
        "source": {"name": origin.source, "sha256": origin.digest, "excluded": dict(sorted(origin.excluded.items()))},
        "recipe": {
            "name": origin.recipe.name,
            "digest": origin.recipe.digest,
            "tasks": [task.name for task in origin.recipe.tasks],
        },
        "model": origin.model,
        "judge": origin.judge or None,
        "blind_check": origin.blind,
        "seed": origin.seed,
        **summary.counts(),
        **summary.likeness(_answers(output)),
    }
    tokens = [
        sum(n for name, n in summary.asked.items() if name.endswith(kind)) for kind in ("prompt_tokens", "reply_tokens")
    ]
    cost = prices.cost(*tokens)
    report["cost"] = None if cost is None else round(cost, 4)
    write_atomic(output / REPORT, [json.dumps(report, indent=2, ensure_ascii=False), "\n"])
    draw_figures(output / FIGURES, report, summary.lengths())
    write_atomic(output / CARD, [card(origin, report)])
    return report


def table(report: Mapping[str, Any]) -> str:
    """For the screen."""
    pairs, replies = report["pairs"], report["replies"]
    rows = [("clips", report["clips"].get("train", 0) + report["clips"].get("eval", 0), "")]
    rows += [(f"  left out: {name}", count, "") for name, count in report["source"]["excluded"].items()]
    rows += [("  without any pair", report["clips"]["without_pairs"], ""), ("pairs written", pairs["written"], "")]
    written = max(pairs["written"], 1)
    rows += [(f"  rejected: {name}", count, f"{count / written:.1%}") for name, count in pairs["rejected"].items()]
    rows.append(("pairs kept", pairs["kept"], f"{pairs['kept'] / written:.1%}"))
    rows += [
        (f"  {part}", sum(pairs[part].values()), f"train {pairs[part]['train']:,}, eval {pairs[part]['eval']:,}")
        for part in ("short", "long")
    ]
    rows.append(("requests repeated with the fault told", replies["repairs"], ""))
    rows += [(f"replies without pairs: {name}", count, "") for name, count in replies["lost"].items()]
    lines = [f"{name:<40}{count:>12,}  {note}".rstrip() for name, count, note in rows]
    lines.append(f"a constant answer to each kind of question gets {report['constant_answer_right']:.1%} right")
    return "\n".join(lines)


def draw_figures(folder: Path, report: Mapping[str, Any], lengths: Mapping[str, np.ndarray]) -> None:
    """kinds.png, lengths.png and losses.png; the same bytes for the same numbers."""
    # Late: it is slow to load.
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    kinds = {name: values["pairs"] for name, values in report["kinds"].items()}
    losses = {"kept": report["pairs"]["kept"], **report["pairs"]["rejected"]}
    for name, values, title in (
        ("kinds", kinds, "pairs of each kind of question"),
        ("losses", losses, "what became of the pairs that were written"),
    ):
        figure = Figure(figsize=(8, 0.8 + 0.32 * max(len(values), 2)), layout="constrained")
        axes = figure.subplots()
        bars = axes.barh(list(values), list(values.values()), color="#4c78a8")
        axes.bar_label(bars, [f"{n:,}" for n in values.values()], padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set(xlabel="pairs", title=title)
        _save(figure, folder / f"{name}.png")
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    longest = max((int(np.percentile(values, 99.5)) for values in lengths.values() if len(values)), default=1)
    for task, values in sorted(lengths.items()):
        axes.hist(np.minimum(values, longest), bins=np.linspace(0, longest, 41).tolist(), alpha=0.55, label=task)
    axes.set(xlabel="words of an answer", ylabel="pairs", title="lengths of the answers")
    if lengths:
        axes.legend()
    _save(figure, folder / "lengths.png")


def card(origin: Origin, report: Mapping[str, Any]) -> str:
    """The dataset's card, with the metadata that the hub reads."""
    pairs, recipe = report["pairs"], origin.recipe
    clips = report["clips"].get("train", 0) + report["clips"].get("eval", 0)
    size = next((name for most, name in _SIZES if pairs["kept"] < most), "1M<n<10M")
    judged = f"judged by {origin.judge}" if origin.judge else "not judged by a model"
    rejected = "\n".join(f"| {name} | {count:,} |" for name, count in pairs["rejected"].items())
    lost = "\n".join(
        f"| reply without pairs: {name} | {count:,} |" for name, count in report["replies"]["lost"].items()
    )
    losses = "\n".join(filter(None, [rejected, lost])) or "| none | 0 |"
    warning = f"\n**Beware:** {recipe.warning}.\n" if recipe.warning else ""
    return f"""---
license: {origin.licence}
language: en
task_categories:
- question-answering
- text-generation
tags:
- music
- audio
- instruction-tuning
- synthetic
size_categories:
- {size}
configs:
- config_name: default
  data_files: {MANIFEST}
---

# Questions and answers about music, made from {origin.source}

{pairs["kept"]:,} questions with answers, written by the language model `{origin.model}` from what `{origin.source}`
says about {clips:,} clips, and {judged}. No model has heard the music. Made with mlingo_jax.
{warning}
| part | train | eval |
|---|---|---|
| short | {pairs["short"]["train"]:,} | {pairs["short"]["eval"]:,} |
| long | {pairs["long"]["train"]:,} | {pairs["long"]["eval"]:,} |

| how it was made | |
|---|---|
| source | {origin.source}, sha256 `{origin.digest}` |
| licence of the source | {origin.licence} |
| recipe | {recipe.name} (`{recipe.digest}`): {recipe.summary} |
| written by | {origin.model} |
| judged by | {origin.judge or "none"} |
| seed | {origin.seed} |
| pairs written | {pairs["written"]:,} |

| left out because of | pairs |
|---|---|
{losses}

A constant answer to each kind of question would be right in {report["constant_answer_right"]:.1%} of the pairs.
`sheet.html` and `sheet.csv` have a random 1 % of them for people to check; `requests/journal.jsonl` has all requests
and replies, `rejected.jsonl` what was left out and why, `report.json` all counts.

The licences of the model's service and of the source hold for what is made with them.
"""


def _answers(output: Path) -> Iterator[str]:
    with (output / MANIFEST).open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["answer"]


def _save(figure: Any, path: Path) -> None:
    with atomic_replace(path) as partial:
        figure.savefig(partial, dpi=110, format="png", metadata={"Software": None})

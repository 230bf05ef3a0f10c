"""The paper's tables, ours beside the published ones: what `launch/paper.sh` ends with."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlingo_jax.errors import UserError
from mlingo_jax.evaluation.markdown import brackets, percent, tables
from mlingo_jax.files import read_json, write_atomic

PUBLISHED = Path(__file__).with_name("published.toml")
_METRICS: Mapping[str, str] = {
    "bleu": "BLEU (characters)",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L recall",
    "bert_score": "BERTScore recall",
}


def write_paper(runs: Path) -> Path:
    """Writes RUNS/paper.md of the evaluations RUNS/evaluation/NAME that published.toml names; returns its path.

    Raises:
        UserError: one of them is missing or not finished.
    """
    published = tomllib.loads(PUBLISHED.read_text(encoding="utf-8"))["table"]
    reports = {name: _read(runs / "evaluation" / name) for table in published for name in table["evaluations"]}
    write_atomic(runs / "paper.md", [render_paper(published, reports)])
    return runs / "paper.md"


def render_paper(published: Sequence[Mapping[str, Any]], reports: Mapping[str, Mapping[str, Any]]) -> str:
    """The page: each of the paper's tables, then all that was measured for it."""
    lines = [
        "# MusiLingo's tables",
        "",
        "By the paper's own metrics, times 100. *Shuffled* is the floor of ours, the same answers for other clips; "
        "published numbers have none. Their sources are named below each table.",
    ]
    for table in published:
        lines += ["", f"## Table {table['number']}: {table['title']}", "", *_table(table, reports)]
        lines += ["", *(f"- {row['system']}: {row['source']}" for row in table["row"])]
    for table in published:
        for name in table["evaluations"]:
            lines += ["", f"## {name}", "", _asked(reports[name]), *tables(reports[name], heading="### ")]
    return "\n".join([*lines, ""])


def _table(table: Mapping[str, Any], reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [f"| system | {' | '.join(_METRICS.values())} |", f"|---|{'---:|' * len(_METRICS)}"]
    for row in table["row"]:
        cells = [percent(row[name]) if name in row else "-" for name in _METRICS]
        rows.append(f"| {row['system']}, published | {' | '.join(cells)} |")
    for name in table["evaluations"]:
        metrics = [reports[name]["metrics"].get(f"paper.{metric}") for metric in _METRICS]
        cells = [f"**{percent(m['value'])}** {brackets(m['interval'])}" if m else "-" for m in metrics]
        rows.append(f"| ours, {name} | {' | '.join(cells)} |")
        cells = [percent(m["shuffled"]["mean"]) if m else "-" for m in metrics]
        rows.append(f"| ours, {name}, shuffled | {' | '.join(cells)} |")
    return rows


def _asked(report: Mapping[str, Any]) -> str:
    counts, missing = report["counts"], report["missing"]
    lost = f" Missing: {', '.join(missing)}." if missing else ""
    settings = json.dumps(report["settings"].get("decoding", {}))
    return f"{counts['examples']:,} answers about {counts['clips']:,} clips, decoded with `{settings}`.{lost}"


def _read(folder: Path) -> dict[str, Any]:
    if not (folder / "report.json").exists():
        raise UserError(f"{folder}: no finished evaluation there; launch/paper.sh makes it")
    return read_json(folder / "report.json")

"""What `prepare` found: a table for the screen, report.json, and the clips that are not used."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from mlingo_jax.datasets.check import Checked, Status
from mlingo_jax.errors import UserError
from mlingo_jax.files import write_atomic

_STATUSES: tuple[str, ...] = get_args(Status)


@dataclass(frozen=True)
class Report:
    """What came of a build.

    clips: how many of each status. duplicated: clips whose audio is, byte for byte, also another's (they are kept).
    noted: clips that are used and of which there is something to say. seconds: of audio there. annotated, kept:
    examples of each split before and after clips were left out. published: examples of each split ("" for all) as
    published.
    """

    dataset: str
    clips: dict[str, int]
    duplicated: int
    noted: int
    seconds: float
    annotated: dict[str, int]
    kept: dict[str, int]
    published: dict[str, int]

    @property
    def wanted(self) -> int:
        return sum(self.clips.values())

    @property
    def share(self) -> float:
        """Of all clips, those that are used."""
        return self.clips["there"] / self.wanted

    def table(self) -> str:
        """For the screen."""
        rows = [("clips", self.wanted, "")]
        rows += [(f"  {status}", count, f"{count / self.wanted:.1%}") for status, count in self.clips.items()]
        rows += [("  duplicated (kept)", self.duplicated, "")]
        rows += [("  with a note (kept)", self.noted, "see notes.jsonl")] if self.noted else []
        rows += [("hours of audio", round(self.seconds / 3600, 2), "")]
        lines = [f"{name:<28}{count:>12,}  {note}".rstrip() for name, count, note in rows]
        for split, count in self.annotated.items():
            published = self.published.get(split)
            note = "" if published is None else f" ({published:,} published)"
            lines.append(f"{f'examples in {split}':<28}{self.kept.get(split, 0):>12,}  of {count:,} annotated{note}")
        if "" in self.published:
            kept, total = sum(self.kept.values()), sum(self.annotated.values())
            lines.append(f"{'examples':<28}{kept:>12,}  of {total:,} annotated ({self.published['']:,} published)")
        return "\n".join([self.dataset, *lines])


def make_report(
    dataset: str, checks: Sequence[Checked], annotated: Counter[str], kept: Counter[str], published: Mapping[str, int]
) -> Report:
    """Counts what came of the checks."""
    counts = Counter(checked.status for checked in checks)
    return Report(
        dataset=dataset,
        clips={status: counts[status] for status in _STATUSES},
        duplicated=sum(map(len, _duplicates(checks))),
        noted=len(_noted(checks)),
        seconds=round(math.fsum(checked.seconds for checked in checks if checked.status == "there"), 3),
        annotated=dict(annotated),
        kept=dict(kept),
        published=dict(published),
    )


def reports_folder(data_dir: Path, dataset: str) -> Path:
    """Where a dataset's report is."""
    return data_dir / "reports" / dataset.replace("/", "_")


def write_report(folder: Path, report: Report, checks: Sequence[Checked]) -> None:
    """Writes the report and its lists.

    report.json, missing.txt (an id a line), bad_clips.jsonl (with reasons), duplicates.jsonl (groups), notes.jsonl (of
    clips that are used).

    Raises UserError if the folder cannot be written.
    """
    bad = (asdict(checked) for checked in checks if checked.status not in ("there", "missing"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: the report cannot be written ({error.strerror})") from error
    _write_lines(folder / "missing.txt", (checked.clip for checked in checks if checked.status == "missing"))
    _write_lines(folder / "bad_clips.jsonl", map(json.dumps, bad))
    _write_lines(folder / "duplicates.jsonl", map(json.dumps, _duplicates(checks)))
    _write_lines(folder / "notes.jsonl", map(json.dumps, _noted(checks)))
    _write_lines(folder / "report.json", [json.dumps({**asdict(report), "share": round(report.share, 6)}, indent=2)])


def _noted(checks: Iterable[Checked]) -> list[dict[str, str | Sequence[str]]]:
    return [{"clip": checked.clip, "notes": checked.notes} for checked in checks if checked.notes]


def _duplicates(checks: Iterable[Checked]) -> list[list[str]]:
    by_digest: defaultdict[str, list[str]] = defaultdict(list)
    for checked in checks:
        if checked.digest:
            by_digest[checked.digest].append(checked.clip)
    return sorted(sorted(clips) for clips in by_digest.values() if len(clips) > 1)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    write_atomic(path, (f"{line}\n" for line in lines))

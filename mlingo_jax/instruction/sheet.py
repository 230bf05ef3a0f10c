"""A random 1 % of the pairs for people to check, as MusicInstruct's authors did: for a spreadsheet and a browser."""

import csv
import hashlib
import heapq
import html
from typing import IO

from mlingo_jax.instruction.pairs import Pair

SHARE = 0.01
_FEWEST = 20
_MARKS = ("clear", "feasible", "practical", "true")
_Row = tuple[str, ...]
_COLUMNS = ("clip", "task", "kind", "question", "answer", "known")

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Pairs to check</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222 }}
article {{ border: 1px solid #ddd; border-radius: 6px; padding: .8rem 1rem; margin: .8rem 0 }}
h1 {{ font-size: 1.3rem }} .where {{ color: #777; font-size: .85rem }} .question {{ font-weight: 600; margin: .3rem 0 }}
.known {{ color: #555; background: #f6f6f4; padding: .5rem .7rem; white-space: pre-wrap; margin: .5rem 0 }}
label {{ margin-right: 1.2rem; white-space: nowrap; display: inline-block }}
button {{ font: inherit; padding: .3rem .9rem }}
</style></head><body>
<h1>{count} pairs to check</h1>
<p>Tick what holds: <b>clear</b> (one understands what is asked), <b>feasible</b> (somebody who hears the music can
answer), <b>practical</b> (somebody would ask it), <b>true</b> (the answer says what is known, and no more).
<button onclick="save()">Save the marks as csv</button></p>
{articles}
<script>
function save() {{
  const rows = [["number", {mark_names}]];
  document.querySelectorAll("article").forEach((a, n) =>
    rows.push([n + 1, ...[...a.querySelectorAll("input")].map(i => i.checked ? 1 : 0)]));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([rows.map(r => r.join(",")).join("\\n") + "\\n"], {{type: "text/csv"}}));
  link.download = "marks.csv";
  link.click();
}}
</script></body></html>
"""


class Sheet:
    """Draws 1 % of the pairs that are added, at least twenty, by a hash of each: the same pairs in every run."""

    def __init__(self, seed: int):
        self._seed, self._count = seed, 0
        # The drawn ones, as a heap whose first is the next to go.
        self._drawn: list[tuple[int, int, _Row]] = []

    def add(self, pair: Pair, known: str) -> None:
        """known: what the answer is to be held against."""
        self._count += 1
        row = (pair.clip, pair.task, pair.kind, pair.question, pair.answer, known)
        rank = hashlib.sha256("\0".join((str(self._seed), *row)).encode()).digest()[:8]
        entry = (-int.from_bytes(rank, "big"), -self._count, row)
        if len(self._drawn) < max(round(SHARE * self._count), _FEWEST):
            heapq.heappush(self._drawn, entry)
        else:
            heapq.heappushpop(self._drawn, entry)

    def write(self, table: IO[str], page: IO[str]) -> None:
        """As csv, with empty columns for marks, and as html, with boxes to tick. In the order of the pairs."""
        rows = [row for _, _, row in sorted(self._drawn, key=lambda entry: -entry[1])]
        writer = csv.writer(table)
        writer.writerow(("number", *_COLUMNS, *_MARKS))
        writer.writerows((number, *row, *[""] * len(_MARKS)) for number, row in enumerate(rows, 1))
        articles = "\n".join(_article(number, row) for number, row in enumerate(rows, 1))
        names = ", ".join(f'"{mark}"' for mark in _MARKS)
        page.write(_PAGE.format(count=len(rows), articles=articles, mark_names=names))


def _article(number: int, row: _Row) -> str:
    clip, task, kind, question, answer, known = map(html.escape, row)
    boxes = "".join(f'<label><input type="checkbox"> {mark}</label>' for mark in _MARKS)
    return (
        f'<article><div class="where">{number} · {clip} · {task} / {kind}</div><div class="question">{question}</div>'
        f'<div>{answer}</div><div class="known">{known}</div>{boxes}</article>'
    )

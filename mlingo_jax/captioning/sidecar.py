"""A text file beside each audio file, as those who train on a folder of music expect it: song.mp3, song.txt."""

from collections.abc import Sequence
from pathlib import Path

from mlingo_jax.captioning.plan import Line
from mlingo_jax.captioning.sections import clock
from mlingo_jax.files import write_atomic


def text_of(lines: Sequence[Line]) -> str:
    """A track's answers as text: alone if there is one question, else each under its question; then the fields."""
    questions = [line for line in lines if "fields" not in line]
    parts = [_answer(line) if len(questions) == 1 else f"{line['question']}\n{_answer(line)}" for line in questions]
    fields = [
        f"{name}: {value['answer']}"
        for line in lines
        for name, value in line.get("fields", {}).items()
        if value is not None
    ]
    return "\n\n".join([*parts, *(["\n".join(fields)] if fields else [])]) + "\n"


def write_sidecar(lines: Sequence[Line], *, overwrite: bool) -> bool:
    """Writes a track's sidecar; leaves another text that is there alone unless told to, and then gives False."""
    path, text = Path(lines[0]["file"]).with_suffix(".txt"), text_of(lines)
    if path.exists() and not overwrite and path.read_text(encoding="utf-8", errors="replace") != text:
        return False
    write_atomic(path, [text])
    return True


def _answer(line: Line) -> str:
    if "sections" not in line:
        return line["answer"]
    parts = [f"{clock(part['start'])}-{clock(part['end'])}: {part['answer']}" for part in line["sections"]]
    return "\n".join(([line["answer"]] if "answer" in line else []) + parts)

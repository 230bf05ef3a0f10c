"""Small sources for making instruction data, and the command on them."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from mlingo_jax.instruction.asking import journal_path
from mlingo_jax.instruction.conversations import Conversation, Plan
from mlingo_jax.instruction.journal import Writer
from mlingo_jax.instruction.pairs import Source
from mlingo_jax.instruction.requests import Dialect, Request, read_reply
from tests.collections_of_music import write_csv
from tests.scripted_model import ScriptedModel

ROOT = Path(__file__).parents[1]
_INSTRUMENTS = ("electric guitar", "piano", "violin", "trumpet", "drums", "flute", "accordion", "banjo", "cello")
_GENRES = ("rock", "jazz", "folk", "reggae", "techno", "classical", "blues")
_MOODS = ("cheerful", "gloomy", "tense", "dreamy", "solemn")
_TEMPOS = ("slow tempo", "medium tempo", "fast tempo")
_VOICES = ("male vocals", "female vocals", "choir", "no vocals")


def aspects_of(number: int) -> list[str]:
    """What the number-th clip is like."""
    lists = (_GENRES, _INSTRUMENTS, _INSTRUMENTS[3:], _MOODS, _TEMPOS, _VOICES)
    drawn = hashlib.sha256(f"clip {number}".encode()).digest()
    return list(dict.fromkeys(words[drawn[n] % len(words)] for n, words in enumerate(lists)))


def caption_of(number: int) -> str:
    return f"Recording {number} has " + ", ".join(aspects_of(number)) + "."


def write_captions(folder: Path, count: int) -> tuple[Path, dict[str, list[str]]]:
    """A csv in MusicCaps' form, every third clip for evaluation; and the aspects of each caption."""
    rows = [
        {
            "ytid": f"clip-{n:06d}",
            "start_s": 0,
            "end_s": 10,
            "audioset_positive_labels": "",
            "aspect_list": str(aspects_of(n)),
            "caption": caption_of(n),
            "author_id": 1,
            "is_balanced_subset": False,
            "is_audioset_eval": n % 3 == 0,
        }
        for n in range(count)
    ]
    return write_csv(folder / "musiccaps-public.csv", rows), {caption_of(n): aspects_of(n) for n in range(count)}


def command(source: Path | str, output: Path, model: ScriptedModel | None, *options: str) -> list[str]:
    """`instruct` with the scripted model's address."""
    place = [] if model is None else ["--endpoint", model.url]
    begin = [sys.executable, "-m", "mlingo_jax.instruct", str(source), "--output", str(output)]
    return [*begin, *place, "--model", "scripted", *options]


def environment(**more: str) -> Mapping[str, str]:
    # Of the machine's proxies and keys none is for a server on localhost.
    kept = {k: v for k, v in os.environ.items() if "proxy" not in k.lower() and k != "OPENAI_API_KEY"}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def run(
    source: Path | str, output: Path, model: ScriptedModel | None, *options: str, **more: str
) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    return subprocess.run(
        command(source, output, model, *options),
        capture_output=True,
        text=True,
        env=environment(**more),
        timeout=300,
        check=False,
    )


def record(sources: Iterable[Source], plan: Plan, output: Path, reply: Callable[[Request], str]) -> None:
    """Writes a journal as if a model had been asked about all clips and had replied so."""
    writer = Writer(journal_path(output))
    for source in sources:
        conversation = Conversation(source, plan).steps()
        request = next(conversation, None)
        while request is not None:
            message = {"role": "assistant", "content": reply(request)}
            body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
            sent = Dialect().body(request)
            writer.append(request.key, request.role, "recorded", sent, 200, body, "")
            try:
                request = conversation.send(read_reply(body, sent))
            except StopIteration:
                request = None
    writer.close()


def report(output: Path) -> dict:
    return json.loads((output / "report.json").read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def results(output: Path) -> dict[str, bytes]:
    """Every file that comes out, but for the journal, which is in the order in which replies came."""
    files = (path for path in sorted(output.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(output)): path.read_bytes() for path in files if path.name != "journal.jsonl"}

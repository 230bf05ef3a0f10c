"""How long it takes to filter and write instruction data from recorded replies, and in how much memory.

    python -m benchmarks.instruction --clips 5500

Replies to both of the paper's tasks and to the judge are made up for so many clips, eleven pairs each, and recorded;
then a process of its own makes the result of them. A quarter of the clips comes first, to see whether memory grows.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mlingo_jax.instruction.asking import journal_path
from mlingo_jax.instruction.conversations import Conversation, Plan
from mlingo_jax.instruction.filters.vocabulary import load_vocabulary
from mlingo_jax.instruction.journal import Journal, Writer
from mlingo_jax.instruction.pairs import Source
from mlingo_jax.instruction.recipes import load_recipe
from mlingo_jax.instruction.report import Origin, Prices, write_report
from mlingo_jax.instruction.requests import Dialect, Request, read_reply
from mlingo_jax.instruction.result import write_result

WORDS = (
    "warm", "bright", "hollow", "gentle", "restless", "patient", "crisp", "distant", "golden", "heavy", "tender",
    "sharp", "broad", "quiet", "rolling", "dusty",
)  # fmt: skip
NAMED = ("piano", "violin", "drums", "trumpet", "flute", "cello", "organ", "banjo", "rock", "jazz", "folk", "techno")
SHORT = ("genre", "tempo", "vocals", "mood", "instruments")
LONG = ("description", "arrangement", "atmosphere", "occasion", "sound", "summary")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=5500, help="default %(default)s")
    parser.add_argument("--finish", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.finish:
        finish(arguments.finish, arguments.clips)
        return
    for clips in (arguments.clips // 4, arguments.clips):
        with tempfile.TemporaryDirectory() as folder:
            record(Path(folder), clips)
            command = [sys.executable, "-m", "benchmarks.instruction", "--finish", folder, "--clips", str(clips)]
            subprocess.run(command, check=True)


def record(folder: Path, clips: int) -> None:
    """Writes the journal."""
    writer, plan = Writer(journal_path(folder)), make_plan()
    for source in sources(clips):
        drawn = random.Random(source.clip)
        steps = Conversation(source, plan).steps()
        request = next(steps, None)
        while request is not None:
            message = {"role": "assistant", "content": reply(request, drawn)}
            body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
            sent = Dialect().body(request)
            writer.append(request.key, request.role, "recorded", sent, 200, body, "")
            try:
                request = steps.send(read_reply(body, sent))
            except StopIteration:
                request = None
    writer.close()


def finish(folder: Path, clips: int) -> None:
    """Makes the result, and prints seconds and memory."""
    begun, plan = time.perf_counter(), make_plan()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    journal = Journal(journal_path(folder))
    summary = write_result(lambda: sources(clips), plan, journal, folder, rate=24000, advance=lambda: None)
    origin = Origin("made up", "", "other", "m", "m", False, 0, plan.recipe, {})
    report = write_report(folder, origin, summary, Prices())
    seconds, computing = time.perf_counter() - begun, time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{report['pairs']['written']:,} pairs written, {report['pairs']['kept']:,} kept: {seconds:.1f} s, of one core "
        f"{computing:.1f} s; memory {peak / 1024:,.0f} MiB, {(peak - before) / 1024:,.0f} of them for this",
        flush=True,
    )


def make_plan() -> Plan:
    return Plan(load_recipe("both"), "m", "m", load_vocabulary())


def sources(clips: int) -> Iterator[Source]:
    for n in range(clips):
        drawn = random.Random(n)
        caption = (
            f"A {' '.join(drawn.choices(WORDS, k=30))} piece with {', '.join(drawn.sample(NAMED, 5))}. Number x{n}."
        )
        yield Source(f"clip{n:07d}", f"clip{n:07d}", caption, split="eval" if n % 2 else "train")


def reply(request: Request, drawn: random.Random) -> str:
    """Sound pairs, each of other words; the judge finds one in twenty unfaithful."""
    asked = request.messages[-1]["content"]
    if request.role == "judge":
        count = asked.count(". Question: ")
        verdicts = [{"pair": n, "faithful": "yes" if drawn.random() > 0.05 else "no"} for n in range(1, count + 1)]
        return json.dumps({"verdicts": verdicts})
    short = "- tempo:" in request.messages[0]["content"]
    named = [word.strip(",.") for word in asked.partition(" with ")[2].split()[:5]]
    pairs = [
        {
            "kind": kind,
            "question": f"What of its {kind} is {' '.join(drawn.sample(WORDS, 3))}?",
            "answer": f"The {drawn.choice(named)} sounds {' '.join(drawn.choices(WORDS, k=8 if short else 45))}.",
        }
        for kind in (SHORT if short else LONG)
    ]
    return json.dumps({"pairs": pairs})


if __name__ == "__main__":
    main()

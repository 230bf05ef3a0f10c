"""After the demo has trained: it is asked about clips that it has never seen, and its answers are graded."""

import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import mlingo_jax
from mlingo_jax.demo.corpus import Clip, read_clips
from mlingo_jax.demo.materials import TIMES
from mlingo_jax.demo.music import ATTRIBUTES
from mlingo_jax.demo.texts import CAPTION, CAPTION_REQUESTS, QUESTIONS, named
from mlingo_jax.errors import UserError
from mlingo_jax.evaluation.answers import Answer
from mlingo_jax.evaluation.floors import shuffles
from mlingo_jax.evaluation.intervals import Resamples
from mlingo_jax.evaluation.markdown import table
from mlingo_jax.evaluation.report import Metrics, summarise
from mlingo_jax.evaluation.statistics import Scored, mean_statistics, ratio
from mlingo_jax.files import write_atomic
from mlingo_jax.inference.generate import Options
from mlingo_jax.settings import Config

# The whole demo's clock: the module is imported as the command begins.
_START = time.perf_counter()
SHOWN = 5
MAX_NEW_TOKENS = 48
ASKED: Mapping[str, str] = {**{name: QUESTIONS[name][0] for name in ATTRIBUTES}, CAPTION: CAPTION_REQUESTS[0]}

Answers = dict[str, list[str]]


def report(config: Config, workdir: Path) -> dict[str, Any]:
    """Asks about the held-out clips; writes report.json and report.md to the workdir, and shows the table.

    Of a run that had been finished and reported before, the time it took then stays.
    """
    corpus = Path(config.data.manifest).parent
    clips = [clip for clip in read_clips(corpus) if clip.split == "eval"]
    answers = ask_all(
        workdir, config.mert.path, config.llm.path, config.llm.dtype, [corpus / clip.audio for clip in clips]
    )
    metrics = summarise_grades({name: grade(name, answers[name], clips) for name in ATTRIBUTES}, clips)
    values = {
        "metrics": metrics,
        "clips": len(clips),
        "seconds": _seconds(workdir / "report.json"),
        "seconds_to_make_materials": json.loads((corpus.parent / TIMES).read_text(encoding="utf-8")),
        "examples": [_example(i, corpus, clips, answers) for i in _spread(len(clips))],
        "settings": dataclasses.asdict(config),
    }
    write_atomic(workdir / "report.json", [json.dumps(values, indent=2, ensure_ascii=False), "\n"])
    write_atomic(workdir / "report.md", [_markdown(values)])
    _show(values, workdir, corpus)
    return values


def ask_all(workdir: Path, mert: str, llm: str, dtype: str, files: Sequence[Path]) -> Answers:
    """The answers to every question of `ASKED` about every clip, by subject, of a run and its towers."""
    model = mlingo_jax.load(adapter=workdir, mert=mert, llm=llm, dtype=dtype)
    answers: Answers = {subject: [] for subject in ASKED}
    given = model.ask([(file, list(ASKED.values())) for file in files], Options(MAX_NEW_TOKENS))
    for of_clip in tqdm(given, "answering", len(files), disable=None):
        if isinstance(of_clip, UserError):
            raise of_clip
        for subject, answer in zip(ASKED, of_clip, strict=True):
            answers[subject].append(answer.text)
    return answers


def grade(attribute: str, answers: Sequence[str], clips: Sequence[Clip]) -> Scored:
    """Which answers name the true value and no other: of each clip's own, of other clips', and by chance."""
    given = np.array([named(attribute, answer) or "" for answer in answers])
    true = np.array([clip.truth[attribute] for clip in clips])
    dealt = shuffles([Answer(clip.audio, attribute, clip.truth[attribute]) for clip in clips])
    chance = np.full((1, len(clips)), 1 / len(set(true.tolist())))
    hits, others = (given == true).astype(float), (given[dealt] == true).astype(float)
    return Scored(mean_statistics(hits), mean_statistics(others), {"chance": mean_statistics(chance)})


def summarise_grades(graded: Mapping[str, Scored], clips: Sequence[Clip]) -> Metrics:
    """Each attribute's entry, as in the reports of `evaluate`."""
    resamples = Resamples([clip.audio for clip in clips])
    return {f"demo.{name}": summarise(one, ratio, resamples) for name, one in graded.items()}


def _seconds(before: Path) -> float:
    if before.exists():
        return json.loads(before.read_text(encoding="utf-8"))["seconds"]
    return round(time.perf_counter() - _START, 1)


def _example(i: int, corpus: Path, clips: Sequence[Clip], answers: Answers) -> dict[str, Any]:
    clip = clips[i]
    given = {ASKED[subject]: answers[subject][i] for subject in ASKED}
    return {"audio": str(corpus / clip.audio), "truth": clip.truth, "caption": clip.caption, "answers": given}


def _spread(clips: int) -> list[int]:
    """A few indices, evenly spread: the clips shown are not chosen by how well they went."""
    return [i * clips // min(SHOWN, clips) for i in range(min(SHOWN, clips))]


def _markdown(values: Mapping[str, Any]) -> str:
    made = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in values["seconds_to_make_materials"].items())
    settings = values["settings"]
    lines = [
        "# What the demo's adapter has learnt",
        "",
        f"Answers about {values['clips']} clips that were not seen in training. An answer counts if it names the true "
        "value and no other; *shuffled* is the same answers dealt to other clips, mean and deviation of 20 shuffles, "
        "which is what could be said without listening; the *gap* is what listening adds. Brackets are 95 % intervals "
        "over clips; all numbers are times 100. The clips are new pieces, but by the same synthesised players, all in "
        "C: the table shows that the whole path works, not how well MusiLingo understands real music.",
        "",
        *table(values["metrics"]),
        "",
        f"This run took {values['seconds']:.0f} s. Its materials were made in: {made}.",
        "",
        "![The losses over the steps](loss.png)",
        "",
        f"## {len(values['examples'])} of the clips",
    ]
    for example in values["examples"]:
        lines += ["", f"`{example['audio']}`", "", f"- *true caption:* {example['caption']}"]
        lines += [f"- {question} **{answer}**" for question, answer in example["answers"].items()]
    lines += ["", "## Settings", "", "```json", json.dumps(settings, indent=2, ensure_ascii=False), "```", ""]
    return "\n".join(lines)


def _show(values: Mapping[str, Any], workdir: Path, corpus: Path) -> None:
    for example in values["examples"]:
        print(f"\n{example['audio']}\n  true:   {example['caption']}\n  answer: {example['answers'][ASKED[CAPTION]]}")
    print(f"\nanswers about {values['clips']} clips that were not seen in training (times 100):\n")
    print("\n".join([*table(values["metrics"]), ""]))
    print(f"{values['seconds']:.0f} s in all. Read {workdir / 'report.md'}; then ask about any audio file:\n")
    print(
        f"  python -m mlingo_jax.caption {corpus / 'held_out'} --adapter {workdir} "
        f'--question "{ASKED[CAPTION]}" --output {workdir / "captions.jsonl"}',
    )
    sys.stdout.flush()

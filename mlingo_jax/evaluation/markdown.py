"""The report as a page: tables that have no score without its floors, the best and the worst answers, all settings."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mlingo_jax.evaluation.values import is_likelihood
from mlingo_jax.wording import counted

FAMILIES: Mapping[str, str] = {
    "paper": "As MusiLingo's paper, MU-LLaMA and CMI-Bench compute them: BLEU over characters and its 4-gram part, "
    "METEOR, recall of ROUGE-L and of BERTScore. Not to be compared with the standard metrics.",
    "standard": "As the captioning field uses the names: corpus BLEU on words, METEOR, F1 of ROUGE-L and of BERTScore, "
    "CIDEr-D (whose usual scale goes to 10, so to 1,000 here).",
    "choice": "Multiple choice. By generated text: `text` reads the answers by the benchmark's own rule, `text_strict` "
    "takes nothing but a letter or an option's text, `followed` is how often the benchmark's rule finds an option at "
    "all; shuffled answers choose the same positions in other questions. By likelihood: the option that is likeliest "
    "(`likelihood`), likeliest per token, or likeliest after its likelihood without music is taken off (`corrected`); "
    "shuffled is the same question with another clip's music.",
    "nll": "Mean negative log-likelihood of the true answers, in nats a token, with the music of their own clip, of "
    "another one, of silence and without any. A model that listens finds them likelier with their own.",
    "retrieval": "How often the likeliest of {candidates} is the true one: `answer`, of answers to the same question "
    "about other clips; `answer_pmi`, the same corrected by what the answers' likelihoods are without music; `clip`, "
    "of clips, the one that makes the answer likeliest. Equal ones share. Shuffled choices are those made for other "
    "clips.",
    "cmi": "The metrics that CMI-Bench names for the task, by its own rules of reading answers. `wer` and `cer` are "
    "errors: less is better, and a gap below 0 is listening.",
    "judge": "Grades by a language model that sees question, reference and answer: 1 counts as 0, 5 as 100. Its floor "
    "is what it gives the same answers, shuffled.",
}
_MUSICS: Mapping[str, str] = {
    "own": "its own clip",
    "other": "another clip",
    "silence": "silence",
    "none": "no music",
}
_FLOORS: Mapping[str, str] = {
    "none": "no music",
    "other": "another clip",
    "constant": "one answer",
    "training": "training answers",
    "longest": "longest option",
    "first": "first option",
    "chance": "chance",
}
_LONGEST = 600


def render(report: Mapping[str, Any], figures: Sequence[str]) -> str:
    """report.md; figures: the pictures' file names."""
    counts = report["counts"]
    lines = [
        f"# {report['settings'].get('name') or 'Evaluation'}",
        "",
        f"{counted(counts['examples'], 'answer')} about {counted(counts['clips'], 'clip')}"
        f"{_noted(counts)}. All numbers are times 100, but for likelihoods.",
        "",
        "*Shuffled* is the floor: the same answers dealt to other clips, within the same question, as mean ± standard "
        "deviation of 20 shuffles. The *gap* is what the answers gain from being given to their own clip. Brackets are "
        "95 % bootstrap intervals over clips: where the gap's includes 0, nothing shows that the answers depend on the "
        "music. *One answer* is the floor of the single most typical reference, given to every clip.",
    ]
    lines += tables(report, heading="## ")
    if report["missing"]:
        lines += ["", "## Missing", "", *(f"- `{name}`: {why}" for name, why in report["missing"].items())]
    lines += ["", *(f"![{name.removesuffix('.png')}]({name})" for name in figures)]
    for name in report:
        if name.startswith("by_"):
            lines += _parts(name.replace("_", " ").capitalize(), report[name])
    lines += [*_described(report), *_shown(report["shown"])]
    settings = json.dumps(report["settings"], indent=2, ensure_ascii=False)
    return "\n".join([*lines, "", "## Settings", "", "```json", settings, "```", ""])


def tables(report: Mapping[str, Any], heading: str = "") -> list[str]:
    """A table for each family of metrics, under its name."""
    lines = []
    for family in dict.fromkeys(name.partition(".")[0] for name in report["metrics"]):
        some = {name: one for name, one in report["metrics"].items() if name.startswith(f"{family}.")}
        note = [FAMILIES[family].format(**report["settings"]), ""] if heading and family in FAMILIES else []
        rows = _likelihoods(some) if family == "nll" else table(some)
        lines += ["", f"{heading}{family}", "", *note, *rows]
    return lines


def table(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A row for each metric: score, floors, gap, and how much of the score the gap is."""
    floors = [floor for floor in _FLOORS if any(floor in entry for entry in metrics.values())]
    head = ["metric", "score", "shuffled", *(_FLOORS[floor] for floor in floors), "gap", "gap / score"]
    rows = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for name, entry in metrics.items():
        score = f"**{percent(entry['value'])}** {brackets(entry['interval'])}"
        shuffled = f"{percent(entry['shuffled']['mean'])} ± {percent(entry['shuffled']['deviation'])}"
        others = [percent(entry[floor]["mean"]) if floor in entry else "" for floor in floors]
        share = f"{entry['gap']['value'] / entry['value']:.1%}" if entry["value"] else ""
        rows.append(f"| {' | '.join([name.partition('.')[2], score, shuffled, *others, _gap(entry['gap']), share])} |")
    return rows


def _likelihoods(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A row for each music: how likely the true answers are with it, and how much less so than with their own clip."""
    rows = ["| music | nats a token | more than with its own clip |", "|---|---:|---:|"]
    for name, entry in metrics.items():
        above = entry.get("above_own")
        more = f"{above['value']:+.4f} {_interval(above['interval'])}" if above else ""
        value = f"**{entry['value']:.4f}** {_interval(entry['interval'])}"
        rows.append(f"| {_MUSICS[name.partition('.')[2]]} | {value} | {more} |")
    return rows


def _parts(title: str, parts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A table of each part's scores, each with its floor and gap."""
    if not parts:
        return []
    left_out = ("bleu2", "bleu3", "nll.other", "nll.silence", "nll.none")
    names = [name for name in next(iter(parts.values()))["metrics"] if not name.endswith(left_out)]
    lines = ["", f"## {title}", "", "Score / shuffled, gap [its interval].", ""]
    lines += [f"|  | answers | {' | '.join(names)} |", f"|---|---:|{'---:|' * len(names)}"]
    for label, part in parts.items():
        cells = [_part(name, part["metrics"][name]) for name in names]
        lines.append(f"| {_cell(label or '(none)')} | {part['counts']['examples']:,} | {' | '.join(cells)} |")
    return lines


def _part(name: str, entry: Mapping[str, Any]) -> str:
    gap, shuffled = entry["gap"], entry["shuffled"]["mean"]
    if is_likelihood(name):
        return f"{entry['value']:.3f} / {shuffled:.3f}, {gap['value']:+.3f} {_interval(gap['interval'])}"
    return f"{percent(entry['value'])} / {percent(shuffled)}, {_gap(gap)}"


def _interval(interval: Sequence[float]) -> str:
    return f"[{interval[0]:.4f}, {interval[1]:.4f}]"


def _described(report: Mapping[str, Any]) -> list[str]:
    lines = [
        "",
        "## The texts",
        "",
        "|  | words a text | distinct words | distinct texts | empty |",
        "|---|---:|---:|---:|---:|",
    ]
    for side in [side for side in ("answers", "references") if report[side]]:
        one = report[side]
        lines.append(
            f"| {side} | {one['mean_words']:.1f} | {one['vocabulary']:,} | {one['distinct']:.1%} | {one['empty']:,} |"
        )
    return lines


def _shown(shown: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for side in ("best", "worst") if shown else ():
        lines += ["", f"## The {side} answers, by {shown['by']}"]
        for one in shown[side]:
            lines += ["", f"`{one['clip']}` {percent(one['score'])} {_cut(one['question'])}", ""]
            lines += [f"- *reference:* {_cut(one['reference'])}", f"- *answer:* {_cut(one['answer']) or '(empty)'}"]
    return lines


def _noted(counts: Mapping[str, int]) -> str:
    notes = [f"{counts['empty_answers']:,} of them empty"] if counts.get("empty_answers") else []
    notes += [f"{counts['duplicates']:,} of them there twice"] if counts["duplicates"] else []
    return "".join(f", {note}" for note in notes)


def percent(value: float) -> str:
    """A share in percent, with a second decimal where it is small."""
    return f"{100 * value:.1f}" if abs(value) >= 0.01 or value == 0 else f"{100 * value:.2f}"


def brackets(interval: Sequence[float]) -> str:
    """An interval of shares, in percent."""
    return f"[{percent(interval[0])}, {percent(interval[1])}]"


def _gap(gap: Mapping[str, Any]) -> str:
    return f"{100 * gap['value']:+.2f} [{100 * gap['interval'][0]:+.2f}, {100 * gap['interval'][1]:+.2f}]"


def _cell(text: str) -> str:
    return _cut(text).replace("|", "\\|")


def _cut(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= _LONGEST else f"{plain[:_LONGEST]} …"

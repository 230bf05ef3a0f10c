"""Evaluates a model, or scores answers that exist, and shows how much of each score comes from listening.

    python -m mlingo_jax.evaluate RUN --data DATASET:SPLIT --output DIR
    python -m mlingo_jax.evaluate --answers FILE --output DIR
    python -m mlingo_jax.evaluate compare DIR DIR ...
    python -m mlingo_jax.evaluate paper RUNS

RUN (a training run's folder, a MusiLingo folder or .pth) answers the questions, and is asked how likely the true
answers are with their own clip, another one, silence and no music. Each score stands beside its floor, the same answers
dealt to other clips, and the gap between the two.
Writes report.json, report.md, figures and the answers to DIR; run again, it does only what is missing.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mlingo_jax.caption import LIKE
from mlingo_jax.cli import Parser, run_cli
from mlingo_jax.errors import UserError

if TYPE_CHECKING:
    from mlingo_jax.evaluation.answers import Answer
    from mlingo_jax.evaluation.choices import Choice
    from mlingo_jax.evaluation.listening import Listened
    from mlingo_jax.evaluation.model import Model
    from mlingo_jax.evaluation.questions import Questions
    from mlingo_jax.inference.generate import Options

ANSWERS = "answers"
MEASURES = (ANSWERS, "nll", "retrieval")
# What the model was asked, in the report's folder.
LIKELIHOODS, WRITTEN = "likelihoods.jsonl", "written.jsonl"


def main(argv: Sequence[str] | None = None) -> None:
    """argv: the command line; by default the process's own."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["compare"]:
        _compare(comparing_parser().parse_args(argv[1:]))
    elif argv[:1] == ["paper"]:
        _paper(paper_parser().parse_args(argv[1:]))
    else:
        _evaluate(parse(argv))


def _evaluate(arguments: argparse.Namespace) -> None:
    if bool(arguments.run) == bool(arguments.answers):
        raise UserError("give a RUN to be asked, or answers that exist with --answers FILE: one of the two")
    if bool(arguments.judge) != bool(arguments.judge_model):
        raise UserError("--judge and --judge_model go together: an endpoint, and the model's name there")
    report = _ask(arguments) if arguments.run else _score(arguments)
    if report is not None:
        from mlingo_jax.evaluation.markdown import tables

        print("\n".join(tables(report)))
        print(f"\nRead {arguments.output / 'report.md'}", file=sys.stderr)


def _score(arguments: argparse.Namespace) -> dict[str, Any]:
    """Scores answers that exist; the report's values."""
    # Imported late: --help and mistakes on the command line need none of the numerical libraries.
    from mlingo_jax.evaluation.choice_files import read_choices
    from mlingo_jax.evaluation.cmi_bench import task_of
    from mlingo_jax.evaluation.formats import CHOICES, read_file
    from mlingo_jax.evaluation.joining import read_references, with_references
    from mlingo_jax.evaluation.run import evaluate_choices

    references = None
    if arguments.data:
        references = [answer for one in arguments.data for answer in read_references(one, arguments.data_dir)]
    file = read_file(arguments.answers)
    name = arguments.name or arguments.answers.stem
    with _sole(arguments.output):
        if file.format in CHOICES:
            return evaluate_choices(arguments.output, name, read_choices(file))
        examples = with_references(file, references, arguments.partial, arguments.most)
        task = arguments.task or (task_of(arguments.answers.name) if file.format == "cmi_bench" else None)
        return _report(arguments, name, examples, task)


def _report(
    arguments: argparse.Namespace,
    name: str,
    examples: "Sequence[Answer]",
    task: str | None,
    listened: "Listened | None" = None,
) -> dict[str, Any]:
    """Scores answers beside their references, and exports them if that is asked for; the report's values."""
    from mlingo_jax.evaluation.cmi_bench import export, export_task
    from mlingo_jax.evaluation.joining import read_references
    from mlingo_jax.evaluation.judge import Judge
    from mlingo_jax.evaluation.resources import Resources
    from mlingo_jax.evaluation.run import evaluate_answers

    judge = Judge(arguments.judge, arguments.judge_model, arguments.judge_shuffles) if arguments.judge else None
    training = read_references(arguments.training, arguments.data_dir) if arguments.training else []
    resources = Resources(arguments.nltk_data, arguments.bert_score, arguments.bert_score_layers)
    report = evaluate_answers(arguments.output, name, examples, resources, training, judge, task, listened)
    if arguments.export:
        exported = export(arguments.output / arguments.export, name, export_task(examples, task), examples)
        print(f"{exported}: for CMI-Bench's evaluator", file=sys.stderr)
    return report


def _ask(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Asks a model; the report's values, of several processes on the first one alone."""
    from mlingo_jax.evaluation.model import EncodedIn, caches_of, open_model
    from mlingo_jax.evaluation.questions import find_questions
    from mlingo_jax.processes import initialize, is_primary

    if not arguments.data:
        raise UserError(f"{arguments.run}: name what to ask it, with --data DATASET:SPLIT or a manifest")
    measures, options = _measures(arguments), _options(arguments)
    initialize()
    folder, caches = arguments.output, caches_of(arguments.run, arguments.features)
    sample = {"most": arguments.most, "orders": arguments.orders}
    asked = find_questions(arguments.data, arguments.data_dir, arguments.audio, **sample, encoded=EncodedIn(caches))
    with _sole(folder) if is_primary() else contextlib.nullcontext():
        towers = {"mert": arguments.mert, "llm": arguments.llm, "quantization": arguments.quantization}
        model = open_model(
            arguments.run, asked.audio, [*caches, *asked.caches], folder / "features", dtype=_dtype(arguments), **towers
        )
        if asked.choices:
            return _ask_choices(arguments, model, asked.choices, measures, options)
        return _ask_questions(arguments, model, asked, measures, options)


def _ask_questions(
    arguments: argparse.Namespace, model: "Model", asked: "Questions", measures: Sequence[str], options: "Options"
) -> dict[str, Any] | None:
    from mlingo_jax.evaluation.answering import Asked, answered, write_answers
    from mlingo_jax.evaluation.kept import Kept
    from mlingo_jax.evaluation.measuring import measure_listening
    from mlingo_jax.evaluation.run import report_listening
    from mlingo_jax.processes import is_primary, run_on_primary

    folder, examples = arguments.output, asked.examples
    name = arguments.name or Path(arguments.run).name
    with Kept(folder / LIKELIHOODS, writes=is_primary()) as kept:
        listened = measure_listening(model, examples, kept, measures, arguments.candidates)
    if ANSWERS not in measures:
        return report_listening(folder, name, examples, listened) if is_primary() else None
    with Kept(folder / WRITTEN, writes=is_primary()) as kept:
        questions = [Asked(example.clip, example.question) for example in examples]
        examples = answered(examples, write_answers(model, questions, options, arguments.seed, kept))
    listened = dataclasses.replace(listened, settings=listened.settings | _decoding(options, arguments.seed))
    made: list[dict[str, Any]] = []
    task = arguments.task or asked.task
    run_on_primary("report", lambda: made.append(_report(arguments, name, examples, task, listened)))
    return made[0] if made else None


def _ask_choices(
    arguments: argparse.Namespace,
    model: "Model",
    choices: "Sequence[Choice]",
    measures: Sequence[str],
    options: "Options",
) -> dict[str, Any] | None:
    from mlingo_jax.evaluation.choice_likelihood import OWN
    from mlingo_jax.evaluation.kept import Kept
    from mlingo_jax.evaluation.listening import Listened
    from mlingo_jax.evaluation.measuring import choose_by_text, measure_choices
    from mlingo_jax.evaluation.run import evaluate_choices
    from mlingo_jax.processes import is_primary

    folder, listened, written = arguments.output, Listened({}, {}, {"model": dict(model.identity)}), {OWN: choices}
    if set(measures) - {ANSWERS}:
        with Kept(folder / LIKELIHOODS, writes=is_primary()) as kept:
            listened = measure_choices(model, choices, kept)
    if ANSWERS in measures:
        with Kept(folder / WRITTEN, writes=is_primary()) as kept:
            written = choose_by_text(model, choices, options, arguments.seed, kept)
        listened = dataclasses.replace(listened, settings=listened.settings | _decoding(options, arguments.seed))
    own = written.pop(OWN)
    name = arguments.name or Path(arguments.run).name
    return evaluate_choices(folder, name, own, written, listened) if is_primary() else None


def _options(arguments: argparse.Namespace) -> "Options":
    from mlingo_jax.inference.generate import Options

    return Options(
        arguments.max_new_tokens, arguments.temperature, arguments.top_k, arguments.top_p, arguments.num_beams
    )


def _decoding(options: "Options", seed: int) -> dict[str, Any]:
    """How answers were written, for the report's settings."""
    return {"decoding": dataclasses.asdict(options) | ({"seed": seed} if options.temperature > 0 else {})}


def _measures(arguments: argparse.Namespace) -> tuple[str, ...]:
    given = tuple(arguments.measures.split(","))
    if unknown := [one for one in given if one not in MEASURES]:
        raise UserError(f"--measures: expected some of {', '.join(MEASURES)}, found {unknown[0]!r}")
    return given


def _dtype(arguments: argparse.Namespace) -> str:
    import jax

    return arguments.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")


def _sole(folder: Path) -> contextlib.AbstractContextManager[None]:
    from mlingo_jax.files import exclusive_lock

    busy = f"{folder}: another process is evaluating there; wait for it, or give another --output"
    return exclusive_lock(folder / ".lock", busy)


def _compare(arguments: argparse.Namespace) -> None:
    from mlingo_jax.evaluation.compare import compare, read_evaluation, render_comparison
    from mlingo_jax.files import write_atomic

    if len(arguments.folders) < 2:
        raise UserError(f"{arguments.folders[0]}: nothing to compare it with; name at least two evaluations' folders")
    comparison = compare([read_evaluation(folder) for folder in arguments.folders])
    page = render_comparison(comparison)
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        write_atomic(arguments.output / "comparison.json", [json.dumps(comparison, indent=2, ensure_ascii=False), "\n"])
        write_atomic(arguments.output / "comparison.md", [page, "\n"])
    print(page)


def _paper(arguments: argparse.Namespace) -> None:
    from mlingo_jax.evaluation.paper_page import write_paper

    print(f"Read {write_paper(arguments.runs)}", file=sys.stderr)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options; those of `--like` where they are not given."""
    made = parser()
    made.set_defaults(**LIKE.get(made.parse_args(argv).like, {}))
    return made.parse_args(argv)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(
        prog="python -m mlingo_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "run", nargs="?", metavar="RUN", help="a training run's folder, MusiLingo folder or .pth, to be asked"
    )
    answers = made.add_argument_group("questions and answers").add_argument
    answers("--answers", type=Path, metavar="FILE", help="answers to score; the format is seen from the file")
    answers(
        "--data",
        action="append",
        metavar="DATASET:SPLIT",
        help="what to ask, or where the true answers of FILE are: prepared datasets, a manifest, a benchmark's file; "
        "may be given again and again",
    )
    answers(
        "--data_dir", type=Path, default=Path("data"), metavar="DIR", help="of prepared datasets (default %(default)s)"
    )
    answers("--partial", action="store_true", help="score what is answered, though some of --data is not")
    answers("--most", type=int, default=0, metavar="N", help="an even sample of so many of each --data (default all)")
    answers("--task", metavar="NAME", help="CMI-Bench's task (default: as its files' names say), scored by its metric")
    answers("--name", help="what the report calls the system (default: the name of RUN or FILE)")
    model = made.add_argument_group("the model").add_argument
    model(
        "--measures",
        default=",".join(MEASURES),
        metavar="NAMES",
        help="what to measure: answers it writes, how likely it finds the true ones (nll), and whether it tells them "
        "from other clips' (retrieval); default %(default)s",
    )
    model("--candidates", type=int, default=10, metavar="K", help="of retrieval (default %(default)s)")
    model("--mert", help="the encoder: a folder or hub id; by default the run's own")
    model("--llm", help="the language model: a folder or hub id; by default the run's own")
    model("--dtype", choices=("bfloat16", "float32"), help="by default float32 on a CPU, bfloat16 elsewhere")
    model("--quantization", choices=("none", "int8", "int4"), help="of the language model; by default the run's own")
    model("--audio", type=Path, metavar="DIR", help="where a benchmark's audio is")
    model(
        "--features",
        type=Path,
        metavar="DIR",
        help="a feature cache to take the clips from (default: the run's or DATA_DIR's if it holds them all; else they "
        "are encoded, into OUTPUT)",
    )
    model("--orders", type=int, default=3, metavar="N", help="of MuChoMusic's options (default %(default)s)")
    decoding = made.add_argument_group("how answers are written").add_argument
    decoding("--max_new_tokens", type=int, default=300, help="an answer's greatest length (default %(default)s)")
    decoding("--like", choices=tuple(LIKE), help="draw as MusiLingo's own qa.py (as its paper) or its demo")
    decoding("--temperature", type=float, default=0.0, help="0, the default: the most probable token; above: drawn")
    decoding("--top_k", type=int, help="draw from the k most probable tokens only")
    decoding("--top_p", type=float, help="draw from the smallest set of tokens that holds this probability")
    decoding("--num_beams", type=int, default=1, help="above 1, beam search (default %(default)s)")
    decoding("--seed", type=int, default=0, help="of the draws (default %(default)s)")
    made.add_argument("--output", required=True, type=Path, metavar="DIR", help="the report's folder")
    made.add_argument(
        "--export",
        choices=("cmi_bench",),
        help="also write the answers as CMI-Bench's own evaluator reads them, to DIR/cmi_bench",
    )
    metrics = made.add_argument_group("metrics").add_argument
    metrics(
        "--training",
        metavar="DATASET:SPLIT",
        help="the training split, or a manifest: adds the floor of random training answers",
    )
    metrics(
        "--nltk_data",
        type=Path,
        metavar="DIR",
        help="nltk's data with WordNet, for METEOR (default: where nltk looks)",
    )
    metrics("--bert_score", type=Path, metavar="DIR", help="roberta-large in Hugging Face layout, for BERTScore")
    metrics(
        "--bert_score_layers", type=int, metavar="N", help="the layer BERTScore compares (default: the model's best)"
    )
    judge = made.add_argument_group("a language model as judge").add_argument
    judge("--judge", metavar="ENDPOINT", help="an OpenAI-compatible endpoint, as http://127.0.0.1:8000/v1")
    judge("--judge_model", metavar="NAME", help="the model's name there; a key is read from OPENAI_API_KEY")
    judge(
        "--judge_shuffles",
        type=int,
        default=1,
        metavar="N",
        help="shuffles that are graded as well, each as dear as the answers themselves (default %(default)s)",
    )
    return made


def comparing_parser() -> argparse.ArgumentParser:
    """The command line of `compare`."""
    made = Parser(
        prog="python -m mlingo_jax.evaluate compare",
        description="Sets evaluations side by side on the examples they share: each score, each gap, and whether two "
        "systems differ by more than chance (paired bootstrap over clips).",
    )
    made.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders that evaluate wrote")
    made.add_argument("--output", type=Path, metavar="DIR", help="also write comparison.json and comparison.md there")
    return made


def paper_parser() -> argparse.ArgumentParser:
    """The command line of `evaluate paper`."""
    made = Parser(
        prog="python -m mlingo_jax.evaluate paper",
        description="Writes RUNS/paper.md: the paper's tables beside launch/paper.sh's evaluations in RUNS/evaluation.",
    )
    made.add_argument("runs", type=Path, metavar="RUNS", help="the folder that launch/paper.sh was given")
    return made


def cli() -> NoReturn:
    """The console command."""
    run_cli(main)


if __name__ == "__main__":
    cli()

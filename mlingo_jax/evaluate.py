"""Scores answers about music, and shows how much of each score comes from listening.

    python -m mlingo_jax.evaluate --answers FILE --output DIR
    python -m mlingo_jax.evaluate compare DIR DIR ...

Each score stands beside its floor, the same answers dealt to other clips, and the gap between the two.
Writes report.json, report.md, figures and the answers to DIR; run again, it does only what is missing.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mlingo_jax.cli import run_cli
from mlingo_jax.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """argv: the command line; by default the process's own."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["compare"]:
        _compare(comparing_parser().parse_args(argv[1:]))
    else:
        _evaluate(parser().parse_args(argv))


def _evaluate(arguments: argparse.Namespace) -> None:
    # Imported late: --help and mistakes on the command line need none of the numerical libraries.
    from mlingo_jax.evaluation.choice_files import read_choices
    from mlingo_jax.evaluation.cmi_bench import export, export_task, task_of
    from mlingo_jax.evaluation.formats import CHOICES, read_file
    from mlingo_jax.evaluation.joining import read_references, with_references
    from mlingo_jax.evaluation.judge import Judge
    from mlingo_jax.evaluation.markdown import tables
    from mlingo_jax.evaluation.resources import Resources
    from mlingo_jax.evaluation.run import evaluate_answers, evaluate_choices
    from mlingo_jax.files import exclusive_lock

    folder: Path = arguments.output
    if bool(arguments.judge) != bool(arguments.judge_model):
        raise UserError("--judge and --judge_model go together: an endpoint, and the model's name there")
    judge = Judge(arguments.judge, arguments.judge_model, arguments.judge_shuffles) if arguments.judge else None
    references = read_references(arguments.data, arguments.data_dir) if arguments.data else None
    training = read_references(arguments.training, arguments.data_dir) if arguments.training else []
    file = read_file(arguments.answers)
    resources = Resources(arguments.nltk_data, arguments.bert_score, arguments.bert_score_layers)
    name = arguments.name or arguments.answers.stem
    with exclusive_lock(
        folder / ".lock", f"{folder}: another process is evaluating there; wait for it, or give another --output"
    ):
        if file.format in CHOICES:
            report = evaluate_choices(folder, name, read_choices(file))
        else:
            examples = with_references(file, references, arguments.partial, arguments.most)
            task = arguments.task or (task_of(arguments.answers.name) if file.format == "cmi_bench" else None)
            report = evaluate_answers(folder, name, examples, resources, training, judge, task)
            if arguments.export:
                exported = export(folder / arguments.export, name, export_task(examples, task), examples)
                print(f"{exported}: for CMI-Bench's evaluator", file=sys.stderr)
    print("\n".join(tables(report)))
    print(f"\nRead {folder / 'report.md'}", file=sys.stderr)


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


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m mlingo_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    answers = made.add_argument_group("answers").add_argument
    answers(
        "--answers", required=True, type=Path, metavar="FILE", help="answers to score; the format is seen from the file"
    )
    answers(
        "--data",
        metavar="DATASET:SPLIT",
        help="where the true answers are, if not in the file: prepared datasets, or a manifest",
    )
    answers(
        "--data_dir", type=Path, default=Path("data"), metavar="DIR", help="of prepared datasets (default %(default)s)"
    )
    answers("--partial", action="store_true", help="score what is answered, though some of --data is not")
    answers("--most", type=int, default=0, metavar="N", help="score an even sample of so many answers (default all)")
    answers("--task", metavar="NAME", help="CMI-Bench's task (default: as its files' names say), scored by its metric")
    answers("--name", help="what the report calls the system (default: the file's name)")
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
    made = argparse.ArgumentParser(
        prog="python -m mlingo_jax.evaluate compare",
        description="Sets evaluations side by side on the examples they share: each score, each gap, and whether two "
        "systems differ by more than chance (paired bootstrap over clips).",
        allow_abbrev=False,
    )
    made.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders that evaluate wrote")
    made.add_argument("--output", type=Path, metavar="DIR", help="also write comparison.json and comparison.md there")
    return made


def cli() -> NoReturn:
    """The console command."""
    run_cli(main)


if __name__ == "__main__":
    cli()

"""Scores answers about music, and shows how much of each score comes from listening.

    python -m mlingo_jax.evaluate --answers FILE --output DIR

Each score stands beside its floor, the same answers dealt to other clips, and the gap between the two.
Writes report.json, report.md, figures and the answers to DIR; run again, it does only what is missing.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mlingo_jax.cli import run_cli


def main(argv: Sequence[str] | None = None) -> None:
    """argv: the command line; by default the process's own."""
    arguments = parser().parse_args(argv)
    # Imported late: --help and mistakes on the command line need none of the numerical libraries.
    from mlingo_jax.evaluation.formats import read_file
    from mlingo_jax.evaluation.joining import read_references, with_references
    from mlingo_jax.evaluation.markdown import tables
    from mlingo_jax.evaluation.resources import Resources
    from mlingo_jax.evaluation.run import evaluate_answers
    from mlingo_jax.files import exclusive_lock

    folder: Path = arguments.output
    references = read_references(arguments.data, arguments.data_dir) if arguments.data else None
    training = read_references(arguments.training, arguments.data_dir) if arguments.training else []
    examples = with_references(read_file(arguments.answers), references, arguments.partial, arguments.most)
    resources = Resources(arguments.nltk_data, arguments.bert_score, arguments.bert_score_layers)
    name = arguments.name or arguments.answers.stem
    with exclusive_lock(
        folder / ".lock", f"{folder}: another process is evaluating there; wait for it, or give another --output"
    ):
        report = evaluate_answers(folder, name, examples, resources, training)
    print("\n".join(tables(report)))
    print(f"\nRead {folder / 'report.md'}", file=sys.stderr)


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
    answers("--name", help="what the report calls the system (default: the file's name)")
    made.add_argument("--output", required=True, type=Path, metavar="DIR", help="the report's folder")
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
    return made


if __name__ == "__main__":
    run_cli(main)

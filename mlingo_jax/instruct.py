"""Makes instruction data: `python -m mlingo_jax.instruct SOURCE --output FOLDER --endpoint URL --model NAME`."""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import NoReturn, get_args

from mlingo_jax.cli import Parser, require_positive, run_cli
from mlingo_jax.errors import UserError
from mlingo_jax.files import sha256_of
from mlingo_jax.instruction.conversations import Plan
from mlingo_jax.instruction.endpoint import Place, chat_url
from mlingo_jax.instruction.filters.vocabulary import load_vocabulary
from mlingo_jax.instruction.pairs import Use
from mlingo_jax.instruction.recipes import BUILT_IN, load_recipe
from mlingo_jax.instruction.report import Origin, Prices, table
from mlingo_jax.instruction.requests import Role
from mlingo_jax.instruction.run import (
    Clips,
    Limits,
    ask,
    finish,
    read_batches,
    sole_command,
    write_batches,
)
from mlingo_jax.instruction.selection import KNOWN_SETS, choose, make_selection
from mlingo_jax.instruction.sources import read_sources
from mlingo_jax.models.mert_config import SAMPLE_RATE

_STRUCTURED = ("auto", "schema", "object", "text")


def main() -> None:
    """The command."""
    arguments = _parser().parse_args()
    _require_sound(arguments)
    _require_extra()
    plan, clips = _plan(arguments), _clips(arguments)
    if plan.recipe.warning:
        _say(f"warning: {plan.recipe.warning}")
    with sole_command(arguments.output):
        if arguments.batch is None:
            _ask(arguments, plan, clips)
            if arguments.estimate:
                return
        elif not _batch(arguments, plan, clips):
            return
        origin = _origin(arguments, plan, clips)
        prices = Prices(arguments.price_in, arguments.price_out)
        print(table(finish(clips, plan, origin, arguments.output, prices, arguments.sampling_rate)))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m mlingo_jax.instruct",
        description="Makes questions and answers about music from captions or tags, with any language model that "
        "speaks OpenAI's chat completions, checks them, and tells what came of it. Started again, it goes on: what was "
        "answered is never asked twice.",
        epilog="docs/instruct.md has the whole way, and docs/recipes.md whole training sets.",
    )
    _add_what(parser)
    _add_model(parser.add_argument_group("the language model"))
    _add_checks(parser.add_argument_group("checks"))
    _add_cost(parser.add_argument_group("cost and speed"))
    return parser


def _add_what(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "source",
        metavar="SOURCE",
        help="captions or tags: a csv, tsv, json, jsonl or parquet file, or, with --data_dir, a prepared dataset",
    )
    add("--output", type=Path, required=True, metavar="FOLDER", help="where everything goes, the replies included")
    add("--recipe", default="both", metavar="NAME", help=f"{', '.join(BUILT_IN)}, or a toml file (default %(default)s)")
    add("--tasks", default="", metavar="A,B", help="only these tasks of the recipe")
    add("--use", choices=get_args(Use), help="show the model captions, tags or all (default: as the recipe says)")
    add("--fields", default="", metavar="A,B", help="further columns of the source that tell properties of the audio")
    add("--data_dir", type=Path, metavar="FOLDER", help="of prepared datasets")
    add(
        "--exclude",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="clips to leave out: a text file of ids, or a table of clips (its evaluation splits, if it tells splits)",
    )
    add(
        "--keep",
        nargs="+",
        choices=tuple(KNOWN_SETS),
        default=[],
        metavar="SET",
        help="do not leave these known evaluation clips out: " + "; ".join(f"{n}, {s}" for n, s in KNOWN_SETS.items()),
    )
    add("--limit", type=int, metavar="N", help="only so many clips, drawn by the seed")
    add("--seed", type=int, default=0, help="of every request and draw (default %(default)s)")
    add(
        "--sampling_rate",
        type=int,
        default=SAMPLE_RATE,
        metavar="HZ",
        help="that MusicInstruct's files tell of .npy audio, where the source does not (default %(default)s)",
    )
    add("--licence", default="other", help="of the source, for the dataset's card, as cc-by-sa-4.0")


def _add_model(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add("--endpoint", metavar="URL", help="of the server, as http://localhost:8000/v1; not needed when all is answered")
    add("--model", required=True, metavar="NAME", help="as the server calls it")
    add(
        "--key_env",
        default="OPENAI_API_KEY",
        metavar="NAME",
        help="environment variable that holds the key, if the server wants one (default %(default)s)",
    )
    add(
        "--structured",
        choices=_STRUCTURED,
        default="auto",
        help="how replies get their form: by a JSON schema, as any JSON object, by the prompt's text alone, or as the "
        "server can (default %(default)s)",
    )
    add("--temperature", type=float, help="of what is written (default: as the recipe says)")
    add(
        "--batch",
        nargs=2,
        metavar=("write|read", "FILE"),
        help="do not ask a server: write requests to a batch file, or read a file of results",
    )


def _add_checks(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add("--judge_model", metavar="NAME", help="that judges the pairs (default: the same)")
    add("--judge_endpoint", metavar="URL", help="where it is (default: the same)")
    add("--judge_key_env", metavar="NAME", help="environment variable of its key (default: the same)")
    add("--no_judge", action="store_true", help="let no model judge the pairs")
    add(
        "--blind_check",
        action="store_true",
        help="also ask the model each question without the source, and leave out what it answers all the same",
    )


def _add_cost(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add("--price_in", type=float, metavar="MONEY", help="of a million tokens of prompts")
    add("--price_out", type=float, metavar="MONEY", help="of a million tokens of replies")
    add("--max_cost", type=float, metavar="MONEY", help="stop after the sample if the whole would cost more")
    add("--estimate", action="store_true", help="ask about the sample of ten clips, say what the whole costs, and stop")
    add("--concurrency", type=int, default=16, metavar="N", help="requests at once (default %(default)s)")
    add("--timeout", type=float, default=300.0, metavar="SECONDS", help="for a reply (default %(default)s)")
    add("--tries", type=int, default=8, metavar="N", help="of a request that fails (default %(default)s)")


def _require_sound(arguments: argparse.Namespace) -> None:
    require_positive(arguments, "concurrency", "tries", "limit", "sampling_rate", "timeout")
    if arguments.batch is not None and arguments.batch[0] not in ("write", "read"):
        raise UserError(f"--batch: expected `write FILE` or `read FILE`, found {arguments.batch[0]!r}")
    if arguments.max_cost is not None and arguments.price_in is None and arguments.price_out is None:
        raise UserError("--max_cost needs prices: give --price_in and --price_out")


def _require_extra() -> None:
    missing = [name for name in ("datasketch", "httpx2") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"making data needs {' and '.join(missing)}; install by `pip install mlingo_jax[instruct]`")


def _plan(arguments: argparse.Namespace) -> Plan:
    return Plan(
        recipe=load_recipe(arguments.recipe, tuple(filter(None, arguments.tasks.split(",")))),
        model=arguments.model,
        judge="" if arguments.no_judge else arguments.judge_model or arguments.model,
        vocabulary=load_vocabulary(),
        blind=arguments.blind_check,
        seed=arguments.seed,
        use=arguments.use,
        temperature=arguments.temperature,
    )


def _clips(arguments: argparse.Namespace) -> Clips:
    fields = tuple(filter(None, arguments.fields.split(",")))
    selection = make_selection(arguments.source, arguments.exclude, arguments.keep)
    read, splits, excluded = choose(
        lambda: read_sources(arguments.source, data_dir=arguments.data_dir, fields=fields),
        selection,
        arguments.limit,
        arguments.seed,
    )
    clips = Clips(read, splits, excluded)
    if not clips.count:
        left = ", ".join(f"{name} {count:,}" for name, count in excluded.items())
        raise UserError(f"{arguments.source}: no clip to ask about{f' (left out: {left})' if left else ''}")
    return clips


def _ask(arguments: argparse.Namespace, plan: Plan, clips: Clips) -> None:
    places: dict[Role, Place] = {}
    if arguments.endpoint:
        place = Place(chat_url(arguments.endpoint), arguments.key_env, arguments.structured)
        judge = Place(
            chat_url(arguments.judge_endpoint or arguments.endpoint),
            arguments.judge_key_env or arguments.key_env,
            arguments.structured,
        )
        places = {"write": place, "blind": place, "judge": judge}
    limits = Limits(arguments.concurrency, arguments.timeout, arguments.tries, arguments.max_cost)
    prices = Prices(arguments.price_in, arguments.price_out)
    ask(clips, plan, places, arguments.output, prices, limits, estimate=arguments.estimate, say=_say)


def _batch(arguments: argparse.Namespace, plan: Plan, clips: Clips) -> bool:
    """Whether all is answered, so that the result can be written."""
    action, file = arguments.batch[0], Path(arguments.batch[1])
    if action == "write":
        print(write_batches(clips, plan, arguments.output, file, arguments.structured))
        return False
    said, done = read_batches(clips, plan, arguments.output, file, arguments.structured)
    print(said)
    return done


def _origin(arguments: argparse.Namespace, plan: Plan, clips: Clips) -> Origin:
    path = Path(arguments.source)
    return Origin(
        source=path.name if path.is_file() else arguments.source,
        digest=sha256_of(path) if path.is_file() else "",
        licence=arguments.licence,
        model=plan.model,
        judge=plan.judge,
        blind=plan.blind,
        seed=plan.seed,
        recipe=plan.recipe,
        excluded=clips.excluded,
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cli() -> NoReturn:
    """The console command."""
    run_cli(main)


if __name__ == "__main__":
    cli()

"""Asks questions about audio files: `python -m mlingo_jax.caption FILES_OR_FOLDERS --question ... --output out.jsonl`.

One line of JSON, or row of Parquet, per file and question: file, question, answer, finish_reason (stop, eos, length),
seconds of audio; or file, question and error for a file that cannot be read, while the rest continues. Started again,
it resumes where it stopped. Exits with 1 if more than --max_bad_fraction of the files cannot be read.

Several processes take files from one common order, each on all of its devices; the first one writes all answers.
"""

import argparse
import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mlingo_jax.cli import Parser, run_cli
from mlingo_jax.errors import UserError
from mlingo_jax.wording import counted

if TYPE_CHECKING:
    from mlingo_jax.api import MusiLingo
    from mlingo_jax.captioning.catalogue import Totals
    from mlingo_jax.captioning.plan import Plan
    from mlingo_jax.captioning.tracks import Tracks

DEMO = Path("runs/demo")
# How the reference implementation's two scripts draw; top_k is the default of its transformers.
LIKE: dict[str, dict[str, Any]] = {
    "qa": {"temperature": 0.1, "top_k": 50, "top_p": 0.5},
    "demo": {"temperature": 1.0, "top_k": 50, "top_p": 0.9},
}


def main() -> int:
    """The command; its exit status."""
    arguments = _parse()
    from mlingo_jax.captioning.catalogue import Sidecars, answer_catalogue
    from mlingo_jax.inference.answer_file import check_output
    from mlingo_jax.processes import broadcast, initialize, is_primary

    initialize()
    plan = _plan(arguments)
    tracks, left_out = _tracks(arguments) if is_primary() else (None, "")
    if is_primary() and arguments.output.suffix != ".parquet":
        check_output(arguments.output)
    model = _load(arguments)
    sidecars = Sidecars(arguments.overwrite_sidecars) if arguments.sidecar or arguments.overwrite_sidecars else None
    with contextlib.ExitStack() as stack:
        output = None if tracks is None else stack.enter_context(_output(arguments, tracks, plan, model))
        totals = answer_catalogue(model, tracks, plan, output, rows=arguments.rows, sidecars=sidecars)
    if tracks is not None:
        print(*filter(None, (_said(arguments.output, totals), left_out)), sep="\n", file=sys.stderr)
    return broadcast(1 if totals.failed > arguments.max_bad_fraction * totals.files else 0)


def _plan(arguments: argparse.Namespace) -> "Plan":
    """What is asked, checked."""
    from mlingo_jax.captioning.plan import Plan
    from mlingo_jax.inference.generate import Options

    options = Options(
        arguments.max_new_tokens, arguments.temperature, arguments.top_k, arguments.top_p, arguments.num_beams
    )
    questions = list(arguments.question or ())
    if arguments.questions:
        questions += _read_questions(arguments.questions)
    fields = _fields(arguments)
    checks = {
        "--question, --questions or --fields": (bool(questions or fields), "nothing", "something to ask"),
        "rows": (arguments.rows is None or arguments.rows >= 1, arguments.rows, "at least 1"),
        "sections": (arguments.sections is None or arguments.sections > 0, arguments.sections, "seconds above 0"),
        "max_bad_fraction": (0 <= arguments.max_bad_fraction <= 1, arguments.max_bad_fraction, "from 0 to 1"),
        "least_likely": (0 <= arguments.least_likely <= 1, arguments.least_likely, "from 0 to 1"),
        "summary": (not arguments.summary or arguments.sections is not None, "given", "--sections with it"),
        "fields": (not fields or options.num_beams == 1, "given with beams", "--num_beams 1: beams tell no likelihood"),
    }
    for name, (holds, found, expected) in checks.items():
        if not holds:
            raise UserError(f"{name} is {found}; expected {expected}")
    return Plan(
        questions=tuple(dict.fromkeys(questions)),
        fields=tuple(fields.items()),
        least_likely=arguments.least_likely,
        sections=arguments.sections,
        summary=arguments.summary,
        options=options,
        seed=arguments.seed,
    )


def _read_questions(file: Path) -> list[str]:
    try:
        found = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as questions, one a line ({error})") from error
    if not found:
        raise UserError(f"{file}: holds no question; give one a line")
    return found


def _fields(arguments: argparse.Namespace) -> dict[str, str]:
    """The short questions by the fields' names."""
    from mlingo_jax.captioning.plan import FIELD_QUESTIONS

    fields: dict[str, str] = {}
    for name in filter(None, (arguments.fields or "").split(",")):
        if name not in FIELD_QUESTIONS:
            raise UserError(
                f"--fields: no question is known for {name!r}, only for {', '.join(FIELD_QUESTIONS)}; give "
                f"--field '{name}=QUESTION'"
            )
        fields[name] = FIELD_QUESTIONS[name]
    for given in arguments.field or ():
        name, equals, question = given.partition("=")
        if not (name and equals and question):
            raise UserError(f"--field {given!r}: expected NAME=QUESTION")
        fields[name] = question
    return fields


def _tracks(arguments: argparse.Namespace) -> "tuple[Tracks, str]":
    """The files to ask about, and what was left out of folders, in words."""
    from mlingo_jax.captioning.tracks import Files, read_list
    from mlingo_jax.data.search import find_audio

    if bool(arguments.paths) == bool(arguments.files):
        raise UserError("give audio files or folders, or a list of them with --files: one of the two")
    if arguments.files:
        return read_list(arguments.files, arguments.path_column, arguments.id_column), ""
    found = find_audio(arguments.paths)
    return Files(found.files), found.left_out()


@contextlib.contextmanager
def _output(arguments: argparse.Namespace, tracks: "Tracks", plan: "Plan", model: "MusiLingo"):
    """The file or folder of answers, this process's alone."""
    from mlingo_jax.captioning.catalogue import asked
    from mlingo_jax.captioning.parquet_file import ParquetAnswers
    from mlingo_jax.files import exclusive_lock
    from mlingo_jax.inference.answer_file import AnswerFile

    path, settings = arguments.output, _settings(model, plan)
    busy = f"{path}: another process is writing to it; wait for it, or give another --output"
    with exclusive_lock(path.with_name(f".{path.name}.lock"), busy):
        if path.suffix == ".parquet":
            names, sections = [name for name, _ in plan.fields], plan.sections is not None
            output = ParquetAnswers(path, settings, asked(tracks, plan), fields=names, sections=sections)
        else:
            output = AnswerFile(path, settings, asked(tracks, plan))
        with output:
            yield output


def _said(output: Path, totals: "Totals") -> str:
    answered = f"{totals.files - totals.failed} of {counted(totals.files, 'file')} answered"
    already = f", {totals.before} of them before" if totals.before else ""
    errors = f"; {totals.failed} cannot be read: see the lines with an error" if totals.failed else ""
    left = totals.sidecars_left
    texts = f"; {counted(left, 'other text file')} left alone (--overwrite_sidecars replaces)" if left else ""
    return f"{output}: {answered}{already}{errors}{texts}"


def _parse() -> argparse.Namespace:
    """The options; those of `--like` where they are not given."""
    parser = _parser()
    like = parser.parse_args().like
    parser.set_defaults(**LIKE.get(like, {}))
    return parser.parse_args()


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m mlingo_jax.caption",
        description="Asks questions about audio files and writes the answers. Started again, it resumes.",
    )
    add = parser.add_argument_group("what is asked").add_argument
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="FILES_OR_FOLDERS",
        help="audio files; folders are searched at all levels, by extension; what a file is, its content says",
    )
    add("--question", action="append", help="what to ask about each file; may be given again and again")
    add("--questions", type=Path, metavar="FILE", help="a text file of questions, one a line")
    add("--fields", metavar="NAMES", help="short questions that make one object a file: genre,tempo,key,mood,...")
    add("--field", action="append", metavar="NAME=QUESTION", help="a field with a question of your own")
    add("--least_likely", type=float, default=0.0, metavar="P", help="fields of a lower likelihood are null")
    add("--sections", type=float, metavar="SECONDS", help="ask about successive windows of each file")
    add("--summary", action="store_true", help="with --sections: one answer for the whole, made of the sections'")
    add = parser.add_argument_group("files").add_argument
    add("--files", type=Path, metavar="LIST", help="a list of files: text, one (or ID<tab>FILE) a line, or Parquet")
    add("--path_column", default="path", help="of a Parquet list (default %(default)s)")
    add("--id_column", help="of a Parquet list; ids come with the answers")
    add("--output", required=True, type=Path, metavar="OUT", help="answers are appended to OUT.jsonl or OUT.parquet")
    add("--sidecar", action="store_true", help="also write song.txt beside song.mp3; other texts there are left alone")
    add("--overwrite_sidecars", action="store_true", help="write it over them")
    add("--max_bad_fraction", type=float, default=0.0, help="exit with 0 if no more files cannot be read (default 0)")
    add = parser.add_argument_group("model").add_argument
    add("--adapter", help=f"a training run's folder, MusiLingo folder or .pth; by default {DEMO} if that is there")
    add("--mert", help="the encoder: a folder or hub id; by default the adapter's own")
    add("--llm", help="the language model: a folder or hub id; by default the adapter's own")
    add("--dtype", choices=("bfloat16", "float32"), help="by default float32 on a CPU, bfloat16 elsewhere")
    add("--resampling", choices=("soxr", "sinc_hann"), help="of audio: by soxr, or exactly as torchaudio does")
    add("--mixdown", choices=("mean", "left"), default="mean", help="of several channels: their mean, or the first one")
    add("--quantization", choices=("none", "int8", "int4"), help="of the language model; by default the adapter's own")
    add(
        "--rows",
        "--batch_size",
        type=int,
        help="answers written at once, by default what the memory holds; no answer depends on it",
    )
    add = parser.add_argument_group("answers").add_argument
    add("--max_new_tokens", type=int, default=300, help="an answer's greatest length (default %(default)s)")
    add(
        "--like",
        choices=tuple(LIKE),
        help="draw as MusiLingo's own qa.py (temperature 0.1, top_k 50, top_p 0.5) or its demo (1, 50, 0.9)",
    )
    add("--temperature", type=float, default=0.0, help="0, the default: the most probable token; above, one is drawn")
    add("--top_k", type=int, help="draw from the k most probable tokens only")
    add("--top_p", type=float, help="draw from the smallest set of tokens that holds this probability")
    add("--num_beams", type=int, default=1, help="above 1, beam search (default %(default)s)")
    add("--seed", type=int, default=0, help="of the draws (default %(default)s)")
    return parser


def _load(arguments: argparse.Namespace) -> "MusiLingo":
    adapter = arguments.adapter
    if adapter is None:
        if not (DEMO / "run.json").is_file():
            raise UserError(
                f"no --adapter given, and there is no {DEMO} here; give a training run's folder or a MusiLingo .pth or "
                "folder, or make the demo's with `python -m mlingo_jax.train --config=demo`"
            )
        adapter = str(DEMO)
    print(f"model: {adapter}", file=sys.stderr)
    import jax

    import mlingo_jax
    from mlingo_jax.training.sharding import local_mesh

    dtype = arguments.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    # One row of an answer needs one device: all that this process has share the rows out.
    mesh = local_mesh() if jax.local_device_count() > 1 else None
    towers = {"mert": arguments.mert, "llm": arguments.llm, "quantization": arguments.quantization}
    decoding = {"mixdown": arguments.mixdown, "resampling": arguments.resampling}
    return mlingo_jax.load(**towers, **decoding, adapter=adapter, dtype=dtype, mesh=mesh)


def _settings(model: "MusiLingo", plan: "Plan") -> dict[str, Any]:
    """All that an answer depends on, for the output's settings file; more questions may be asked later."""
    from mlingo_jax.weights.checksum import weights_checksum

    return {
        "mert": weights_checksum(model.encoder.params),
        "llm": model.llm.identity["weights"],
        "adapter": weights_checksum(model.adapter),
        "dtype": model.llm.identity["dtype"],
        "frames_per_token": model.encoder.frames_per_token,
        "mixdown": None if model.encoder.audio.mixdown == "mean" else model.encoder.audio.mixdown,
        "resampling": None if model.encoder.audio.resampling == "soxr" else model.encoder.audio.resampling,
        "prompt": dataclasses.asdict(model.prompt.settings),
        **dataclasses.asdict(plan.options),
        "seed": plan.seed if plan.options.temperature > 0 else None,
        "fields": dict(plan.fields),
        "least_likely": plan.least_likely,
        "sections": plan.sections,
        "summary": plan.summary,
    }


def cli() -> NoReturn:
    """The console command."""
    run_cli(main)


if __name__ == "__main__":
    cli()

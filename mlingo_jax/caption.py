"""Asks a question about audio files: `python -m mlingo_jax.caption FILES_OR_FOLDERS --question ... --output out.jsonl`.

One line of JSON per file: file, question, answer, finish_reason (stop, eos, length), seconds of audio; or file,
question and error for a file that cannot be read, while the rest continues. Started again, it resumes where it stopped.
Exits with 0 if every file is answered, with 1 if one cannot be read.

Several processes deal the files out; each answers its own on its own device, the first one writes all answers.
"""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tqdm import tqdm

from mlingo_jax.cli import run_cli
from mlingo_jax.errors import UserError
from mlingo_jax.wording import counted

if TYPE_CHECKING:
    from mlingo_jax.api import MusiLingo
    from mlingo_jax.data.stored import Waveform
    from mlingo_jax.inference.answer_file import AnswerFile
    from mlingo_jax.inference.generate import Options

DEMO = Path("runs/demo")
# How the reference implementation's two scripts draw; top_k is the default of its transformers.
LIKE: dict[str, dict[str, Any]] = {
    "qa": {"temperature": 0.1, "top_k": 50, "top_p": 0.5},
    "demo": {"temperature": 1.0, "top_k": 50, "top_p": 0.9},
}


def main() -> int:
    arguments = _parse()
    from mlingo_jax.data.search import find_audio
    from mlingo_jax.files import exclusive_lock
    from mlingo_jax.inference.answer_file import AnswerFile, check_output
    from mlingo_jax.inference.generate import Options
    from mlingo_jax.processes import broadcast, initialize, is_primary

    initialize()
    options = Options(
        arguments.max_new_tokens, arguments.temperature, arguments.top_k, arguments.top_p, arguments.num_beams
    )
    if arguments.batch_size < 1:
        raise UserError(f"batch_size is {arguments.batch_size}; expected at least 1")
    # What the first process finds holds for all: a folder can change meanwhile.
    found = find_audio(arguments.paths)
    files = broadcast(found.files)
    if is_primary():
        check_output(arguments.output)
    model = _load(arguments)
    asked = {(file, arguments.question) for file in files}
    lock = arguments.output.with_name(f".{arguments.output.name}.lock")
    with contextlib.ExitStack() as stack:
        output, todo = None, []
        if is_primary():
            busy = f"{arguments.output}: another process is writing to it; wait for it, or give another --output"
            stack.enter_context(exclusive_lock(lock, busy))
            settings = _settings(model, options, arguments.seed)
            output = stack.enter_context(AnswerFile(arguments.output, settings, asked))
            todo = [file for file in files if (file, arguments.question) not in output.done]
        todo = broadcast(todo)
        failed = caption(model, todo, arguments.question, options, arguments.seed, arguments.batch_size, output)
    if output is None:
        return 1 if failed else 0
    answered = f"{len(files) - failed} of {counted(len(files), 'file')} answered"
    already = f", {len(files) - len(todo)} of them before" if len(todo) < len(files) else ""
    errors = f"; {failed} cannot be read: see the lines with an error" if failed else ""
    print(f"{arguments.output}: {answered}{already}{errors}", file=sys.stderr)
    if left_out := found.left_out():
        print(left_out, file=sys.stderr)
    return 1 if failed else 0


def caption(
    model: "MusiLingo",
    files: Sequence[str],
    question: str,
    options: "Options",
    seed: int,
    batch_size: int,
    output: "AnswerFile | None",
) -> int:
    """Writes a line for each file, in their order; audio is decoded ahead while the model works.

    Of several processes each answers a batch at a time, and the one with the output writes them all.

    Returns the number of files that cannot be read.
    """
    import jax

    from mlingo_jax.data.stored import read_ahead
    from mlingo_jax.processes import all_gather

    shares = deal(files, batch_size, jax.process_index(), jax.process_count())
    own = {file: Path(file) for share in shares for file in share}
    waveforms = read_ahead(own, model.encoder.audio, model.encoder.config.receptive_field)
    failed = 0
    with tqdm(total=len(files), desc="answering", unit="file", disable=True if output is None else None) as bar:
        for share in shares:
            answers = _answer(model, list(islice(waveforms, len(share))), question, options, seed)
            lines = list(chain.from_iterable(all_gather(answers)))
            if output is not None:
                for line in lines:
                    output.write(line)
            failed += sum("error" in line for line in lines)
            bar.update(len(lines))
    return failed


def deal(files: Sequence[str], batch_size: int, process: int, processes: int) -> list[Sequence[str]]:
    """A process's batches: all take one after the other, in the files' order; of the last ones some are empty."""
    starts = range(process * batch_size, len(files) + process * batch_size, processes * batch_size)
    return [files[start : start + batch_size] for start in starts]


def _answer(
    model: "MusiLingo",
    batch: "Sequence[tuple[str, Waveform | UserError]]",
    question: str,
    options: "Options",
    seed: int,
) -> list[dict[str, Any]]:
    """The lines of a batch of files, each an answer or the reason why there is none."""
    rate = model.encoder.audio.sample_rate
    encoded = {file: (waveform, rate) for file, waveform in batch if not isinstance(waveform, UserError)}
    answers = model.generate(list(encoded.values()), question, options, seed=seed) if encoded else []
    by_file = dict(zip(encoded, answers, strict=True))
    lines = []
    for file, waveform in batch:
        line: dict[str, Any] = {"file": file, "question": question}
        if isinstance(waveform, UserError):
            line["error"] = str(waveform)
        else:
            line["answer"] = by_file[file].text
            line["finish_reason"] = by_file[file].finish_reason
            line["seconds"] = round(len(waveform) / rate, 3)
        lines.append(line)
    return lines


def _parse() -> argparse.Namespace:
    """The options; those of `--like` where they are not given."""
    parser = _parser()
    like = parser.parse_args().like
    parser.set_defaults(**LIKE.get(like, {}))
    return parser.parse_args()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mlingo_jax.caption",
        description="Asks a question about audio files and writes the answers as jsonl. Started again, it resumes.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "paths",
        nargs="+",
        metavar="FILES_OR_FOLDERS",
        help="audio files; folders are searched at all levels, by extension; what a file is, its content says",
    )
    add("--question", required=True, help="what to ask about each file")
    add("--output", required=True, type=Path, metavar="OUT.jsonl", help="one line per file is appended here")
    add("--adapter", help=f"a training run's folder, MusiLingo folder or .pth; by default {DEMO} if that is there")
    add("--mert", help="the encoder: a folder or hub id; by default the adapter's own")
    add("--llm", help="the language model: a folder or hub id; by default the adapter's own")
    add("--dtype", choices=("bfloat16", "float32"), help="by default float32 on a CPU, bfloat16 elsewhere")
    add("--resampling", choices=("soxr", "sinc_hann"), help="of audio: by soxr, or exactly as torchaudio does")
    add("--quantization", choices=("none", "int8", "int4"), help="of the language model; by default the adapter's own")
    add("--mixdown", choices=("mean", "left"), default="mean", help="of several channels: their mean, or the first one")
    add(
        "--batch_size",
        type=int,
        default=8,
        help="files answered at once (default %(default)s); no answer depends on it",
    )
    add("--max_new_tokens", type=int, default=300, help="an answer's greatest length (default %(default)s)")
    add(
        "--like",
        choices=tuple(LIKE),
        help="draw as MusiLingo's own qa.py (temperature 0.1, top_k 50, top_p 0.5) or its demo (1, 50, 0.9)",
    )
    add(
        "--temperature",
        type=float,
        default=0.0,
        help="0, the default, takes the most probable token; above, one is drawn",
    )
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

    dtype = arguments.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    towers = {"mert": arguments.mert, "llm": arguments.llm, "quantization": arguments.quantization}
    decoding = {"mixdown": arguments.mixdown, "resampling": arguments.resampling}
    return mlingo_jax.load(**towers, **decoding, adapter=adapter, dtype=dtype)


def _settings(model: "MusiLingo", options: "Options", seed: int) -> dict[str, Any]:
    """All that the answers depend on, for the output's settings file."""
    from mlingo_jax.weights.checksum import weights_checksum

    return {
        "mert": weights_checksum(model.encoder.params),
        "llm": weights_checksum(model.llm.params),
        "adapter": weights_checksum(model.adapter),
        "dtype": model.llm.identity["dtype"],
        "frames_per_token": model.encoder.frames_per_token,
        "mixdown": None if model.encoder.audio.mixdown == "mean" else model.encoder.audio.mixdown,
        "resampling": None if model.encoder.audio.resampling == "soxr" else model.encoder.audio.resampling,
        "prompt": dataclasses.asdict(model.prompt.settings),
        **dataclasses.asdict(options),
        "seed": seed if options.temperature > 0 else None,
    }


def cli() -> NoReturn:
    """The console command."""
    run_cli(main)


if __name__ == "__main__":
    cli()

"""Prepares datasets: `python -m mlingo_jax.prepare DATASET --annotations ... --audio ... --data_dir ...`."""

import argparse
import shlex
from pathlib import Path
from typing import NoReturn

from mlingo_jax.cli import Parser, require_positive, run_cli
from mlingo_jax.datasets.build import Options, build
from mlingo_jax.datasets.builders import DATASETS
from mlingo_jax.datasets.examples import Examples
from mlingo_jax.datasets.music_caps import MusicCaps
from mlingo_jax.datasets.report import reports_folder
from mlingo_jax.errors import UserError
from mlingo_jax.flags import check
from mlingo_jax.models.mert_config import SAMPLE_RATE
from mlingo_jax.settings import DTYPES, MIXDOWNS, RESAMPLINGS, AdapterSettings, Config, DataConfig, EncoderConfig


def main() -> None:
    """The command."""
    from absl import logging

    # TFDS warns of every config that is not in its own list.
    logging.set_verbosity(logging.ERROR)
    arguments = _parser().parse_args()
    arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m mlingo_jax.prepare",
        description="Checks and builds datasets. Started again, it resumes; what is there already is not rebuilt.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for dataset in DATASETS:
        command = commands.add_parser(dataset.name, help=_first_line(dataset))
        command.set_defaults(run=_build, dataset=dataset)
        _add_build_options(command, dataset)
    _add_fetch(commands)
    _add_midi(commands)
    _add_features(commands)
    return parser


def _add_build_options(command: argparse.ArgumentParser, dataset: type[Examples]) -> None:
    add = command.add_argument
    add(
        "--annotations",
        nargs="+",
        required=True,
        type=Path,
        metavar="PATH",
        help="the dataset's files, or their folder",
    )
    audio = command.add_mutually_exclusive_group()
    audio.add_argument(
        "--audio",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="where the clips are, at any depth; by default beside the annotations",
    )
    audio.add_argument("--clips", metavar="NAME", help="take the clips of a dataset prepared before, as music_caps")
    add("--data_dir", required=True, type=Path, help="where the records go")
    if dataset.configs is None:
        add("--config", help=f"a name for this collection (default {dataset.default_config})")
    elif dataset.configs:
        default = dataset.default_config
        add(
            "--config",
            choices=dataset.configs,
            required=default is None,
            help="which part" + (f" (default {default})" if default else ""),
        )
    add(
        "--min_share",
        type=float,
        default=0.0,
        help="stop if less than this share of the clips is usable (default: go on)",
    )
    add(
        "--length_tolerance",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="how far a clip's length may be from its annotation's (default %(default)s)",
    )
    add("--workers", type=int, help="threads (default: one for each core); the records do not depend on it")
    add("--beam", metavar="OPTIONS", help='build as a Beam pipeline, with these options, as "--runner=DirectRunner"')


def _build(arguments: argparse.Namespace) -> None:
    if not 0 <= arguments.min_share <= 1:
        raise UserError(f"--min_share: expected a share between 0 and 1, found {arguments.min_share:g}")
    if arguments.length_tolerance < 0:
        raise UserError(f"--length_tolerance: expected at least 0 seconds, found {arguments.length_tolerance:g}")
    if arguments.workers is not None and arguments.workers < 1:
        raise UserError(f"--workers: expected at least 1, found {arguments.workers}")
    workers = {} if arguments.workers is None else {"workers": arguments.workers}
    options = Options(
        min_share=arguments.min_share,
        tolerance=arguments.length_tolerance,
        beam=None if arguments.beam is None else tuple(shlex.split(arguments.beam)),
        **workers,
    )
    beside = [path if path.is_dir() else path.parent for path in arguments.annotations]
    report = build(
        arguments.dataset,
        arguments.annotations,
        arguments.clips or arguments.audio or list(dict.fromkeys(beside)),
        arguments.data_dir,
        config=getattr(arguments, "config", None),
        options=options,
    )
    print(report.table())
    if report.clips["there"] < report.wanted:
        print(f"which clips are not used, and why: {reports_folder(arguments.data_dir, report.dataset)}")


def _add_fetch(commands: argparse._SubParsersAction) -> None:
    fetch = commands.add_parser("fetch", help="gets the clips of music_caps that are still public")
    add = fetch.add_argument
    add("dataset", choices=("music_caps",))
    add("--annotations", nargs="+", required=True, type=Path, metavar="PATH", help="musiccaps-public.csv")
    add("--audio", required=True, type=Path, metavar="FOLDER", help="where the clips go, as ID.flac")
    add("--jobs", type=int, default=2, help="clips at once (default %(default)s)")
    add("--pause", type=float, default=1.0, help="seconds that each of these waits between clips (default %(default)s)")
    add("--rate", type=float, default=4.0, help="the most megabytes a second of each of these (default %(default)s)")
    add("--retry", action="store_true", help="try again what failed before")
    add(
        "--url",
        default="https://www.youtube.com/watch?v={id}",
        help="where a clip's recording is (default %(default)s)",
    )
    fetch.set_defaults(run=_fetch)


def _fetch(arguments: argparse.Namespace) -> None:
    from mlingo_jax.datasets.fetch import Limits, fetch

    if arguments.jobs < 1 or arguments.pause < 0 or arguments.rate <= 0:
        raise UserError("--jobs must be at least 1, --pause at least 0, --rate above 0")
    limits = Limits(jobs=arguments.jobs, pause=arguments.pause, bytes_per_second=arguments.rate * 1e6)
    annotations = MusicCaps(annotations=arguments.annotations).annotations()
    counts = fetch(annotations, arguments.audio, arguments.url, limits, retry=arguments.retry)
    print(counts.table())


def _add_midi(commands: argparse._SubParsersAction) -> None:
    midi = commands.add_parser("midi", help="renders MIDI files to clips whose truth is known")
    add = midi.add_argument
    add("files", nargs="+", type=Path, metavar="PATH", help="MIDI files, or folders of them")
    add("--soundfont", required=True, type=Path, metavar="FILE", help="of sf2 or sf3")
    add("--output", required=True, type=Path, metavar="FOLDER", help="where clips, midi.jsonl and manifest.jsonl go")
    add("--captions", type=Path, metavar="FILE", help="MidiCaps' train.json: only the files that it names")
    add("--seconds", type=float, default=30.0, help="of a clip (default %(default)s)")
    add("--clips_per_file", type=int, default=1, metavar="N", help="at most, from its start on (default %(default)s)")
    add("--rate", type=int, default=SAMPLE_RATE, metavar="HZ", help="of the audio (default %(default)s)")
    add("--workers", type=int, default=2, help="files at once (default %(default)s)")
    midi.set_defaults(run=_midi)


def _midi(arguments: argparse.Namespace) -> None:
    from mlingo_jax.data.midi import Rendering, render_all

    require_positive(arguments, "seconds", "clips_per_file", "rate", "workers")
    how = Rendering(arguments.soundfont, arguments.seconds, arguments.clips_per_file, arguments.rate)
    print(render_all(arguments.files, arguments.captions, arguments.output, how, arguments.workers).table())


def _add_features(commands: argparse._SubParsersAction) -> None:
    features = commands.add_parser("features", help="encodes every clip of a prepared dataset once, for all later runs")
    defaults = Config()
    add = features.add_argument
    add("dataset", help="as it was prepared, with its config: music_caps, music_instruct/short")
    add("--mert", required=True, metavar="PATH", help="the encoder, a folder or a hub id")
    add("--data_dir", default=defaults.data.data_dir, help="where the records are (default %(default)s)")
    add("--features", default="", metavar="FOLDER", help="where the features go (default DATA_DIR/features)")
    add("--dtype", choices=DTYPES, default=defaults.mert.dtype, help="what is computed in (default %(default)s)")
    add(
        "--frames_per_token",
        type=int,
        default=defaults.mert.frames_per_token,
        help="encoder frames averaged into one feature (default %(default)s)",
    )
    add("--layer_weights", action="store_true", help="keep the hidden states apart, for adapter.layer_weights")
    add("--crops", type=int, default=0, help="encode so many fixed crops of each clip (default: all of it)")
    add(
        "--crop_seconds",
        type=float,
        default=defaults.data.crop_seconds,
        metavar="SECONDS",
        help="of a crop (default %(default)s)",
    )
    add("--mixdown", choices=MIXDOWNS, default="mean", help="of a clip's channels: their mean, or the first one")
    add("--resampling", choices=RESAMPLINGS, default="soxr", help="of audio: by soxr, or exactly as torchaudio does")
    add(
        "--like_the_original",
        action="store_true",
        help="cut the crops as MusiLingo's MusicQA loader does: before resampling, zeros behind, not normalised",
    )
    add("--crop_seed", type=int, default=defaults.data.crop_seed, help="which crops (default %(default)s)")
    add("--store", choices=DTYPES, default=defaults.data.store, help="what features are kept as (default %(default)s)")
    add(
        "--max_bad_fraction",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of clips that may fail (default %(default)s)",
    )
    features.set_defaults(run=_features)


def _features(arguments: argparse.Namespace) -> None:
    # JAX is not loaded for the other commands.
    from mlingo_jax.features.spec import FeatureSpec
    from mlingo_jax.processes import initialize, is_primary
    from mlingo_jax.training.encode import encode_collection

    initialize()
    config = Config(
        mert=EncoderConfig(arguments.mert, arguments.dtype, arguments.frames_per_token, arguments.resampling),
        adapter=AdapterSettings(layer_weights=arguments.layer_weights),
        data=DataConfig(
            datasets=arguments.dataset,
            data_dir=arguments.data_dir,
            features=arguments.features,
            max_bad_fraction=arguments.max_bad_fraction,
            crops=arguments.crops,
            crop_seconds=arguments.crop_seconds,
            crop_seed=arguments.crop_seed,
            like_the_original=arguments.like_the_original,
            store=arguments.store,
            mixdown=arguments.mixdown,
        ),
    )
    check(config)
    encoded = encode_collection(FeatureSpec.of(config), arguments.data_dir, arguments.dataset)
    if is_primary():
        print(encoded)


def _first_line(dataset: type[Examples]) -> str:
    return (dataset.__doc__ or "").strip().splitlines()[0]


def cli() -> NoReturn:
    """The console command."""
    run_cli(main)


if __name__ == "__main__":
    cli()

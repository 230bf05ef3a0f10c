"""Builds a dataset: annotations are read, clips found and checked, records written, and only then put into place.

Everything is made in `data_dir/.building/NAME`, where a killed build resumes, and moved to its place when it is
whole. A dataset that is there already stays until its successor is complete.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from mlingo_jax.data.annotations import Annotation
from mlingo_jax.data.lookup import find_all
from mlingo_jax.data.prepared import PREPARED, PreparedClips, dataset_folder
from mlingo_jax.datasets.check import Checked, Task
from mlingo_jax.datasets.clips import CHECKS, Clips, Judge
from mlingo_jax.datasets.examples import Examples
from mlingo_jax.datasets.report import Report, make_report, reports_folder, write_report
from mlingo_jax.errors import UserError
from mlingo_jax.files import exclusive_lock, sha256_of
from mlingo_jax.wording import counted

_ARRAY_RECORD = "array_record"
# Beside the audio: the texts, the records' frames, and what the disk needs to stay usable.
_SPARE_BYTES = 64 << 20
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Options:
    """How a dataset is built.

    min_share: of all clips, the share that must be usable. tolerance: by how many seconds a clip's length may differ
    from its annotation's. workers: threads. beam: options of a Beam pipeline, or None to build here.
    """

    min_share: float = 0.0
    tolerance: float = 1.0
    workers: int = max(os.cpu_count() or 1, 1)
    beam: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """What the annotations ask for.

    For each clip what its file may be called, its length, its rate, and its examples in each split; and all examples
    of each split.
    """

    names: dict[str, tuple[str, ...]]
    seconds: dict[str, float | None]
    rates: dict[str, int | None]
    of_clip: dict[str, Counter[str]]
    annotated: Counter[str]


def build(
    dataset: type[Examples],
    annotations: Sequence[Path],
    audio: Sequence[Path] | str,
    data_dir: Path,
    *,
    config: str | None = None,
    options: Options,
) -> Report:
    """Builds a dataset into `data_dir`, or finds that it is there already, made of the same files.

    audio: folders to find the clips in, or the name of a collection of clips that was prepared there before.

    Raises UserError for annotations that are not this dataset's or damaged, for several files that claim one clip,
    for too few usable clips (the report is written first), for too little room, and if another build is at work.
    """
    builder = dataset(annotations=annotations, config=config, data_dir=data_dir)
    wanted = _read(builder)
    published = builder.require_published(wanted.annotated, _clips_of_splits(wanted))
    name = "/".join(filter(None, [builder.name, builder.config_name]))
    flat = name.replace("/", "_")
    reports = reports_folder(data_dir, name)

    def judge(checks: Sequence[Checked]) -> Report:
        report = make_report(name, checks, wanted.annotated, _kept(wanted, checks), published)
        write_report(reports, report, checks)
        if not report.clips["there"] or report.share < options.min_share:
            least = f"a share of at least {options.min_share:g}" if report.clips["there"] else "at least one"
            raise UserError(
                f"{name}: {report.clips['there']} of {counted(report.wanted, 'clip')} can be used, expected {least}; "
                f"see {reports}"
            )
        return report

    work = data_dir / ".building" / flat
    busy = f"{data_dir}: another process is building {name} there; wait for it, or give another --data_dir"
    with exclusive_lock(work.with_name(f"{flat}.lock"), busy):
        place = dataset_folder(data_dir, name)
        if isinstance(audio, str):
            clips_place = dataset_folder(data_dir, f"clips/{audio}")
            checks = _look_up(wanted, PreparedClips(clips_place), options.tolerance)
            tasks, plan = [], _digest(builder, checks, audio, options)
        else:
            clips_place = dataset_folder(data_dir, f"clips/{flat}")
            checks = []
            tasks = [_task(clip, path, wanted) for clip, path in find_all(audio, wanted.names).items()]
            plan = _digest(builder, tasks, flat, options)
        if _plan_of(place) == plan and clips_place.is_dir():
            return judge(_kept_checks(place))
        stage = _stage(work, plan)
        clips_made = stage / clips_place.relative_to(data_dir)
        if tasks:
            if not any(_plan_of(folder) == plan for folder in (clips_made, clips_place)):
                _require_share_found(tasks, options, judge)
                _require_room(data_dir, tasks, builder.annotation_files(), stage)
                _build_clips(flat, tasks, stage, options, judge)
                _write_json(clips_made / PREPARED, {"plan": plan})
            # They are in their place if a build was killed between its two moves.
            checks = _kept_checks(clips_made if clips_made.is_dir() else clips_place)
        report = judge(checks)
        there = {checked.clip for checked in checks if checked.status == "there"}
        examples = dataset(annotations=annotations, clips=there, config=config, data_dir=stage)
        made_of = _plan_of(clips_made if clips_made.is_dir() else clips_place)
        _build_examples(examples, checks, {"plan": plan, "clips": clips_place.parent.name, "clips_plan": made_of})
        _put_in_place(clips_made, clips_place, stage)
        _put_in_place(Path(examples.data_dir), place, stage)
        shutil.rmtree(stage)
    return report


def _kept(wanted: _Wanted, checks: Sequence[Checked]) -> Counter[str]:
    kept: Counter[str] = Counter()
    for checked in checks:
        if checked.status == "there":
            kept.update(wanted.of_clip[checked.clip])
    return kept


def _read(builder: Examples) -> _Wanted:
    names: dict[str, tuple[str, ...]] = {}
    seconds: dict[str, float | None] = {}
    rates: dict[str, int | None] = {}
    of_clip: dict[str, Counter[str]] = defaultdict(Counter)
    annotated: Counter[str] = Counter()
    for a in builder.annotations():
        names[a.clip] = tuple(dict.fromkeys((*names.get(a.clip, ()), *a.names)))
        _require_same_length(a, seconds)
        seconds[a.clip], rates[a.clip] = a.seconds, a.rate
        of_clip[a.clip][a.split] += 1
        annotated[a.split] += 1
    if not names:
        files = ", ".join(map(str, builder.annotation_files()))
        raise UserError(f"{files}: no annotations in it")
    return _Wanted(names, seconds, rates, of_clip, annotated)


def _require_same_length(annotation: Annotation, seconds: dict[str, float | None]) -> None:
    earlier = seconds.get(annotation.clip, annotation.seconds)
    if earlier != annotation.seconds:
        raise UserError(
            f"the annotations give the clip {annotation.clip!r} two lengths, {earlier} s and {annotation.seconds} s; "
            "one clip is one piece of audio"
        )


def _clips_of_splits(wanted: _Wanted) -> Counter[str]:
    return Counter(split for splits in wanted.of_clip.values() for split in splits)


def _task(clip: str, path: Path | None, wanted: _Wanted) -> Task:
    return Task(clip, None if path is None else str(path), wanted.seconds[clip], wanted.rates[clip])


def _look_up(wanted: _Wanted, clips: PreparedClips, tolerance: float) -> list[Checked]:
    """The checks of clips that were prepared before: there, of another length than is stated, or missing."""
    lengths = {clip: (seconds, rate) for clip, seconds, rate in clips.lengths() if clip in wanted.names}
    checks = []
    for clip in wanted.names:
        if clip not in lengths:
            checks.append(Checked(clip, "missing", f"not in the collection {clips.folder}"))
            continue
        (seconds, rate), expected = lengths[clip], wanted.seconds[clip]
        if expected is not None and abs(seconds - expected) > tolerance:
            reason = f"{clips.folder}: {seconds:.1f} s, expected {expected:.1f} s"
            checks.append(Checked(clip, "wrong length", reason, seconds, rate))
        else:
            checks.append(Checked(clip, "there", "", seconds, rate, clips.digest(clip)))
    return checks


def _digest(builder: Examples, clips: Sequence[Task | Checked], collection: str, options: Options) -> str:
    """What the records depend on: the annotation files, and the audio files by size and time of change."""
    digest = hashlib.sha256(repr((_FORMAT, builder.name, builder.config_name, collection, options.tolerance)).encode())
    for path in builder.annotation_files():
        digest.update(bytes.fromhex(sha256_of(path)))
    for clip in sorted(clips, key=lambda clip: clip.clip):
        state = _state(clip.path) if isinstance(clip, Task) and clip.path else None
        digest.update(repr((clip, state)).encode())
    return digest.hexdigest()[:16]


def _state(path: str) -> tuple[int, int] | None:
    """A file's size and when it was written, in ns; None for what is none: a link to nowhere, or to itself."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _plan_of(folder: Path) -> str | None:
    try:
        return json.loads((folder / PREPARED).read_text(encoding="utf-8"))["plan"]
    except FileNotFoundError:
        return None


def _kept_checks(folder: Path) -> list[Checked]:
    with (folder / CHECKS).open(encoding="utf-8") as file:
        return [Checked(**json.loads(line)) for line in file]


def _stage(work: Path, plan: str) -> Path:
    """The folder of this build, with what a killed build of the same plan left; leftovers of others are removed."""
    stage = work / plan
    for other in work.glob("*"):
        if other != stage:
            shutil.rmtree(other)
    stage.mkdir(parents=True, exist_ok=True)
    for leftover in stage.rglob("incomplete.*"):
        shutil.rmtree(leftover)
    return stage


def _require_share_found(tasks: Sequence[Task], options: Options, judge: Judge) -> None:
    """Ends a build that cannot reach its share before any file is decoded."""
    found = sum(task.path is not None for task in tasks)
    if found == 0 or found < options.min_share * len(tasks):
        missing = "there is no file of this name"
        judge([Checked(t.clip, "missing", missing) if t.path is None else Checked(t.clip, "there") for t in tasks])


def _require_room(data_dir: Path, tasks: Sequence[Task], annotations: Sequence[Path], stage: Path) -> None:
    # Texts are stored once, with a little around each; the clips' names are kept in a few lists.
    needed = sum(state[0] for task in tasks if task.path and (state := _state(task.path))) + _SPARE_BYTES
    needed += 2 * sum(path.stat().st_size for path in annotations)
    made = sum(path.stat().st_size for path in stage.rglob("*") if path.is_file())
    free = shutil.disk_usage(data_dir).free
    if free < needed - made:
        raise UserError(
            f"{data_dir}: the clips need {(needed - made) / 1e9:.2f} GB, there is room for {free / 1e9:.2f} GB; free "
            "some, or give another --data_dir"
        )


def _build_clips(collection: str, tasks: Sequence[Task], stage: Path, options: Options, judge: Judge) -> None:
    shards = stage / "shards"
    shards.mkdir(exist_ok=True)
    builder = Clips(
        collection=collection,
        tasks=tasks,
        tolerance=options.tolerance,
        judge=judge,
        work=shards,
        workers=options.workers,
        data_dir=stage,
    )
    _prepare(builder, options.beam)


def _build_examples(builder: Examples, checks: Sequence[Checked], values: dict[str, Any]) -> None:
    _prepare(builder, None)
    folder = Path(builder.data_dir)
    splits = {split: info.num_examples for split, info in builder.info.splits.items()}
    lines = [json.dumps(dataclasses.asdict(checked)) + "\n" for checked in checks]
    (folder / CHECKS).write_text("".join(lines), encoding="utf-8")
    _write_json(folder / PREPARED, {**values, "splits": splits})


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values) + "\n", encoding="utf-8")


def _prepare(builder: tfds.core.DatasetBuilder, beam: tuple[str, ...] | None) -> None:
    """Runs TFDS quietly; it keeps what is complete already."""
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(beam_options=None if beam is None else _beam_options(beam))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(file_format=_ARRAY_RECORD, download_config=config)
    except (OSError, RuntimeError) as error:
        # array_record raises RuntimeError for a full disk.
        raise UserError(
            f"{builder.data_dir}: cannot be written ({getattr(error, 'strerror', None) or error})"
        ) from error


def _beam_options(arguments: tuple[str, ...]) -> Any:
    try:
        from apache_beam.options.pipeline_options import (  # pyright: ignore[reportMissingImports]
            PipelineOptions,
        )
    except ImportError as error:
        raise UserError("Beam pipelines need apache-beam; install it by `pip install mlingo_jax[beam]`") from error
    return PipelineOptions(list(arguments))


def _put_in_place(made: Path, place: Path, stage: Path) -> None:
    """Moves a dataset from the stage to its place; what it replaces goes to the stage, and with it."""
    if not made.is_dir():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        replaced = stage / "replaced" / made.relative_to(stage)
        replaced.parent.mkdir(parents=True, exist_ok=True)
        os.rename(place, replaced)
    os.rename(made, place)

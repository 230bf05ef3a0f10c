"""The records of audio: every clip once, found by its id.

The records are in the order of a hash of the id, so a sorted list of hashes (8 bytes a clip, memory-mapped) finds any
of them. On one machine threads check and write shard after shard; a finished shard is renamed into place and is not
written again after a kill. With Beam options the same checks run as a Beam pipeline on a cluster.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from tensorflow_datasets.core import example_serializer, splits
from tensorflow_datasets.core.file_adapters import FileFormat
from tqdm import tqdm

from mlingo_jax.data.examples import clip_hash
from mlingo_jax.data.records import CHECKS, CLIPS, HASHES, NAMES, Clip, SteadyWriter
from mlingo_jax.datasets.check import Checked, Task, check
from mlingo_jax.errors import UserError
from mlingo_jax.files import atomic_replace, write_atomic
from mlingo_jax.wording import counted

SHARD_CLIPS = 256

Judge = Callable[[Sequence[Checked]], object]
"""Sees what came of all checks before the clips are taken over; raises to refuse them."""


class Clips(tfds.core.BeamBasedBuilder):
    """Clips: `clip` (id), `audio` (an encoded file's bytes), `seconds`, `rate`. The config names the collection."""

    name = "clips"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        collection: str,
        tasks: Iterable[Task],
        tolerance: float,
        judge: Judge,
        work: Path,
        workers: int,
        data_dir: str | Path | None = None,
    ):
        """tolerance: see `check`. work: a folder for finished shards, kept until the build is complete."""
        self._tasks = sorted(tasks, key=lambda task: (clip_hash(task.clip), task.clip))
        self._tolerance, self._judge, self._work, self._workers = tolerance, judge, work, workers
        config = tfds.core.BuilderConfig(name=collection, version=self.VERSION)
        super().__init__(data_dir=data_dir, config=config)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "clip": tfds.features.Text(),
            "audio": tfds.features.Tensor(shape=(), dtype=np.object_),
            "seconds": np.float32,
            "rate": np.int32,
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _download_and_prepare(
        self, dl_manager: tfds.download.DownloadManager, download_config: tfds.download.DownloadConfig
    ) -> None:
        if download_config.beam_runner or download_config.beam_options:
            checks = self._run_pipeline(dl_manager, download_config)
            self._judge(checks)
        else:
            shards = self._make_shards()
            checks = _read_checks([shard.with_suffix(".jsonl") for shard in shards])
            self._judge(checks)
            self._take_over(shards)
        self._write_index(checks)

    def _run_pipeline(
        self, dl_manager: tfds.download.DownloadManager, download_config: tfds.download.DownloadConfig
    ) -> list[Checked]:
        for leftover in self._work.glob("checks-*"):
            leftover.unlink()
        try:
            super()._download_and_prepare(dl_manager, download_config)
        except ValueError as error:
            # TFDS ends the pipeline over a split without records, before the checks are collected.
            if "generated examples is 0" not in str(error):
                raise
            raise UserError(
                f"{self.builder_config.name}: none of {counted(len(self._tasks), 'clip')} can be used; build without "
                "Beam to see why"
            ) from error
        return _read_checks(sorted(self._work.glob("checks-*")))

    def _make_shards(self) -> list[Path]:
        """Checks all clips, `SHARD_CLIPS` at a time, and writes those to be used; the shards' files in order."""
        parts = [self._tasks[start : start + SHARD_CLIPS] for start in range(0, len(self._tasks), SHARD_CLIPS)]
        shards = [self._work / f"{number:05d}.array_record" for number in range(len(parts))]
        serializer = example_serializer.ExampleSerializer(self.info.features.get_serialized_info())
        with tqdm(desc="checking clips", total=len(self._tasks), unit="clip", disable=None) as bar:

            def make(shard: Path, tasks: Sequence[Task]) -> None:
                if _is_whole(shard):
                    bar.update(len(tasks))
                    return
                checks: list[Checked] = []
                with atomic_replace(shard) as partial:
                    self._example_writer().write(partial, self._serialized(tasks, checks, serializer, bar))
                _write_lines(shard.with_suffix(".jsonl"), map(dataclasses.asdict, checks))

            pool = ThreadPoolExecutor(self._workers)
            try:
                list(pool.map(make, shards, parts))
            except RuntimeError as error:
                raise UserError(f"{self._work}: the clips cannot be written ({error})") from error
            finally:
                pool.shutdown(cancel_futures=True)
        return shards

    def _serialized(
        self, tasks: Sequence[Task], checks: list[Checked], serializer: example_serializer.ExampleSerializer, bar: tqdm
    ) -> Iterator[tuple[int, bytes]]:
        """The records of one shard; what came of each task goes to `checks`."""
        for task in tasks:
            checked, clip = check(task, self._tolerance)
            checks.append(checked)
            bar.update()
            if clip is not None:
                yield 0, serializer.serialize_example(self.info.features.encode_example(dataclasses.asdict(clip)))

    def _take_over(self, shards: Sequence[Path]) -> None:
        """Moves the shards that have clips to where TFDS expects them, and tells it what is in them."""
        counts = {shard: ArrayRecordReader(str(shard)).num_records() for shard in shards}
        filled = [shard for shard in shards if counts[shard]]
        template = self._get_filename_template(split_name=CLIPS)
        size = 0
        for number, shard in enumerate(filled):
            size += shard.stat().st_size
            os.replace(shard, template.sharded_filepath(shard_index=number, num_shards=len(filled)))
        split = tfds.core.SplitInfo(
            name=CLIPS, shard_lengths=[counts[s] for s in filled], num_bytes=size, filename_template=template
        )
        self.info.set_splits(splits.SplitDict([split]))

    def _write_index(self, checks: Sequence[Checked]) -> None:
        folder = Path(self.data_dir)
        there = sorted((c for c in checks if c.status == "there"), key=lambda c: (clip_hash(c.clip), c.clip))
        np.save(folder / HASHES, np.array([clip_hash(c.clip) for c in there], np.uint64))
        _write_lines(folder / NAMES, ({"clip": c.clip, "seconds": c.seconds, "rate": c.rate} for c in there))
        _write_lines(folder / CHECKS, (dataclasses.asdict(c) for c in checks))

    def _example_writer(self) -> SteadyWriter:
        return SteadyWriter(self.info.file_format or FileFormat.ARRAY_RECORD)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {CLIPS: self._generate_examples()}

    def _build_pcollection(self) -> Any:
        """A Beam transform from nothing to the clips to be used, numbered in order; the checks go to `work`."""
        import apache_beam as beam  # pyright: ignore[reportMissingImports]

        # The tasks travel as a file: half a million of them do not fit a pipeline's description.
        tasks, checks = self._work / "tasks.jsonl", self._work / "checks"
        numbered = ({"number": number, **dataclasses.asdict(task)} for number, task in enumerate(self._tasks))
        _write_lines(tasks, numbered)
        judged = functools.partial(_check_line, tolerance=self._tolerance)

        def build(pipeline: Any) -> Any:
            checked = pipeline | beam.io.ReadFromText(str(tasks)) | beam.Reshuffle() | "Check" >> beam.Map(judged)
            _ = checked | "Outcome" >> beam.Map(_outcome) | beam.io.WriteToText(str(checks))
            return checked | "Clips" >> beam.FlatMap(_records)

        return beam.ptransform_fn(build)()


def _check_line(line: str, tolerance: float) -> tuple[int, Checked, Clip | None]:
    values = json.loads(line)
    number = values.pop("number")
    return number, *check(Task(**values), tolerance)


def _outcome(checked: tuple[int, Checked, Clip | None]) -> str:
    return json.dumps(dataclasses.asdict(checked[1]))


def _records(checked: tuple[int, Checked, Clip | None]) -> list[tuple[int, dict[str, Any]]]:
    number, _, clip = checked
    return [] if clip is None else [(number, dataclasses.asdict(clip))]


def _is_whole(shard: Path) -> bool:
    """Whether a shard was finished: its checks are written last, and its records can be counted."""
    try:
        checks = _read_checks([shard.with_suffix(".jsonl")])
        count = ArrayRecordReader(str(shard)).num_records()
    except (OSError, ValueError, TypeError, RuntimeError):
        return False
    return count == sum(checked.status == "there" for checked in checks)


def _read_checks(paths: Sequence[Path]) -> list[Checked]:
    lines = (line for path in paths for line in path.read_text(encoding="utf-8").splitlines())
    return [Checked(**json.loads(line)) for line in lines]


def _write_lines(path: Path, values: Iterable[dict[str, Any]]) -> None:
    write_atomic(path, (json.dumps(value) + "\n" for value in values))

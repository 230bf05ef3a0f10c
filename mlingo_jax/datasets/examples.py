"""The records of questions and answers: what the datasets' TFDS builders have in common.

An example names its clip by id; the clip's audio is a record of another dataset (`clips`), stored once however many
questions are asked about it.
"""

import abc
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from tensorflow_datasets.core.file_adapters import FileFormat

from mlingo_jax.data.annotations import Annotation, find_files
from mlingo_jax.data.records import SteadyWriter
from mlingo_jax.errors import UserError


class Examples(tfds.core.GeneratorBasedBuilder):
    """Examples of one dataset, in the order of its annotations: `clip`, `question`, `answer` and `source`, all UTF-8.

    A child gives: `read`, which parses one annotation file; `files`, what these are called; `configs` (none: the
    dataset has one form; None: the user names it); what is `published`: examples of each config ("" if there are no
    configs) and split ("" for all splits together), and clips of a split.
    """

    VERSION = tfds.core.Version("1.0.0")
    homepage: ClassVar[str]
    licence: ClassVar[str]
    citation: ClassVar[str]
    files: ClassVar[tuple[str, ...]] = ()
    configs: ClassVar[tuple[str, ...] | None] = ()
    default_config: ClassVar[str | None] = None
    published: ClassVar[dict[str, dict[str, int]]] = {}
    published_clips: ClassVar[dict[str, int]] = {}

    def __init__(
        self,
        *,
        annotations: Sequence[str | Path],
        clips: Container[str] | None = None,
        config: str | None = None,
        data_dir: str | Path | None = None,
    ):
        """annotations: files, or folders of them. clips: the ids to keep the examples of; None keeps all.

        Raises UserError for a config that the dataset has not.
        """
        self._annotations = [Path(path) for path in annotations]
        self._clips = clips
        chosen = config or self.default_config
        if self.configs == () and chosen is not None:
            raise UserError(f"{self.name}: this dataset has no configs, found {chosen!r}")
        if self.configs and chosen not in self.configs:
            raise UserError(f"{self.name}: expected the config {' or '.join(self.configs)}, found {chosen!r}")
        super().__init__(
            data_dir=data_dir,
            config=None if chosen is None else tfds.core.BuilderConfig(name=chosen, version=self.VERSION),
        )

    @abc.abstractmethod
    def read(self, path: Path) -> Iterator[Annotation]:
        """The annotations of one file. Raises UserError, naming file and line, for whatever is wrong with it."""

    @property
    def config_name(self) -> str:
        """The config's name, or "" where there are none."""
        return self.builder_config.name if self.builder_config else ""

    def file_names(self) -> tuple[str, ...]:
        """What the annotation files of this config are called, as globs."""
        return self.files

    def annotation_files(self) -> list[Path]:
        """The files that the annotations are read from. Raises UserError if there are none."""
        return find_files(self._annotations, self.file_names())

    def annotations(self) -> Iterator[Annotation]:
        """All annotations, one by one. Raises UserError as `read`."""
        for path in self.annotation_files():
            yield from self.read(path)

    def require_published(self, examples: Counter[str], clips: Counter[str]) -> dict[str, int]:
        """What is published of each split's examples; clips counts the clips of each split.

        Raises UserError if there are more than published, or other clips behind as many examples: the file is another
        one, or has rows twice. Fewer are somebody's selection, and for the report to show.
        """
        published = {
            split: count
            for split, count in self.published.get(self.config_name, {}).items()
            if not split or split in examples
        }
        for split, count in published.items():
            found = examples[split] if split else examples.total()
            if found > count:
                raise UserError(
                    f"{self.name}: expected at most the published {count} examples{f' in {split}' if split else ''}, "
                    f"found {found}; is a file given twice, or is it another dataset's?"
                )
            expected = self.published_clips.get(split)
            if found == count and expected is not None and clips[split] != expected:
                raise UserError(
                    f"{self.name}: expected the published {count} examples in {split} to be about {expected} clips, "
                    f"found {clips[split]}; the annotations were changed"
                )
        return published

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            homepage=self.homepage,
            citation=self.citation,
            license=self.licence,
            features=tfds.features.FeaturesDict({"clip": text, "question": text, "answer": text, "source": text}),
            # The order of the annotations; training shuffles anyway.
            disable_shuffling=True,
        )

    def _example_writer(self) -> SteadyWriter:
        return SteadyWriter(self.info.file_format or FileFormat.ARRAY_RECORD)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Any]]:
        splits = dict.fromkeys(a.split for a in self.annotations() if self._kept(a))
        return {split: self._generate_examples(split) for split in splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, str]]]:
        for key, a in enumerate(a for a in self.annotations() if a.split == split and self._kept(a)):
            yield key, {"clip": a.clip, "question": a.question, "answer": a.answer, "source": a.source}

    def _kept(self, annotation: Annotation) -> bool:
        return self._clips is None or annotation.clip in self._clips

"""Answers without references (of `caption`, for one) and the dataset or manifest that has them."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from mlingo_jax.data.manifest import read_entries
from mlingo_jax.data.mixture import clip_name, parse_wanted
from mlingo_jax.data.prepared import Prepared
from mlingo_jax.errors import UserError
from mlingo_jax.evaluation.answers import Answer, listed
from mlingo_jax.evaluation.cmi_bench import is_instructions, read_instructions
from mlingo_jax.evaluation.formats import AnswerFile, read_table
from mlingo_jax.wording import counted


def read_references(wanted: str, data_dir: str | Path) -> list[Answer]:
    """The questions and true answers of a manifest, of CMI-Bench's instructions or of DATASET:SPLIT.

    Of a manifest the part held out, where it says so; of the instructions the test split; several datasets are
    separated by commas.

    Raises:
        UserError: the file is not a manifest, or the dataset is not prepared.
    """
    if Path(wanted).is_file() and is_instructions(Path(wanted)):
        return [instruction.example for instruction in read_instructions(Path(wanted))]
    if Path(wanted).is_file():
        return list(_of_manifest(Path(wanted)))
    if Path(wanted).suffix in (".jsonl", ".json", ".csv"):
        raise UserError(f"{wanted}: there is no such manifest")
    return [
        answer for part in parse_wanted(wanted, "--data") for answer in of_dataset(data_dir, part.dataset, part.split)
    ]


def with_references(
    file: AnswerFile, references: Sequence[Answer] | None, partial: bool = False, most: int = 0
) -> list[Answer]:
    """A file's answers beside their references: its own, or those of a dataset.

    most: take an even sample of so many; 0: all.

    Raises:
        UserError: as `join`; or the file has no references, and none are given; or both do.
    """
    answers = read_table(file)
    if file.format == "caption" and references is None:
        raise UserError(
            f"{file.path}: has no true answers; name where they are, with --data DATASET:SPLIT or a manifest"
        )
    if file.format != "caption" and references is not None:
        raise UserError(f"{file.path}: has its own true answers; leave out --data")
    joined = answers if references is None else join(answers, references, partial=partial)
    return [joined[i * len(joined) // most] for i in range(most)] if 0 < most < len(joined) else joined


def join(answers: Sequence[Answer], references: Sequence[Answer], *, partial: bool = False) -> list[Answer]:
    """The references with their answers, in the references' order.

    An answer's clip is the reference's clip, its id in the collection, or a file of that name. A question about a clip
    that has several references is scored with each.

    Raises:
        UserError: an answer is about something else, or there twice; or, unless `partial`, a reference has none.
    """
    found = _find(answers, references)
    joined = [dataclasses.replace(ref, answer=found[key].answer) for ref in references if (key := _key(ref)) in found]
    missing = [reference.clip for reference in references if _key(reference) not in found]
    if missing and not partial:
        raise UserError(
            f"{len(missing):,} of {counted(len(references), 'question')} have no answer, about {listed(missing)}; "
            "answer them too, or give --partial to score the others"
        )
    return joined


def _find(answers: Sequence[Answer], references: Sequence[Answer]) -> dict[tuple[str, str], Answer]:
    asked = {_key(reference) for reference in references}
    clips = _names(references)
    found: dict[tuple[str, str], Answer] = {}
    strangers: list[Answer] = []
    for answer in answers:
        key = next(((clip, answer.question) for n in _spellings(answer.clip) if (clip := clips.get(n))), None)
        if key is None or key not in asked:
            strangers.append(answer)
        elif key in found:
            raise UserError(
                f"{answer.where}: {answer.clip!r} is answered here and at {found[key].where}; keep one of the answers"
            )
        else:
            found[key] = answer
    if strangers:
        raise UserError(
            f"{strangers[0].where}: --data has no question {strangers[0].question!r} about {strangers[0].clip!r}, nor "
            f"those of {len(strangers):,} of {counted(len(answers), 'answer')}; is it the dataset that was asked about?"
        )
    return found


def _names(references: Iterable[Answer]) -> dict[str, str]:
    """Which clip is meant by a name; names of several clips are left out."""
    meant: defaultdict[str, set[str]] = defaultdict(set)
    for clip in {reference.clip for reference in references}:
        for name in _spellings(clip):
            meant[name].add(clip)
    return {name: next(iter(clips)) for name, clips in meant.items() if len(clips) == 1}


def _spellings(clip: str) -> Iterator[str]:
    """A clip's names, the surest first."""
    path = PurePosixPath(clip)
    yield from (clip, path.name, path.stem)


def _key(answer: Answer) -> tuple[str, str]:
    return answer.clip, answer.question


def _of_manifest(path: Path) -> Iterator[Answer]:
    entries = list(read_entries(path))
    held_out = [entry for entry in entries if entry.split == "eval"]
    for entry in held_out or entries:
        yield Answer(str(path.parent / entry.audio), entry.question, entry.answer, "", path.stem, entry.where)


def of_dataset(data_dir: str | Path, dataset: str, split: str) -> Iterator[Answer]:
    """The questions and true answers of a prepared dataset's split. Raises UserError if it is not prepared."""
    prepared = Prepared(data_dir, dataset)
    examples = prepared.examples(split)
    for i in range(len(examples)):
        one = examples[i]
        clip = clip_name(prepared.collection, one.clip)
        yield Answer(clip, one.question, one.answer, "", one.source or dataset, f"{dataset}:{split}[{i}]")

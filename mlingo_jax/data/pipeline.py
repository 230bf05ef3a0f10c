"""From a manifest to batches: examples, their split, rows with music, an endless shuffled stream, one pass to evaluate.

Axes: B rows, L places in a row, M music tokens at most, K music tokens of a clip, D encoder width, S hidden states,
N samples.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Int32

from mlingo_jax.data.audio import AudioSettings, crop, normalize
from mlingo_jax.data.features import FeatureCache
from mlingo_jax.data.packing import Packing, join
from mlingo_jax.data.prompt import Prompt, Row, collate
from mlingo_jax.data.stored import Audio, read_clip
from mlingo_jax.errors import UserError

# JSON can spell what is not text: no tokenizer and no file system takes it.
_SURROGATE = re.compile("[\ud800-\udfff]")

_MEASURED_AT_ONCE = 4096

Batch = dict[str, np.ndarray]
"""The fields of the batch contract, and `example`, int32 [B]: each row's place in the list of examples, -1 for none."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One question about one clip.

    clip: its name, the manifest's or COLLECTION/ID. where: "file:line" or "dataset:split[number]", for messages.
    """

    clip: str
    audio: Audio
    question: str
    answer: str
    split: Literal["train", "eval"] | None
    where: str


@runtime_checkable
class Examples(Protocol):
    """Examples by their places: a list, or records that are read when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


def read_manifest(path: str | Path, *, heard: Container[str] = ()) -> list[Example]:
    """Reads a jsonl of {"audio", "question", "answer"} and perhaps "split" ("train" or "eval"); others are ignored.

    Audio paths are relative to the manifest. The audio of all clips must exist, but for those in `heard`: the clips
    whose features are cached. Empty lines are skipped.

    Raises UserError, naming file and line, for what is not UTF-8, not a JSON object, lacks a field, has one of the
    wrong type, names a missing file, or puts one clip into both splits; for a file that is missing or has no examples.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    examples = [
        _parse_line(line, f"{path}:{number}", path.parent) for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not examples:
        raise UserError(f"{path}: no examples in it; expected one JSON object per line")
    _require_one_split(examples)
    _require_audio(examples, heard)
    return examples


def split_examples(examples: Sequence[Example], eval_fraction: float) -> tuple[list[Example], list[Example]]:
    """(training, evaluation) examples; all questions about a clip go to one side.

    A clip whose split is not given goes by a hash of its name, so it stays on its side whatever else is in the
    manifest; about `eval_fraction` of such clips are held out (in a small manifest perhaps none).
    """
    given = {example.clip: example.split for example in examples if example.split}
    held_out = [
        given.get(e.clip) == "eval" or (e.clip not in given and _hash(e.clip) < eval_fraction) for e in examples
    ]
    train = [example for example, out in zip(examples, held_out, strict=True) if not out]
    return train, [example for example, out in zip(examples, held_out, strict=True) if out]


class CachedMusic:
    """Music features from a cache: the field `music`, [M, D] or [S, M, D] per row, zeros after the clip's own K."""

    def __init__(self, cache: FeatureCache, clips: Collection[str]):
        """Raises UserError if a clip is not in the cache."""
        self.cache = cache
        shapes = [cache.shape(clip) for clip in clips]
        most = max(shape[-2] for shape in shapes)
        self.shape = (*shapes[0][:-2], most, shapes[0][-1])

    def most_tokens(self, example: Example) -> int:
        """The most music tokens that the example's row can have."""
        return self.cache.shape(example.clip)[-2]

    def load(self, example: Example | None, rng: np.random.Generator | None) -> tuple[int, Batch]:
        """The number of music tokens and the music's fields of one row; without an example, of an empty row."""
        music = np.zeros(self.shape, np.float32)
        if example is None:
            return 0, {"music": music}
        features = self.cache[example.clip]
        tokens = features.shape[-2]
        music[..., :tokens, :] = features
        return tokens, {"music": music}


@dataclasses.dataclass(frozen=True)
class HeardMusic:
    """Audio to be heard in the step: the fields `waveform` [N], zeros after the clip's end, and `waveform_length`.

    A clip longer than `seconds` is cropped to it, at a start drawn anew for each row while training (`random`), at its
    beginning otherwise. `tokens` gives the number of music tokens of so many samples.
    """

    audio: AudioSettings
    seconds: float
    tokens: Callable[[int], int]
    minimum: int
    random: bool = True

    def most_tokens(self, example: Example) -> int:
        """As `CachedMusic.most_tokens`."""
        return self.tokens(self._samples)

    def load(self, example: Example | None, rng: np.random.Generator | None) -> tuple[int, Batch]:
        """As `CachedMusic.load`."""
        waveform = np.zeros(self._samples, np.float32)
        if example is None:
            return 0, {"waveform": waveform, "waveform_length": np.array(0, np.int32)}
        heard = read_clip(example.audio, self.audio, minimum=self.minimum)
        heard = crop(heard, self._samples, rng if self.random else None)
        waveform[: len(heard)] = normalize(heard) if self.audio.normalize else heard
        return self.tokens(len(heard)), {"waveform": waveform, "waveform_length": np.array(len(heard), np.int32)}

    @property
    def _samples(self) -> int:
        return round(self.seconds * self.audio.sample_rate)


@runtime_checkable
class Music(Protocol):
    """Where rows get their music from."""

    def most_tokens(self, example: Example) -> int:
        """The most music tokens that the example's row can have."""
        ...

    def load(self, example: Example | None, rng: np.random.Generator | None) -> tuple[int, Batch]:
        """The number of music tokens and the music's fields of one row; without an example, of an empty row."""
        ...


Stream = Any  # A grain.MapDataset: its type parameter changes along the way.


@dataclasses.dataclass(frozen=True)
class RowSizes:
    """How long the rows of a set of examples are.

    lengths: each row's, music included; music: its music tokens. cut: answers that are longer than their limit.
    """

    lengths: Int32[np.ndarray, "E"]
    music: Int32[np.ndarray, "E"]
    longest_where: str
    cut: int

    @property
    def longest(self) -> int:
        return int(self.lengths.max())

    @property
    def mean(self) -> float:
        return float(self.lengths.mean())


def measure_rows(examples: Examples, prompt: Prompt, music: Music) -> RowSizes:
    """Tokenises all examples once, some at a time, to know what row length they need."""
    lengths, tokens, cut = np.zeros(len(examples), np.int32), np.zeros(len(examples), np.int32), 0
    for start in range(0, len(examples), _MEASURED_AT_ONCE):
        places = range(start, min(start + _MEASURED_AT_ONCE, len(examples)))
        some = [examples[i] for i in places]
        texts, too_long = prompt.lengths([e.question for e in some], [e.answer for e in some])
        tokens[places.start : places.stop] = [music.most_tokens(e) for e in some]
        lengths[places.start : places.stop] = texts + tokens[places.start : places.stop]
        cut += int(too_long.sum())
    return RowSizes(lengths, tokens, examples[int(lengths.argmax())].where, cut)


def row_length(sizes: RowSizes, length: int | None, *, multiple: int = 16) -> int:
    """L: the given length, or, for None, the longest row's rounded up to a multiple.

    Raises UserError if the given length would not hold every row: nothing is cut but answers at their own limit.
    """
    if length is None:
        return -(-sizes.longest // multiple) * multiple
    if length < sizes.longest:
        raise UserError(
            f"{sizes.longest_where}: this example's row has {sizes.longest} tokens, the rows' length is set to "
            f"{length}; set it higher, or leave it out to have it chosen"
        )
    return length


def make_dataset(
    examples: Examples,
    prompt: Prompt,
    music: Music,
    *,
    length: int,
    batch: int,
    seed: int,
    process: int = 0,
    processes: int = 1,
    threads: int = 2,
    parts: Sequence[range] = (),
    weights: Sequence[float] = (),
    apart: bool = False,
    packing: Packing | None = None,
) -> grain.DatasetIterator[Batch]:
    """An endless stream of batches of `batch` rows for this process; its state can be saved and set again at any batch.

    All examples come once, in an order drawn for each epoch, before any comes again. The stream is dealt out to the
    processes row by row: taken together, their batches are the same whatever the number of processes.

    The examples may be a mixture: `parts` says which places belong together, `weights` how often each part is drawn
    from; each has epochs of its own. Every batch has rows of all parts, or, with `apart`, of one.

    With `packing`, rows hold several examples, `parts` is the packing's, and `example` is [B, E], filled up with -1.
    """
    if packing is None:
        rows, parts = _Rows(examples, prompt, music, length), parts or [range(len(examples))]
    else:
        rows, parts = _PackedRows(examples, prompt, music, length, packing), packing.parts

    def load(stream: Stream) -> Stream:
        return stream.random_map(rows.load, seed=seed)

    def deal(stream: Stream) -> Stream:
        return stream[process::processes].batch(batch, drop_remainder=True, batch_fn=rows.collate)

    streams = [grain.MapDataset.range(part.start, part.stop).shuffle(seed).repeat() for part in parts]
    weights = weights or [1.0] * len(streams)
    if apart:
        batches = grain.MapDataset.mix([deal(load(stream)) for stream in streams], weights)
    else:
        batches = deal(load(grain.MapDataset.mix(streams, weights)))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
    return iter(batches.to_iter_dataset(options))


def evaluation_batches(
    examples: Examples,
    prompt: Prompt,
    music: Music,
    *,
    length: int,
    batch: int,
    process: int = 0,
    processes: int = 1,
) -> Iterator[Batch]:
    """One pass over all examples in order, dealt out to the processes row by row.

    Every process gets the same number of batches; the last ones are filled up with empty rows (segment 0, weight 0).
    """
    rows = _Rows(examples, prompt, music, length)
    for start in range(0, len(examples), batch * processes):
        places = range(start + process, start + batch * processes, processes)
        yield rows.collate([rows.load(i if i < len(examples) else -1, None) for i in places])


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Builds rows from examples' places, and batches from rows."""

    examples: Examples
    prompt: Prompt
    music: Music
    length: int

    def load(self, place: int, rng: np.random.Generator | None) -> tuple[int, Row | None, Batch]:
        example = None if place < 0 else self.examples[place]
        tokens, fields = self.music.load(example, rng)
        row = None if example is None else self.prompt.row(example.question, example.answer, tokens)
        return place, row, fields

    def collate(self, loaded: Sequence[tuple[int, Row | None, Batch]]) -> Batch:
        # Empty rows come last: an evaluation's spare places follow its examples.
        rows = [row for _, row, _ in loaded if row is not None]
        music = {name: np.stack([fields[name] for *_, fields in loaded]) for name in loaded[0][2]}
        example = np.array([place for place, *_ in loaded], np.int32)
        return {**collate(rows, self.length, len(loaded)), **music, "example": example}


@dataclasses.dataclass(frozen=True)
class _PackedRows:
    """The same for rows of several examples, whose music is cached."""

    examples: Examples
    prompt: Prompt
    music: Music
    length: int
    packing: Packing

    def load(self, number: int, rng: np.random.Generator) -> tuple[Row, np.ndarray, np.ndarray]:
        rows, features = [], []
        example = np.full(self.packing.examples, -1, np.int32)
        places = self.packing[number]
        example[: len(places)] = places
        for one in map(self.examples.__getitem__, places):
            tokens, fields = self.music.load(one, rng)
            rows.append(self.prompt.row(one.question, one.answer, tokens))
            features.append(fields["music"][..., :tokens, :])
        heard = np.concatenate(features, axis=-2)
        music = np.zeros((*heard.shape[:-2], self.packing.music, heard.shape[-1]), np.float32)
        music[..., : heard.shape[-2], :] = heard
        return join(rows), music, example

    def collate(self, loaded: Sequence[tuple[Row, np.ndarray, np.ndarray]]) -> Batch:
        rows, music, example = zip(*loaded, strict=True)
        return {**collate(rows, self.length, len(rows)), "music": np.stack(music), "example": np.stack(example)}


def _parse_line(line: bytes, where: str, folder: Path) -> Example:
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason} at byte {error.start} of the line)") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(values).__name__}")
    audio = _text(values, "audio", where)
    question, answer = _text(values, "question", where, may_be_empty=True), _text(values, "answer", where)
    split = values.get("split")
    if split not in ("train", "eval", None):
        raise UserError(f'{where}: expected "train" or "eval" in the field "split", found {json.dumps(split)}')
    return Example(audio, folder / audio, question, answer, split, where)


def _text(values: dict[str, Any], name: str, where: str, *, may_be_empty: bool = False) -> str:
    if name not in values:
        raise UserError(f'{where}: the field "{name}" is missing; found {", ".join(values) or "no fields"}')
    value = values[name]
    if not isinstance(value, str):
        raise UserError(f'{where}: expected a text in the field "{name}", found {json.dumps(value)[:60]}')
    if _SURROGATE.search(value):
        raise UserError(f'{where}: half a surrogate pair (a \\u escape without its other half) in the field "{name}"')
    if not value.strip() and not may_be_empty:
        raise UserError(f'{where}: the field "{name}" is empty')
    return value


def _require_one_split(examples: Sequence[Example]) -> None:
    first: dict[str, Example] = {}
    for example in filter(lambda e: e.split, examples):
        other = first.setdefault(example.clip, example)
        if other.split != example.split:
            raise UserError(
                f"{example.where}: {example.clip!r} is in the split {example.split!r} here and in {other.split!r} at "
                f"{other.where}; a clip belongs to one"
            )


def _require_audio(examples: Sequence[Example], heard: Container[str]) -> None:
    clips = {example.clip: example for example in reversed(examples) if example.clip not in heard}
    missing = [e for e in reversed(clips.values()) if isinstance(e.audio, Path) and not e.audio.is_file()]
    if missing:
        raise UserError(
            f"{missing[0].where}: there is no audio file {missing[0].audio}; "
            f"missing in all: {len(missing)} of {len({e.clip for e in examples})} clips"
        )


def _hash(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / (1 << 48)

"""Filling a feature cache: clips are read ahead, heard in batches, and kept shard by shard.

Axes: K features of a clip, D encoder width, S hidden states, C crops, N samples.
"""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from mlingo_jax.data.audio import RECEPTIVE_FIELD, AudioSettings
from mlingo_jax.data.features import FINGERPRINT, FeatureCache, Fingerprint
from mlingo_jax.data.lock import alone
from mlingo_jax.data.shards import DTYPES, Features, shard_path, unfinished, write_shard
from mlingo_jax.data.stored import Audio, Waveform, read_ahead
from mlingo_jax.data.unheard import require_few
from mlingo_jax.errors import UserError
from mlingo_jax.processes import barrier, gather, is_first, once
from mlingo_jax.wording import counted
from mlingo_jax.writing import write_whole

Ear = Callable[[Sequence[Waveform]], Sequence[Features]]

# Features of ten minutes of audio are asked for at once: enough for full batches on a device, 60 MB of waveforms.
_BATCH_SECONDS = 600
_BATCH_CLIPS = 64
# Where no terminal shows a bar, a line comes this often.
_LINE_SECONDS = 60.0


def hear(
    clips: Mapping[str, Audio],
    ear: Ear,
    folder: str | Path,
    fingerprint: Fingerprint,
    *,
    minimum: int = RECEPTIVE_FIELD,
    shard_clips: int = 512,
    max_bad_fraction: float = 0.0,
) -> tuple[FeatureCache, dict[str, str]]:
    """Puts the features of all clips that are not there yet into the cache in `folder`, made if need be.

    clips: the audio of each clip. ear: from waveforms as `read_audio` gives them to features. minimum: samples a
    clip must have. A shard holds the clips of `shard_clips` files; after a kill, only the shard in work is heard again.

    Several processes hear together when all of them call this with the same clips and a folder that all see: each hears
    its share, with an ear on its own devices.

    Returns the cache, and why each clip that cannot be heard cannot. Raises UserError when these are more than
    `max_bad_fraction` of all clips (all others have been heard by then), when the folder holds features of another
    kind or would get some from another kind of device, when it cannot be written, or while another process hears into
    it.
    """
    folder = Path(folder)
    busy = f"{folder}: another process is hearing clips into this cache; wait until it is done"
    # The first of several processes holds the lock for all of them.
    with alone(folder / ".lock", busy) if is_first() else contextlib.nullcontext():
        once("the feature cache", lambda: _open_or_make(folder, fingerprint))
        bad = _hear_missing(clips, ear, folder, fingerprint, minimum, shard_clips)
        # When all have told, all shards are there.
        bad = {name: reason for told in gather(bad) for name, reason in told.items()}
    require_few(bad.values(), len(clips), max_bad_fraction, f"the other clips' features are kept in {folder}")
    return FeatureCache(folder), bad


def _hear_missing(
    clips: Mapping[str, Audio],
    ear: Ear,
    folder: Path,
    fingerprint: Fingerprint,
    minimum: int,
    shard_clips: int,
) -> dict[str, str]:
    """Hears what is not in the cache yet, shard by shard; returns why each clip that cannot be heard cannot."""
    cache = FeatureCache.open(folder, fingerprint)
    todo = [name for name in clips if name not in cache]
    if todo:
        # Nothing is added from another kind of device: its rounding would set some clips apart from the others.
        cache.require_fit(fingerprint, ignore=("versions",))
    # Before anything is added: all must see the same clips missing.
    barrier("the clips to be heard are known")
    own = todo[jax.process_index() :: jax.process_count()]
    audio = AudioSettings(fingerprint.sample_rate, fingerprint.normalize)
    bad: dict[str, str] = {}
    with _Progress(len(clips), len(todo)) as progress:
        for start in range(0, len(own), shard_clips):
            shard = {name: clips[name] for name in own[start : start + shard_clips]}
            waveforms = _named(read_ahead(shard, audio, minimum), bad, progress)
            heard = _hear_in_batches(waveforms, ear, fingerprint, progress)
            write_shard(shard_path(folder, shard), heard, DTYPES[fingerprint.stored])
    return bad


class _Progress:
    """How far hearing is and how long it will take, for whoever watches: a bar on a terminal, else a line a minute.

    Of several processes the first shows its own pace as that of each: their shares are the same.
    """

    def __init__(self, clips: int, todo: int):
        self._before, self._clips, self._heard = clips - todo, clips, 0
        self._begun = self._said = time.monotonic()
        shown = None if is_first() else True
        self._bar = tqdm(desc="hearing", total=clips, initial=self._before, unit="clip", disable=shown)

    def add(self, clips: int) -> None:
        """After so many more clips of this process."""
        clips = min(clips * jax.process_count(), self._clips - self._before - self._heard)
        self._heard += clips
        self._bar.update(clips)
        if self._bar.disable and time.monotonic() - self._said >= _LINE_SECONDS:
            self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        done, rate = self._before + self._heard, self._heard / (self._said - self._begun)
        left = tqdm.format_interval((self._clips - done) / rate)
        line = f"heard {done:,} of {counted(self._clips, 'clip')}, {rate:.1f} clips/s, {left} left"
        if is_first():
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._bar.disable and self._heard:
            self._say()


def _named(
    waveforms: Iterable[tuple[str, Waveform | UserError]], bad: dict[str, str], progress: _Progress
) -> Iterator[tuple[str, Waveform]]:
    """The clips that could be read; the others go to `bad`."""
    for name, waveform in waveforms:
        if isinstance(waveform, UserError):
            bad[name] = str(waveform)
            progress.add(1)
        else:
            yield name, waveform


def _hear_in_batches(
    waveforms: Iterable[tuple[str, Waveform]], ear: Ear, fingerprint: Fingerprint, progress: _Progress
) -> Iterator[tuple[str, Features]]:
    """Features in the order of the waveforms."""
    most = _BATCH_SECONDS * fingerprint.sample_rate
    batch: dict[str, Waveform] = {}
    for name, waveform in waveforms:
        batch[name] = waveform
        if len(batch) == _BATCH_CLIPS or sum(map(len, batch.values())) >= most:
            yield from _hear_batch(batch, ear, fingerprint)
            progress.add(len(batch))
            batch = {}
    if batch:
        yield from _hear_batch(batch, ear, fingerprint)
        progress.add(len(batch))


def _hear_batch(batch: Mapping[str, Waveform], ear: Ear, fingerprint: Fingerprint) -> Iterable[tuple[str, Features]]:
    """Each clip's features: [K, D] or [S, K, D] of the whole clip, or those of its crops stacked, C x these."""
    crops = fingerprint.fixed_crops
    if crops is None:
        return zip(batch, ear(list(batch.values())), strict=True)
    pieces = {name: crops.cut_all(waveform, fingerprint.sample_rate, name) for name, waveform in batch.items()}
    heard = iter(ear([piece for clip in pieces.values() for piece in clip]))
    return [(name, np.stack([next(heard) for _ in clip])) for name, clip in pieces.items()]


def _open_or_make(folder: Path, fingerprint: Fingerprint) -> FeatureCache:
    """The cache in a folder, made if need be; shards that are damaged or were never finished are removed."""
    path = folder / FINGERPRINT
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: the music features cannot be kept there ({error.strerror})") from error
    if not path.exists():
        write_whole(path, [json.dumps(dataclasses.asdict(fingerprint), indent=2), "\n"])
    cache = FeatureCache.open(folder, fingerprint)
    for leftover in [*cache.damaged, *unfinished(folder)]:
        leftover.unlink()
    return cache

"""Filling a feature cache: clips are read ahead, encoded in batches, and kept shard by shard.

Axes: K features of a clip, D encoder width, S hidden states, C crops, N samples.
"""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from mlingo_jax.data.contents import UNKNOWN, Contents, changed, digest_audio, file_state
from mlingo_jax.data.stored import Audio, Waveform, read_ahead
from mlingo_jax.data.unreadable import LISTED, list_all, named, require_few
from mlingo_jax.errors import UserError
from mlingo_jax.features.cache import FINGERPRINT, FeatureCache, Fingerprint
from mlingo_jax.features.shards import DTYPES, Features, unfinished, write_shard
from mlingo_jax.files import exclusive_lock, write_atomic
from mlingo_jax.models.mert_config import RECEPTIVE_FIELD
from mlingo_jax.processes import all_gather, broadcast, is_primary, run_on_primary
from mlingo_jax.wording import counted

MEMORY = "audio.npy"
"""What a cache remembers of the audio files, so as not to read them again."""

AudioEncoder = Callable[[Sequence[Waveform]], Sequence[Features]]

# Features of ten minutes of audio are asked for at once: enough for full batches on a device, 60 MB of waveforms.
_BATCH_SECONDS = 600
_BATCH_CLIPS = 64
# Where no terminal shows a bar, a line comes this often.
_LINE_SECONDS = 60.0


def fill_cache(
    clips: Mapping[str, Audio],
    encoder: AudioEncoder,
    folder: str | Path,
    fingerprint: Fingerprint,
    *,
    minimum: int = RECEPTIVE_FIELD,
    shard_clips: int = 512,
    max_bad_fraction: float = 0.0,
) -> tuple[FeatureCache, dict[str, str]]:
    """Puts the features of all clips that are not there yet into the cache in `folder`, made if need be.

    clips: the audio of each clip. encoder: from waveforms as `read_audio` gives them to features. minimum: samples a
    clip must have. A shard holds the clips of `shard_clips` files; after a kill, only the shard in work is encoded
    again. A clip whose audio has changed since it was encoded is encoded again, and said.

    Several processes encode together when all of them call this with the same clips and a folder that all see: each
    encodes its share, with an encoder on its own devices.

    Returns the cache, and why each clip that cannot be read cannot. Raises UserError when these are more than
    `max_bad_fraction` of all clips (all others have been encoded by then), when the folder holds features of another
    kind or would get some from another kind of device, when it cannot be written, or while another process encodes into
    it.
    """
    folder = Path(folder)
    busy = f"{folder}: another process is encoding clips into this cache; wait until it is done"
    # The first of several processes holds the lock for all of them.
    with exclusive_lock(folder / ".lock", busy) if is_primary() else contextlib.nullcontext():
        run_on_primary("the feature cache", lambda: _open_or_make(folder, fingerprint))
        todo = broadcast(_to_encode(clips, folder, fingerprint) if is_primary() else [])
        if todo:
            # Nothing is added from another kind of device: its rounding would set some clips apart from the others.
            FeatureCache(folder).require_fit(fingerprint, ignore=("versions",))
        before = time.time_ns()
        bad = _encode_missing(clips, [list(clips)[n] for n in todo], encoder, folder, fingerprint, minimum, shard_clips)
        # When all have told, all shards are there.
        bad = {name: reason for told in all_gather(bad) for name, reason in told.items()}
        versions = broadcast(_remember(clips, todo, bad, folder, before) if is_primary() else {})
        if is_primary() and (bad or (folder / LISTED).exists()):
            list_all(folder, bad.values())
    require_few(bad.values(), len(clips), max_bad_fraction, folder, f"the other clips' features are kept in {folder}")
    return FeatureCache(folder, versions), bad


def find_encoded(clips: Mapping[str, Audio], folder: Path) -> tuple[list[bool], dict[str, str]]:
    """Whether each clip's features are in a cache, and are those of its audio as it is now.

    And which are meant where other audio was encoded under its name as well (see `FeatureCache`).

    Reads the audio files that may have changed since they were read last, and remembers that they have not.
    """
    cache, contents = FeatureCache(folder), Contents(folder / MEMORY)
    names, audio = list(clips), list(clips.values())
    # A clip that was never encoded will be read when it is.
    known = cache.encoded(names)
    digests = iter(contents.digests([a for a, is_known in zip(audio, known, strict=True) if is_known]))
    of_clip = [next(digests) if is_known else UNKNOWN for is_known in known]
    contents.save()
    times = [changed(a) for a in audio]
    return cache.holds(names, of_clip, times), cache.versions(names, of_clip, times)


def _to_encode(clips: Mapping[str, Audio], folder: Path, fingerprint: Fingerprint) -> list[int]:
    """The positions of the clips that are not in the cache yet, or whose audio is not what was encoded."""
    cache = FeatureCache.open(folder, fingerprint)
    held, _ = find_encoded(clips, folder)
    todo = [n for n, is_held in enumerate(held) if not is_held]
    names = list(clips)
    changes = [names[n] for n in todo if names[n] in cache]
    if changes:
        print(
            f"{folder}: {counted(len(changes), 'clip')} encoded again: their audio is not what was encoded under their "
            f"names: {named(changes)}",
            file=sys.stderr,
            flush=True,
        )
    return todo


def _remember(
    clips: Mapping[str, Audio], todo: Sequence[int], bad: Collection[str], folder: Path, before: int
) -> dict[str, str]:
    """After an encoding that began at `before`: remembers what the files were, so that they need not be read again.

    Returns which features are meant: see `find_encoded`.
    """
    cache, contents, names = FeatureCache(folder), Contents(folder / MEMORY), list(clips)
    encoded = [names[n] for n in todo if names[n] not in bad]
    files = {n: path for n in encoded if isinstance(path := clips[n], Path) and n in cache and cache.is_sole(n)}
    contents.learn(list(files.values()), cache.digests(list(files)), before=before)
    contents.save()
    return find_encoded(clips, folder)[1]


def _encode_missing(
    clips: Mapping[str, Audio],
    todo: Sequence[str],
    encoder: AudioEncoder,
    folder: Path,
    fingerprint: Fingerprint,
    minimum: int,
    shard_clips: int,
) -> dict[str, str]:
    """Encodes this process's share, shard by shard; returns why each clip that cannot be read cannot."""
    own = todo[jax.process_index() :: jax.process_count()]
    audio = fingerprint.audio_settings
    bad: dict[str, str] = {}
    with _Progress(len(clips), len(todo)) as progress:
        for start in range(0, len(own), shard_clips):
            shard = {name: clips[name] for name in own[start : start + shard_clips]}
            digests: dict[str, str] = {}
            waveforms = _named(shard, read_ahead(shard.items(), audio, minimum), digests, bad, progress)
            encoded = _encode_in_batches(waveforms, encoder, fingerprint, progress)
            features = ((name, digests[name], values) for name, values in encoded)
            write_shard(folder, shard, features, DTYPES[fingerprint.stored], fingerprint.kind)
    return bad


class _Progress:
    """How far encoding is and how long it will take, for whoever watches: a bar on a terminal, else a line a minute.

    Of several processes the first shows its own pace as that of each: their shares are the same.
    """

    def __init__(self, clips: int, todo: int):
        self._before, self._clips, self._encoded = clips - todo, clips, 0
        self._begun = self._said = time.monotonic()
        shown = None if is_primary() else True
        self._bar = tqdm(desc="encoding", total=clips, initial=self._before, unit="clip", disable=shown)

    def add(self, clips: int) -> None:
        """After so many more clips of this process."""
        clips = min(clips * jax.process_count(), self._clips - self._before - self._encoded)
        self._encoded += clips
        self._bar.update(clips)
        if self._bar.disable and time.monotonic() - self._said >= _LINE_SECONDS:
            self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        done, rate = self._before + self._encoded, self._encoded / (self._said - self._begun)
        left = tqdm.format_interval((self._clips - done) / rate)
        line = f"encoded {done:,} of {counted(self._clips, 'clip')}, {rate:.1f} clips/s, {left} left"
        if is_primary():
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._bar.disable and self._encoded:
            self._say()


def _named(
    clips: Mapping[str, Audio],
    waveforms: Iterable[tuple[str, Waveform | UserError]],
    digests: dict[str, str],
    bad: dict[str, str],
    progress: _Progress,
) -> Iterator[tuple[str, Waveform]]:
    """The clips that could be read, whose audio's digests go to `digests`; the others go to `bad`."""
    before = {name: file_state(audio) for name, audio in clips.items() if isinstance(audio, Path)}
    for name, waveform in waveforms:
        digests[name] = digest_audio(clips[name])
        if isinstance(waveform, UserError):
            bad[name] = str(waveform)
        elif name in before and (digests[name] == UNKNOWN or file_state(str(clips[name])) != before[name]):
            bad[name] = f"{clips[name]}: changed while it was read; give the same command again"
        else:
            yield name, waveform
            continue
        progress.add(1)


def _encode_in_batches(
    waveforms: Iterable[tuple[str, Waveform]], encoder: AudioEncoder, fingerprint: Fingerprint, progress: _Progress
) -> Iterator[tuple[str, Features]]:
    """Features in the order of the waveforms."""
    most = _BATCH_SECONDS * fingerprint.sample_rate
    batch: dict[str, Waveform] = {}
    for name, waveform in waveforms:
        batch[name] = waveform
        if len(batch) == _BATCH_CLIPS or sum(map(len, batch.values())) >= most:
            yield from _encode_batch(batch, encoder, fingerprint)
            progress.add(len(batch))
            batch = {}
    if batch:
        yield from _encode_batch(batch, encoder, fingerprint)
        progress.add(len(batch))


def _encode_batch(
    batch: Mapping[str, Waveform], encoder: AudioEncoder, fingerprint: Fingerprint
) -> Iterable[tuple[str, Features]]:
    """Each clip's features: [K, D] or [S, K, D] of the whole clip, or those of its crops stacked, C x these."""
    crops = fingerprint.fixed_crops
    if crops is None:
        return zip(batch, encoder(list(batch.values())), strict=True)
    pieces = {name: crops.cut_all(waveform, fingerprint.sample_rate, name) for name, waveform in batch.items()}
    encoded = iter(encoder([piece for clip in pieces.values() for piece in clip]))
    return [(name, np.stack([next(encoded) for _ in clip])) for name, clip in pieces.items()]


def _open_or_make(folder: Path, fingerprint: Fingerprint) -> FeatureCache:
    """The cache in a folder, made if need be.

    Shards that were never finished are removed, damaged ones put aside.
    """
    path = folder / FINGERPRINT
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: the music features cannot be kept there ({error.strerror})") from error
    if not path.exists():
        write_atomic(path, [json.dumps(dataclasses.asdict(fingerprint), indent=2), "\n"])
    cache = FeatureCache.open(folder, fingerprint)
    for leftover in unfinished(folder):
        leftover.unlink()
    # Not removed: a disk that fails to read now may read again, and the audio may be gone.
    for damaged in cache.damaged:
        damaged.rename(damaged.with_suffix(".damaged"))
    if cache.foreign:
        print(
            f"{folder}: {counted(len(cache.foreign), 'shard')} made by another encoder or with other settings, and not "
            f"used: {named([path.name for path in cache.foreign])}",
            file=sys.stderr,
            flush=True,
        )
    return cache

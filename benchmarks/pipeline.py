"""What feeding costs: decoding, batches from prepared records and the feature cache, padding, and what a step waits.

    python -m benchmarks.pipeline --tokenizer weights/vicuna-v0 --texts musiccaps-public.csv EvalMusicQA.json

Clips are noise of 30 s (mp3, 44.1 kHz, stereo). Texts are the published annotation files, prepared as datasets about
clips of silence in a temporary folder; which dataset a file is from is told by its ending. Features are random,
[K, 1024]. A step is a pause in which the host does nothing, as long as its examples take at the rate that is named.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile
from absl import logging

from mlingo_jax.data.audio import AudioSettings, read_audio
from mlingo_jax.data.mixture import Mixture, Wanted, read_mixture
from mlingo_jax.data.packing import ROW_LENGTH, pack
from mlingo_jax.data.pipeline import make_dataset
from mlingo_jax.data.prompt import Prompt, PromptSettings
from mlingo_jax.data.rows import Batch
from mlingo_jax.data.statistics import ExampleStatistics, example_statistics, row_length, row_sizes
from mlingo_jax.data.tokenizer import load_tokenizer
from mlingo_jax.datasets.build import Options, build
from mlingo_jax.datasets.music_caps import MusicCaps
from mlingo_jax.datasets.music_qa import MusicQA
from mlingo_jax.features.cache import FeatureCache, Fingerprint
from mlingo_jax.features.fill import fill_cache
from mlingo_jax.features.sources import CachedFeatures

AUDIO = AudioSettings(sample_rate=24000, normalize=True)
SILENCE = AudioSettings(sample_rate=8000, normalize=False)
WIDTH, BATCH = 1024, 8
MUSIC_TOKENS = {"music_caps": 3, "music_qa": 7}  # Ten seconds, and thirty or more.
CLIPS, MEASURED_SECONDS = 12, 8.0
# What an H200 takes at its roofline, and seven of them.
STEP_RATES = (750, 5000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, type=Path)
    parser.add_argument("--texts", nargs="+", type=Path, default=[])
    arguments = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    prompt = Prompt(load_tokenizer(arguments.tokenizer), PromptSettings())
    with tempfile.TemporaryDirectory() as folder:
        print(f"decoding: {decoded_per_second(Path(folder)):.1f} clips/s on one core")
        for path in arguments.texts:
            report(path, prompt, Path(folder) / path.stem)


def decoded_per_second(folder: Path) -> float:
    """Clips of 30 s, mp3 at 44.1 kHz in stereo, decoded, mixed down and resampled: for a second of CPU."""
    noise = np.random.default_rng(0).normal(0, 0.1, (30 * 44100, 2)).astype(np.float32)
    soundfile.write(folder / "clip.mp3", noise, 44100)
    begin = time.process_time()
    for _ in range(CLIPS):
        read_audio(folder / "clip.mp3", AUDIO)
    return CLIPS / (time.process_time() - begin)


def report(path: Path, prompt: Prompt, folder: Path) -> None:
    """Padding, throughput and waiting with one dataset's texts, with one example in a row and with several."""
    dataset = MusicCaps if path.suffix == ".csv" else MusicQA
    examples = prepared(path, dataset, folder)
    begin = time.process_time()
    statistics = example_statistics(examples, prompt)
    once = (time.process_time() - begin) / len(examples)
    music = random_features(statistics, MUSIC_TOKENS[dataset.name], folder)
    sizes = row_sizes(statistics, music)
    single = row_length(sizes, examples, None)
    length = max(ROW_LENGTH, single)
    packing = pack(sizes.lengths, sizes.music, [range(len(examples))], length=length, seed=0)
    used = int(sizes.lengths.sum())
    print(f"{path.name}: {len(examples):,} examples, rows of {sizes.mean:.0f} tokens on average")
    print(f"  before the first step: {once * 1e6:.0f} us of CPU an example")
    for name, rows, positions, packed in (
        ("one example in a row", len(examples), single, None),
        ("packed", len(packing), length, packing),
    ):
        padding = 1 - used / (rows * positions)
        batches = make_dataset(examples, prompt, music, length=positions, batch=BATCH, seed=0, packing=packed)
        rate, cpu = examples_per_second(batches)
        print(f"  {name}: {rows:,} rows of {positions}, {padding:.1%} padding; {rate:,.0f} examples/s, ", end="")
        print(f"{cpu * 1e6:.0f} us of CPU each, {rate * rows / len(examples) / BATCH:,.1f} batches of {BATCH} rows/s")
        shares = [f"{waiting_share(batches, rate):.2%} at {rate:,} examples/s" for rate in STEP_RATES]
        print(f"    of its time a step waits {', '.join(shares)}")


def prepared(path: Path, dataset: type[MusicCaps] | type[MusicQA], folder: Path) -> Mixture:
    """All examples of an annotation file, as records about clips of silence."""
    audio = folder / "audio"
    audio.mkdir(parents=True)
    silence = folder / "silence.wav"
    soundfile.write(silence, np.zeros(SILENCE.sample_rate // 10), SILENCE.sample_rate)
    for clip in {a.clip for a in dataset(annotations=[path]).annotations()}:
        (audio / f"{clip}.wav").hardlink_to(silence)
    built = build(dataset, [path], [audio], folder / "data", options=Options(tolerance=60.0))
    return read_mixture(folder / "data", [Wanted(dataset.name, split) for split in built.kept])


def random_features(statistics: ExampleStatistics, tokens: int, folder: Path) -> CachedFeatures:
    """A cache with random features for every clip."""
    rng = np.random.default_rng(0)
    fingerprint = Fingerprint.of({"name": "random"}, SILENCE, frames_per_token=325, seconds=30.0)

    def encoder(encoded: Sequence[np.ndarray]) -> list[np.ndarray]:
        return list(rng.normal(size=(len(encoded), tokens, WIDTH)))

    fill_cache(statistics.clips, encoder, folder / "features", fingerprint)
    return CachedFeatures(FeatureCache(folder / "features"), statistics.clips.keys())


def examples_per_second(batches: Iterator[Batch]) -> tuple[float, float]:
    """How many examples the stream gives in a second, and the CPU's seconds for each, after its first batches."""
    for _ in itertools.islice(batches, 10):
        pass
    begin, cpu, seen = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - begin < MEASURED_SECONDS:
        seen += int((next(batches)["example"] >= 0).sum())
    return seen / (time.perf_counter() - begin), (time.process_time() - cpu) / seen


def waiting_share(batches: Iterator[Batch], rate: float) -> float:
    """The share of its time that a loop whose steps take `rate` examples a second spends waiting for the next batch."""
    begin, waited = time.perf_counter(), 0.0
    while time.perf_counter() - begin < MEASURED_SECONDS / 2:
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        time.sleep(int((batch["example"] >= 0).sum()) / rate)
    return waited / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()

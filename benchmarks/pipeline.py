"""What feeding costs: decoding, batches from the feature cache, and the share of padding on real texts.

    python -m benchmarks.pipeline --tokenizer weights/vicuna-v0 --texts musiccaps-public.csv EvalMusicQA.json

Clips are noise of 30 s (mp3, 44.1 kHz, stereo); features are random, [K, 1024]; both are written to a temporary folder.
Texts are the published annotation files; which dataset a file is from is told by its ending.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from mlingo_jax.data.audio import AudioSettings, read_audio
from mlingo_jax.data.datasets.music_caps import SECONDS, MusicCaps
from mlingo_jax.data.datasets.music_qa import MusicQA
from mlingo_jax.data.examples import Example
from mlingo_jax.data.features import FeatureCache, Fingerprint
from mlingo_jax.data.fill import hear
from mlingo_jax.data.packing import ROW_LENGTH, Packing, pack
from mlingo_jax.data.pipeline import CachedMusic, make_dataset
from mlingo_jax.data.prompt import Prompt, PromptSettings, load_tokenizer
from mlingo_jax.data.survey import row_length, row_sizes, survey

AUDIO = AudioSettings(sample_rate=24000, normalize=True)
WIDTH, BATCH = 1024, 8
MUSIC_TOKENS = {"music_caps": 3, "music_qa": 7}  # Ten seconds, and thirty or more.
CLIPS, MEASURED_SECONDS = 12, 8.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, type=Path)
    parser.add_argument("--texts", nargs="+", type=Path, default=[])
    arguments = parser.parse_args()
    prompt = Prompt(load_tokenizer(arguments.tokenizer), PromptSettings())
    with tempfile.TemporaryDirectory() as folder:
        print(f"decoding: {decoded_per_second(Path(folder)):.1f} clips/s on one core")
        for path in arguments.texts:
            report(path, prompt, Path(folder) / path.stem)


def decoded_per_second(folder: Path) -> float:
    """Clips of 30 s, mp3 at 44.1 kHz in stereo, decoded, mixed down and resampled by one thread."""
    noise = np.random.default_rng(0).normal(0, 0.1, (30 * 44100, 2)).astype(np.float32)
    soundfile.write(folder / "clip.mp3", noise, 44100)
    begin = time.perf_counter()
    for _ in range(CLIPS):
        read_audio(folder / "clip.mp3", AUDIO)
    return CLIPS / (time.perf_counter() - begin)


def report(path: Path, prompt: Prompt, folder: Path) -> None:
    """Padding and throughput of one dataset's texts, with one example in a row and with several."""
    dataset = MusicCaps if path.suffix == ".csv" else MusicQA
    annotations = list(dataset(annotations=[path]).annotations())
    examples = [Example(a.clip, path, a.question, a.answer, None, a.clip) for a in annotations]
    music = random_features(examples, MUSIC_TOKENS[dataset.name], folder)
    sizes = row_sizes(survey(examples, prompt), music)
    single = row_length(sizes, examples, None)
    length = max(ROW_LENGTH, single)
    packing = pack(sizes.lengths, sizes.music, [range(len(examples))], length=length, seed=0)
    used = int(sizes.lengths.sum())
    print(f"{path.name}: {len(examples):,} examples, rows of {sizes.mean:.0f} tokens on average")
    for name, rows, places, packed in (
        ("one example in a row", len(examples), single, None),
        ("packed", len(packing), length, packing),
    ):
        padding = 1 - used / (rows * places)
        rate = examples_per_second(examples, prompt, music, places, packed)
        each = len(examples) / rows
        print(f"  {name}: {rows:,} rows of {places}, {padding:.1%} padding; {rate:,.0f} examples/s, ", end="")
        print(f"{rate / each / BATCH:,.1f} batches of {BATCH} rows/s")


def random_features(examples: list[Example], tokens: int, folder: Path) -> CachedMusic:
    """A cache with random features for every clip."""
    rng = np.random.default_rng(0)
    clip = folder.with_suffix(".wav")
    soundfile.write(clip, np.zeros(int(SECONDS * 1000), np.float32), 1000)
    clips = {example.clip: clip for example in examples}
    settings = AudioSettings(sample_rate=1000, normalize=False)
    fingerprint = Fingerprint.of({"name": "random"}, settings, window=325, seconds=30.0)
    hear(clips, lambda heard: list(rng.normal(size=(len(heard), tokens, WIDTH))), folder, fingerprint)
    return CachedMusic(FeatureCache(folder), clips.keys())


def examples_per_second(
    examples: list[Example], prompt: Prompt, music: CachedMusic, length: int, packing: Packing | None
) -> float:
    """How many examples the stream gives in a second, after its first batches."""
    batches = make_dataset(examples, prompt, music, length=length, batch=BATCH, seed=0, packing=packing)
    for _ in itertools.islice(batches, 10):
        pass
    begin, seen = time.perf_counter(), 0
    while time.perf_counter() - begin < MEASURED_SECONDS:
        seen += int((next(batches)["example"] >= 0).sum())
    return seen / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()

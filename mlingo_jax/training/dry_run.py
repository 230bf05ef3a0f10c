"""What a run would be, before any weights are loaded and any clip is encoded."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from transformers import PreTrainedTokenizerBase

from mlingo_jax.data.audio import AudioSettings
from mlingo_jax.data.examples import Example, Examples
from mlingo_jax.data.mixture import Mixture, clip_name, parse_wanted
from mlingo_jax.data.prepared import Prepared
from mlingo_jax.data.rows import Batch
from mlingo_jax.data.statistics import RowSizes, row_sizes
from mlingo_jax.data.stored import Audio, durations
from mlingo_jax.errors import UserError
from mlingo_jax.features.encode import count_tokens
from mlingo_jax.features.spec import FeatureSpec
from mlingo_jax.flags import to_json
from mlingo_jax.settings import Config, DataConfig
from mlingo_jax.training.examples import Batches, Layout, RunData, lay_out, open_data, reading_threads
from mlingo_jax.training.music import encoded_clips
from mlingo_jax.training.run import prompt_settings
from mlingo_jax.weights.folders import find
from mlingo_jax.weights.towers import open_tower
from mlingo_jax.wording import counted


@dataclasses.dataclass(frozen=True)
class CountedFeatures:
    """No music, but how many tokens each clip would have: features of width 0."""

    tokens: dict[str, int]
    random = False

    def most_tokens(self, clip: str) -> int:
        """As `Music.most_tokens`."""
        return self.tokens[clip]

    def load(self, example: Example | None, rng: np.random.Generator | None) -> tuple[int, Batch]:
        """As `Music.load`."""
        tokens = 0 if example is None else self.tokens[example.clip]
        return tokens, {"music": np.zeros((max(self.tokens.values()), 0), np.float32)}


def dry_run(config: Config) -> str:
    """The resolved config, the examples' numbers, the first batch as text, and the steps and epochs.

    Raises:
        UserError: as a run that begins would.
    """
    for name, path in (("mert", config.mert.path), ("llm", config.llm.path)):
        if not path:
            raise UserError(f"config.{name}.path is empty: name it with --config.{name}.path=…, also for a dry run")
    spec = FeatureSpec.of(config)
    encoded = encoded_clips(spec) if config.data.manifest else ()
    data = open_data(config.data, config.llm.path, prompt_settings(config.prompt), encoded)
    music = CountedFeatures(_count_music(spec, _seconds(config.data, data.statistics.clips, spec.row_seconds)))
    sizes = row_sizes(data.statistics, music)
    layout = lay_out(data, sizes, length=config.data.length, packed=config.data.packed, seed=config.seed)
    threads = reading_threads(spec.online)
    batch = next(Batches(data, music, layout, config.batch_size, config.seed, config.data.mixing, threads).train())
    row = "row" if layout.packing else "example"
    updates, seen = config.steps // config.accumulate, config.steps * config.batch_size * layout.row_examples
    lines = [
        to_json(config).rstrip(),
        "",
        *_numbers(data, sizes, layout, config.prompt.max_answer_tokens),
        "",
        "the first batch, what is learnt in «»:",
        *shown_rows(batch, data.train, data.prompt.tokenizer),
        "",
        f"{counted(config.steps, 'step')} of {counted(config.batch_size, row)}, {counted(updates, 'update')}",
        *_epochs(config.data, data.train, seen),
    ]
    return "\n".join(lines)


def _numbers(data: RunData, sizes: RowSizes, layout: Layout, most: int) -> list[str]:
    """How many examples there are, and how they lie in rows; `most` is an answer's tokens at most."""
    packing, rows = layout.packing, f"rows of {layout.length} tokens, {sizes.mean:.0f} used on average"
    if packing:
        used = sizes.lengths[: len(data.train)].sum() / len(packing)
        rows = f"packed into {counted(len(packing), 'row')} of {layout.length} tokens, {used:.0f} used on average"
    return [
        f"{counted(len(data.train), 'example')} to train on, {len(data.held_out):,} to evaluate on, about "
        f"{counted(len(data.statistics.clips), 'clip')}",
        f"{rows}; {counted(int(data.statistics.truncated.sum()), 'answer')} cut to {most} tokens",
        f"each begins with {data.prompt.shown_opening() or 'its music'}",
        *(f"note: {note}" for note in data.notes(sizes.longest)),
    ]


def shown_rows(batch: Batch, examples: Examples, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Each example of a batch, row by row: where it is from, and its text; a run of music tokens is [music 0-2]."""
    shown = []
    for b, positions in enumerate(batch["example"]):
        for segment, position in enumerate(np.atleast_1d(positions), 1):
            if position >= 0:
                text = _shown(batch, b, batch["segments"][b] == segment, tokenizer)
                shown.append(f"row {b}, {examples[int(position)].where}: {text}")
    return shown


def _shown(batch: Batch, b: int, own: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> str:
    music, learnt = batch["music_index"][b, own], batch["loss_weights"][b, own] > 0
    kind = np.where(music >= 0, 0, np.where(learnt, 1, 2))
    shown = []
    for run in np.split(np.arange(len(kind)), np.flatnonzero(np.diff(kind)) + 1):
        if not len(run):
            return "its clip cannot be read"
        first, last = run[0], run[-1]
        text = str(tokenizer.decode(batch["tokens"][b, own][run].tolist()))
        is_music = music[first] >= 0
        shown.append(f"[music {music[first]}-{music[last]}]" if is_music else f"«{text}»" if learnt[first] else text)
    return "".join(shown).replace("\n", "\\n")


def _epochs(data: DataConfig, train: Mixture, seen: float) -> list[str]:
    """How often each dataset comes in so many examples, and with several, its share of them."""
    wanted = parse_wanted(data.datasets, "config.data.datasets") if data.datasets else []
    names = [f"{w.dataset}:{w.split}" for w in wanted] or [data.manifest]
    total = sum(train.weights)
    return [
        f"  {seen * weight / total / len(positions):.2f} epochs of the {counted(len(positions), 'example')} of {name}"
        + (f", {weight / total:.1%} of what is drawn" if len(names) > 1 else "")
        for name, weight, positions in zip(names, train.weights, train.ranges, strict=True)
    ]


def _count_music(spec: FeatureSpec, seconds: Mapping[str, float]) -> dict[str, int]:
    """The music tokens of each clip, from the clips' lengths in seconds."""
    encoder = open_tower(find(spec.encoder), "encoder")
    audio = AudioSettings.from_folder(encoder.files or find(spec.encoder))

    def tokens(seconds: float) -> int:
        samples = round(min(seconds, spec.row_seconds) * audio.sample_rate)
        return count_tokens(samples, audio, encoder.config, spec.frames_per_token, spec.chunk_seconds)

    return {clip: tokens(length) for clip, length in seconds.items()}


def _seconds(data: DataConfig, clips: Mapping[str, Audio], most: float) -> dict[str, float]:
    """The clips' lengths, of files up to `most` of each; 0 for what is not there."""
    if not data.datasets:
        return {clip: seconds or 0.0 for clip, seconds in durations(clips, most).items()}
    wanted = parse_wanted(data.datasets, "config.data.datasets")
    wanted += parse_wanted(data.evaluate, "config.data.evaluate") if data.evaluate else []
    found = [Prepared(data.data_dir, name) for name in {part.dataset: None for part in wanted}]
    known = {clip_name(p.collection, clip): seconds for p in found for clip, seconds, _ in p.clips.lengths()}
    return {clip: known.get(clip, 0.0) for clip in clips}

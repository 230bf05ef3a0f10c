"""What a run would be, before any weights are loaded and any clip is heard."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from transformers import PreTrainedTokenizerBase

from configs.base import Config
from conversion.folders import find
from conversion.towers import open_tower
from mlingo_jax.data.audio import AudioSettings
from mlingo_jax.data.datasets.prepared import Prepared
from mlingo_jax.data.examples import Example
from mlingo_jax.data.hearing import count_tokens
from mlingo_jax.data.mixture import Mixture, clip_name, parse_wanted
from mlingo_jax.data.packing import ROW_LENGTH, pack
from mlingo_jax.data.pipeline import make_dataset
from mlingo_jax.data.prompt import Prompt, load_tokenizer
from mlingo_jax.data.rows import Batch
from mlingo_jax.data.stored import Audio, duration
from mlingo_jax.data.survey import row_length, row_sizes, survey
from mlingo_jax.models.mert import MertConfig
from mlingo_jax.training.config import to_json
from mlingo_jax.training.examples import read_examples
from mlingo_jax.training.run import prompt_settings


@dataclasses.dataclass(frozen=True)
class CountedMusic:
    """No music, but how many tokens each clip would have."""

    tokens: dict[str, int]

    random = False

    def most_tokens(self, clip: str) -> int:
        """As `Music.most_tokens`."""
        return self.tokens[clip]

    def load(self, example: Example | None, rng: np.random.Generator | None) -> tuple[int, Batch]:
        """As `Music.load`, without fields."""
        return 0 if example is None else self.tokens[example.clip], {}


def dry_run(config: Config) -> str:
    """The resolved config, the examples' numbers, the first batch as text, and the steps and epochs.

    Raises:
        UserError: as a run that begins would; the encoder's config and the language model's tokenizer are needed.
    """
    train, held_out = read_examples(config)
    prompt = Prompt(load_tokenizer(find(config.llm.path)), prompt_settings(config))
    surveyed = survey(Mixture([train, held_out]), prompt)
    music = CountedMusic(_count_music(config, surveyed.clips))
    sizes = row_sizes(surveyed, music)
    length = row_length(sizes, Mixture([train, held_out]), config.data.length or None)
    batches = make_dataset(
        train,
        prompt,
        music,
        length=length,
        batch=config.batch_size,
        seed=config.seed,
        parts=train.ranges,
        weights=train.weights,
        apart=config.data.mixing == "step",
    )
    seen, packed = float(config.steps * config.batch_size), []
    if config.data.packed:
        own, tokens = sizes.lengths[: len(train)], sizes.music[: len(train)]
        row = config.data.length or max(length, ROW_LENGTH)
        rows = len(pack(own, tokens, train.ranges, length=row, seed=config.seed))
        seen *= len(train) / rows
        packed = [f"packed into {rows:,} x {row} tokens, {own.sum() / rows:.0f} used; the examples below share them"]
    lines = [
        to_json(config).rstrip(),
        "",
        f"{len(train):,} examples to train on, {len(held_out):,} to evaluate on",
        f"rows of {length} tokens, {sizes.mean:.0f} used on average; {surveyed.cut.sum():,} answers are cut",
        *packed,
        *shown_rows(next(batches), prompt.tokenizer),
        f"{config.steps:,} steps of {config.batch_size}, {config.steps // config.accumulate:,} updates",
        *_epochs(train, seen),
    ]
    return "\n".join(lines)


def shown_rows(batch: Batch, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Each row of a batch as text; a run of music tokens is [music 0-2], the texts that are learnt are in «»."""
    return [f"row {b}: {_shown_row(batch, b, tokenizer)}" for b in range(len(batch["tokens"]))]


def _shown_row(batch: Batch, b: int, tokenizer: PreTrainedTokenizerBase) -> str:
    music, learnt = batch["music_index"][b], batch["loss_weights"][b] > 0
    used = int((batch["segments"][b] > 0).sum())
    kind = np.where(music >= 0, 0, np.where(learnt, 1, 2))[:used] + 3 * batch["segments"][b, :used]
    cuts = np.flatnonzero(np.diff(kind)) + 1
    shown = []
    for run in np.split(np.arange(used), cuts):
        text = str(tokenizer.decode(batch["tokens"][b, run].tolist()))
        is_music, is_learnt = music[run[0]] >= 0, learnt[run[0]]
        shown.append(f"[music {music[run[0]]}-{music[run[-1]]}]" if is_music else f"«{text}»" if is_learnt else text)
    return "".join(shown).replace("\n", "\\n")


def _epochs(train: Mixture, seen: float) -> list[str]:
    total = sum(train.weights)
    shares = [seen * weight / total for weight in train.weights]
    return [
        f"  {share / len(places):.2f} epochs of {len(places):,} examples, weight {weight:g}"
        for share, places, weight in zip(shares, train.ranges, train.weights, strict=True)
    ]


def _count_music(config: Config, clips: Mapping[str, Audio]) -> dict[str, int]:
    """The music tokens of each clip, from the clips' lengths."""
    encoder = open_tower(find(config.mert.path), "mert")
    assert isinstance(encoder.config, MertConfig)
    audio = AudioSettings.from_folder(encoder.files or find(config.mert.path))
    most = config.data.crop_seconds if config.data.hear_in_step or config.data.crops else float("inf")
    return {
        clip: count_tokens(round(min(seconds, most) * audio.sample_rate), audio, encoder.config, config.mert.window)
        for clip, seconds in _seconds(config, clips).items()
    }


def _seconds(config: Config, clips: Mapping[str, Audio]) -> dict[str, float]:
    data = config.data
    if not data.datasets:
        return {clip: duration(audio) or 0.0 for clip, audio in clips.items()}
    wanted = parse_wanted(data.datasets, "config.data.datasets")
    wanted += parse_wanted(data.evaluate, "config.data.evaluate") if data.evaluate else []
    found = [Prepared(data.data_dir, name) for name in {part.dataset: None for part in wanted}]
    return {clip_name(p.collection, clip): seconds for p in found for clip, seconds, _ in p.clips.lengths()}

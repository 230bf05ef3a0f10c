"""Before the demo trains: its corpus and its two towers, made once and kept."""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import soundfile

from mlingo_jax.conversion import to_jax
from mlingo_jax.data.prompt import PromptSettings
from mlingo_jax.demo.corpus import read_clips, write_corpus
from mlingo_jax.demo.encoder import make_encoder
from mlingo_jax.demo.language_model import make_language_model
from mlingo_jax.processes import run_on_primary
from mlingo_jax.settings import Config, DemoConfig
from mlingo_jax.training.run import prompt_settings
from mlingo_jax.weights.folders import new_target

TIMES = "seconds.json"


def prepare(config: Config) -> None:
    """Makes the demo's materials, unless they are there already, and points the config at them.

    The folder is named after all that it depends on, and appears when everything in it is whole.
    """
    prompt = prompt_settings(config.prompt)
    folder = materials_folder(config.demo, prompt)
    run_on_primary("the demo's materials", lambda: _make_unless_there(folder, config.demo, prompt))
    config.data.manifest = str(folder / "corpus" / "manifest.jsonl")
    config.mert.path = str(folder / "mert")
    config.llm.path = str(folder / "llm")


def _make_unless_there(folder: Path, settings: DemoConfig, prompt: PromptSettings) -> None:
    if folder.is_dir():
        _say(f"the demo's clips and models are there already: {folder}")
        return
    _say(f"making the demo's clips and models, once: {folder}")
    with new_target(folder, folder=True) as partial:
        _make(partial, settings, prompt)


def materials_folder(settings: DemoConfig, prompt: PromptSettings) -> Path:
    """Where the materials of these settings are, or will be: another setting or another version, another folder."""
    values = {**dataclasses.asdict(settings), "materials": "", "prompt": prompt.to_json()}
    key = sha256(json.dumps(values, sort_keys=True).encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        key.update(file.read_bytes())
    return Path(settings.materials) / key.hexdigest()[:12]


def _make(folder: Path, settings: DemoConfig, prompt: PromptSettings) -> None:
    seconds: dict[str, float] = {}
    with _phase(seconds, "corpus", "music: short pieces played by synthesised instruments, with questions and answers"):
        write_corpus(folder / "corpus", settings)
    with _phase(
        seconds,
        "language model",
        "a small LLaMA, taught on text alone to read what stands between <Audio> and </Audio>",
    ):
        make_language_model(folder / "llm-hf", prompt, steps=settings.llm_steps, seed=settings.seed)
    with _phase(
        seconds,
        "encoder",
        "a small MERT whose wide convolutions are wavelets, fitted to the sound of the training clips",
    ):
        clips = (folder / "corpus" / clip.audio for clip in read_clips(folder / "corpus") if clip.split == "train")
        make_encoder(
            folder / "mert-hf", (soundfile.read(clip, dtype="float32")[0] for clip in clips), seed=settings.seed
        )
    with _phase(seconds, "conversion", "both models from Hugging Face's layout to JAX's, as released weights would be"):
        for name in ("mert", "llm"):
            to_jax.convert(folder / f"{name}-hf", folder / name)
    (folder / TIMES).write_text(json.dumps(seconds, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _phase(seconds: dict[str, float], name: str, meaning: str) -> Iterator[None]:
    _say(f"{name}: {meaning}")
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 1)
    _say(f"{name}: {seconds[name]:.0f} s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

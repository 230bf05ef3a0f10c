"""Clips that cannot be read while a run continues: an empty row each, named once, and the end past a limit."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mlingo_jax.data.audio import AudioSettings
from mlingo_jax.data.examples import Example
from mlingo_jax.data.pipeline import evaluation_batches, make_dataset
from mlingo_jax.data.prompt import Prompt, PromptSettings
from mlingo_jax.data.unreadable import LISTED, Unreadable, list_all
from mlingo_jax.errors import UserError
from mlingo_jax.features.sources import OnlineAudio
from mlingo_jax.runs.checkpoints import restore
from mlingo_jax.settings import Config
from mlingo_jax.training.loop import train
from mlingo_jax.training.record import read_metrics
from tests.tiny import tiny_llama, tiny_mert, tiny_tokenizer

MUSIC = OnlineAudio(AudioSettings(sample_rate=1000, normalize=True), 0.6, tokens=lambda n: -(-n // 300), minimum=400)
BROKEN = (1, 4)


@pytest.fixture(scope="module")
def prompt(tmp_path_factory) -> Prompt:
    return Prompt(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")), PromptSettings())


def clips(folder: Path, broken: tuple[int, ...]) -> list[Example]:
    """Six clips with a question each; the broken ones' files have become something else."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for clip in range(6):
        soundfile.write(folder / f"{clip}.wav", rng.uniform(-1, 1, 1000), 1000, subtype="FLOAT")
    for clip in broken:
        (folder / f"{clip}.wav").write_text("not audio any more")
    return [Example(f"{c}.wav", folder / f"{c}.wav", "What?", "A bell.", None, f"data:{c}") for c in range(6)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list[Example]:
    return clips(tmp_path_factory.mktemp("clips") / "whole", ())


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> list[Example]:
    return clips(tmp_path_factory.mktemp("clips") / "damaged", BROKEN)


@pytest.mark.parametrize("threads", [1, 4])
def test_their_rows_are_empty_and_all_others_as_they_were(whole, damaged, prompt, threads):
    def stream(examples, threads):
        return make_dataset(examples, prompt, MUSIC, length=64, batch=4, seed=1, threads=threads)

    for expected, found in itertools.islice(zip(stream(whole, 1), stream(damaged, threads), strict=True), 6):
        bad = np.isin(expected["example"], BROKEN)
        for name in expected.keys() - {"unreadable", "example"}:
            np.testing.assert_array_equal(found[name][~bad], expected[name][~bad])
        np.testing.assert_array_equal(found["example"], expected["example"])
        for name in ("segments", "loss_weights", "waveform", "waveform_length"):
            assert not found[name][bad].any()
        assert [bool(reason) for reason in found["unreadable"]] == bad.tolist()


def test_each_is_named_once_and_too_many_end_it(damaged, prompt, tmp_path):
    first, second = evaluation_batches(damaged, prompt, MUSIC, length=64, batch=3)
    said: list[str] = []
    watch = Unreadable(6, 0.2, said.append, [], tmp_path)
    watch.note(first)
    watch.note(first)
    # Known to a run that is resumed.
    watch = Unreadable(6, 0.2, said.append, watch.share(), tmp_path)
    with pytest.raises(UserError, match=r"2 of 6 clips cannot be read \(allowed: 20\.0%\): .*1\.wav.*; .*4\.wav") as e:
        watch.note(second)
    assert "\n" not in str(e.value)
    assert [f"{clip}.wav: not audio" in line for clip, line in zip(BROKEN, said, strict=True)] == [True, True]
    patient = Unreadable(6, 0.5, said.append, [], tmp_path)
    for batch in (first, second, first, second):
        patient.note(batch)
    assert len(said) == 4
    assert [f"{clip}.wav: not audio" in line for clip, line in zip(BROKEN, listed(tmp_path), strict=True)] == [True] * 2


def test_of_many_a_few_are_named_and_all_are_listed(tmp_path):
    watch = Unreadable(60, 0.5, lambda _: None, [], tmp_path)
    reasons = [*(f"{number}.wav: not audio" for number in range(46)), "caf\udce9.wav: not audio"]
    message = r"31 of 60 .* 0\.wav: not audio; 1\..*; 4\.wav.*; … \(all of them: \S+/unreadable\.txt\); a higher"
    with pytest.raises(UserError, match=message):
        watch.note({"unreadable": np.array(reasons)})
    assert listed(tmp_path) == reasons[:31]
    list_all(tmp_path, reasons)
    assert listed(tmp_path) == [*reasons[:46], "caf\\udce9.wav: not audio"]


def listed(folder: Path) -> list[str]:
    return (folder / LISTED).read_text(encoding="utf-8").splitlines()


def a_run(examples: list[Example], tmp_path: Path, split: dict[str, str]) -> Config:
    """On these examples, with towers made for it."""
    tiny_mert(tmp_path / "mert")
    tiny_llama(tmp_path / "llm")
    lines = [
        {"audio": str(e.audio), "question": e.question, "answer": e.answer, "split": split.get(e.clip, "train")}
        for e in examples
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = Config(workdir=str(tmp_path / "run"), steps=3, batch_size=4, accumulate=1)
    config.mert.path, config.mert.dtype = str(tmp_path / "mert"), "float32"
    config.llm.path, config.llm.dtype = str(tmp_path / "llm"), "float32"
    config.data.manifest = str(tmp_path / "data.jsonl")
    return config


def test_a_run_goes_on_without_them(damaged, tmp_path, capsys):
    # All that is held out is broken: nothing is left to evaluate on.
    config = a_run(damaged, tmp_path, {f"{BROKEN[0]}.wav": "eval"})
    config.data.encode_in_step, config.data.crop_seconds, config.data.max_bad_fraction = True, 1.0, 0.4
    train(config)
    assert ["loss" in record for record in read_metrics(config.workdir)] == [True] * 3
    saved = restore(config.workdir)
    assert saved is not None
    assert len(saved.unreadable) == len(BROKEN)
    shown = capsys.readouterr().err
    for clip in BROKEN:
        path = damaged[clip].audio
        assert shown.count(f"cannot be read, its examples are skipped: {path}: not audio") == 1


def test_a_run_with_nothing_to_hear_says_so(damaged, tmp_path):
    config = a_run([damaged[clip] for clip in BROKEN], tmp_path, {})
    config.data.max_bad_fraction = 1.0
    with pytest.raises(UserError, match=r"features: not one clip can be read: .*1\.wav: not audio.*; .*4\.wav"):
        train(config)

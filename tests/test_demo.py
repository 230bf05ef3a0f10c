"""The demo: its music is what it says it is, its materials are whole and reusable, and the whole runs in miniature."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mlingo_jax import demo
from mlingo_jax.data.manifest import read_manifest
from mlingo_jax.data.prompt import PromptSettings
from mlingo_jax.data.tokenizer import load_tokenizer
from mlingo_jax.demo.corpus import Clip, perform, read_clips, write_corpus
from mlingo_jax.demo.encoder import whitening
from mlingo_jax.demo.language_model import make_tokenizer
from mlingo_jax.demo.materials import materials_folder
from mlingo_jax.demo.music import ATTRIBUTES, REGISTERS, SCALES, TEMPOS, Piece, compose
from mlingo_jax.demo.report import grade, summarise_grades
from mlingo_jax.demo.synthesis import INSTRUMENTS, frequency, recorded_note
from mlingo_jax.demo.texts import ANSWERS, CAPTION, CAPTIONS, QUESTIONS, ask, named, tell
from mlingo_jax.models.mert_config import SAMPLE_RATE
from mlingo_jax.recipes import recipe
from mlingo_jax.settings import Config, DemoConfig
from mlingo_jax.training.loop import train
from mlingo_jax.training.run import prompt_settings

SMALL = {"seconds": 3.0, "train_takes": 1, "held_out_takes": 1, "instruments": 2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Clip]]:
    folder = tmp_path_factory.mktemp("demo") / "corpus"
    return folder, write_corpus(folder, DemoConfig(**SMALL))


@pytest.mark.parametrize("instrument", INSTRUMENTS)
@pytest.mark.parametrize("pitch", [48, 65, 91])
def test_a_note_sounds_at_its_pitch(instrument: str, pitch: int):
    sound = recorded_note(instrument, pitch, 0)
    size = 1 << 17
    spectrum = np.abs(np.fft.rfft(sound[:SAMPLE_RATE] * np.hanning(SAMPLE_RATE), size))
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    semitones = 12 * np.log2(np.maximum(hertz, 1) / frequency(pitch))
    near = np.abs(semitones) < 2
    # A bowed note's vibrato is ten cents deep.
    assert abs(semitones[near][spectrum[near].argmax()]) < 0.1
    # Nothing of note lies below it: the fundamental is the lowest partial.
    assert spectrum[(semitones < -2) & (hertz > 40)].max() < 0.5 * spectrum[near].max()


def test_instruments_differ_at_the_same_pitch():
    spectra = []
    for instrument in INSTRUMENTS:
        power = np.square(np.abs(np.fft.rfft(recorded_note(instrument, 60, 0)))).reshape(-1)[: 31_200 // 2]
        bands = np.log(power[:15_600].reshape(60, -1).sum(1) + 1e-6 * power.sum())
        spectra.append((bands - bands.mean()) / bands.std())
    likeness = np.corrcoef(spectra) - np.eye(len(spectra))
    assert likeness.max() < 0.99


def test_a_piece_is_what_it_is_said_to_be():
    for number, values in enumerate(itertools.product(*ATTRIBUTES.values())):
        piece = Piece(*values)
        notes = compose(piece, 5.0, np.random.default_rng(number))
        key = REGISTERS[piece.register]
        assert {(n.pitch - key) % 12 for n in notes} <= set(SCALES[piece.mode])
        assert all(0 <= n.pitch - key <= 24 for n in notes)
        # The third tells the modes apart; the last chord has it.
        assert {(n.pitch - key) % 12 for n in notes if n.start == max(m.start for m in notes)} == {
            0,
            7,
            SCALES[piece.mode][2],
        }
        slowest, fastest = TEMPOS[piece.tempo]
        last_beat = max(n.start for n in notes)
        beats = round(last_beat * (slowest + fastest) / 2 / 60)
        assert beats * 60 / fastest <= last_beat <= beats * 60 / slowest
        assert last_beat + 0.6 < 5.0


def test_a_performance_is_fit_for_a_file():
    wave = perform(Piece("flute", "high", "fast", "minor"), 3.0, np.random.default_rng(0))
    assert wave.shape == (3 * SAMPLE_RATE,)
    assert wave.dtype == np.float32
    assert 0.29 < np.abs(wave).max() < 0.91


def test_attributes_are_balanced_and_independent(corpus: tuple[Path, list[Clip]]):
    _, clips = corpus
    for split in ("train", "eval"):
        kinds = Counter(clip.piece for clip in clips if clip.split == split)
        assert set(kinds.values()) == {1}
        assert len(kinds) == 2 * 3 * 3 * 2
    assert len({clip.audio for clip in clips}) == len(clips)


def test_the_same_seed_writes_the_same_corpus(corpus: tuple[Path, list[Clip]], tmp_path: Path):
    folder, clips = corpus
    again = write_corpus(tmp_path / "again", DemoConfig(**SMALL))
    other = write_corpus(tmp_path / "other", DemoConfig(**SMALL, seed=1))
    assert again == clips == read_clips(folder)
    for name in ["manifest.jsonl", "clips.jsonl", *[clip.audio for clip in clips]]:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert (tmp_path / "other" / clips[0].audio).read_bytes() != (folder / clips[0].audio).read_bytes()
    assert [clip.piece for clip in other] != [clip.piece for clip in clips]


def test_no_held_out_clip_is_heard_in_training(corpus: tuple[Path, list[Clip]]):
    folder, clips = corpus
    sounds = {clip.audio: soundfile.read(folder / clip.audio)[0].tobytes() for clip in clips}
    assert len(set(sounds.values())) == len(clips)
    examples = read_manifest(folder / "manifest.jsonl")
    assert {e.clip for e in examples if e.split == "train"} == {c.audio for c in clips if c.split == "train"}
    assert {e.clip for e in examples if e.split == "eval"} == {c.audio for c in clips if c.split == "eval"}


def test_answers_of_the_corpus_are_true(corpus: tuple[Path, list[Clip]]):
    folder, clips = corpus
    truths = {clip.audio: clip.truth for clip in clips}
    subject_of = {question: name for name, questions in QUESTIONS.items() for question in questions}
    for example in read_manifest(folder / "manifest.jsonl"):
        truth, subject = truths[example.clip], subject_of.get(example.question)
        for name in ATTRIBUTES if subject is None else [subject]:
            assert named(name, example.answer) == truth[name]


def test_every_template_names_its_value_and_no_other():
    rng = np.random.default_rng(0)
    for values in itertools.product(*ATTRIBUTES.values()):
        truth = dict(zip(ATTRIBUTES, values, strict=True))
        assert ask("tempo", rng) in QUESTIONS["tempo"]
        caption = tell(CAPTION, truth, rng)
        assert {name: named(name, caption) for name in ATTRIBUTES} == truth
    assert all("{" + name + "}" in template for name in ATTRIBUTES for template in (*ANSWERS[name], *CAPTIONS))
    assert named("tempo", "It is low.") is None
    assert named("tempo", "It is slow, or fast.") is None
    assert named("instrument", "An Electric Piano.") == "electric piano"


def test_grades():
    truths = ("major", "major", "minor", "minor")
    clips = [Clip(f"{i}.flac", "eval", Piece("organ", "low", "slow", mode), "") for i, mode in enumerate(truths)]
    answers = ["It is in major."] * 3 + ["I encode nothing."]
    (found,) = summarise_grades({"mode": grade("mode", answers, clips)}, clips).values()
    assert found["value"] == 0.5
    assert found["chance"]["mean"] == 0.5
    assert found["gap"]["value"] == 0.5 - found["shuffled"]["mean"]


def test_the_tokenizer_has_the_words_whole_and_comes_back_as_it_was(tmp_path: Path):
    made = make_tokenizer(PromptSettings())
    made.save_pretrained(tmp_path)
    read = load_tokenizer(tmp_path)
    for text in ("It is a glockenspiel.###", "</Audio> Is it slow? ###Assistant: ", "señor 🎵 Žižkov\n###"):
        assert read.encode(text, add_special_tokens=False) == made.encode(text, add_special_tokens=False)
        assert read.decode(read.encode(text, add_special_tokens=False)) == text
    assert read.tokenize("It is a glockenspiel.###")[-3:] == ["Ġglockenspiel", ".", "###"]
    assert (read.bos_token_id, read.eos_token_id) == (0, 1)


def test_whitening_makes_what_is_heard_uncorrelated():
    rng = np.random.default_rng(0)
    encoded = rng.standard_normal((200, 6)) @ rng.standard_normal((6, 6)) * [9, 5, 3, 2, 1, 1] + 4
    kernel, bias = whitening(encoded.astype(np.float32), 4)
    white = encoded @ kernel + bias
    covariance = np.cov(white.T, bias=True)
    # float32 kernels: correlations to 1e-4.
    assert np.abs(white.mean(0)).max() < 1e-4
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-4
    assert np.all((np.diag(covariance) > 0.3) & (np.diag(covariance) < 1))


def materials_of(config: Config) -> Path:
    return materials_folder(config.demo, prompt_settings(config.prompt))


def miniature(folder: Path, **changes: object) -> Config:
    config = recipe("demo")
    config.demo = DemoConfig(materials=str(folder / "materials"), **SMALL, llm_steps=2)
    config.workdir, config.steps, config.batch_size = str(folder / "run"), 3, 4
    config.log.eval_every = config.log.eval_answers = 0
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def test_the_whole_demo_in_miniature(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = miniature(tmp_path)
    demo.prepare(config)
    train(config)
    demo.report(config, Path(config.workdir))

    workdir, materials = Path(config.workdir), materials_of(config)
    values = json.loads((workdir / "report.json").read_text())
    assert set(values["metrics"]) == {f"demo.{name}" for name in ATTRIBUTES}
    for name, grades in values["metrics"].items():
        attribute = name.removeprefix("demo.")
        assert 0 <= grades["value"] <= 1
        values_of = 2 if attribute == "instrument" else len(ATTRIBUTES[attribute])
        assert grades["chance"]["mean"] == pytest.approx(1 / values_of)
    assert values["seconds"] > 0
    assert len(values["examples"]) == 5
    text = (workdir / "report.md").read_text()
    assert "![The losses over the steps](loss.png)" in text
    assert all(Path(example["audio"]).is_file() and example["caption"] in text for example in values["examples"])
    assert (workdir / "loss.png").stat().st_size > 1000
    assert "python -m mlingo_jax.caption" in capsys.readouterr().out
    for tower in ("mert", "llm"):
        assert (materials / f"{tower}-hf" / "model.safetensors").is_file()
        assert (materials / tower / "conversion.json").is_file()

    # The next run finds the materials, and a finished one is only reported again.
    made = {path: path.stat().st_mtime_ns for path in materials.rglob("*")}
    again = miniature(tmp_path)
    demo.prepare(again)
    train(again)
    demo.report(again, Path(again.workdir))
    assert {path: path.stat().st_mtime_ns for path in materials.rglob("*")} == made
    report = json.loads((workdir / "report.json").read_text())
    assert (report["metrics"], report["seconds"]) == (values["metrics"], values["seconds"])
    assert "are there already" in capsys.readouterr().err


def test_other_settings_make_other_materials(tmp_path: Path):
    config, other, elsewhere = miniature(tmp_path), miniature(tmp_path), miniature(tmp_path / "elsewhere")
    other.demo.seed = 1
    assert materials_of(config) != materials_of(other)
    assert materials_of(config).name == materials_of(elsewhere).name
    other.demo.seed, other.optim.lr = 0, 1e-5
    assert materials_of(config) == materials_of(other)


def test_materials_are_complete_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlingo_jax.demo.materials.make_language_model", stop)
    with pytest.raises(KeyboardInterrupt):
        demo.prepare(miniature(tmp_path))
    assert list((tmp_path / "materials").iterdir()) == []

"""`prepare midi`: what a score says of each clip, and whether one hears it in what was rendered."""

import json
import shutil
import sys
from pathlib import Path

import mido
import numpy as np
import pretty_midi
import pytest
import soundfile

from mlingo_jax import prepare
from mlingo_jax.data.midi_facts import Score, chord_of, key_of
from mlingo_jax.datasets.manifest import Manifest
from mlingo_jax.errors import UserError
from mlingo_jax.instruction.sources import read_sources
from tests.collections_of_music import built
from tests.instruct_runs import ROOT, read_lines

SOUNDFONT = Path("/usr/share/sounds/sf2/TimGM6mb.sf2")
BPM, CHORDS = 132, ("Am", "Dm", "E", "Am")
_NOTES = {"Am": (57, 60, 64), "Dm": (50, 53, 57), "E": (52, 56, 59)}


def write_song(path: Path, *, key: int | None = 21, bars: int = 24, slower: float | None = None) -> Path:
    """A song in A minor at 132 beats a minute: piano chords a bar each, a flute, drums on every beat; markers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    song, beat = pretty_midi.PrettyMIDI(initial_tempo=BPM), 60 / BPM
    piano, flute = pretty_midi.Instrument(0, name="Piano"), pretty_midi.Instrument(73, name="Flute")
    drums = pretty_midi.Instrument(0, is_drum=True)
    for bar in range(bars):
        notes = _NOTES[CHORDS[bar % 4]]
        for n in range(4):
            time = (4 * bar + n) * beat
            piano.notes += [pretty_midi.Note(80, note, time, time + beat * 0.95) for note in notes]
            drums.notes.append(pretty_midi.Note(110, 36, time, time + 0.1))
            flute.notes.append(pretty_midi.Note(70, notes[n % 3] + 24, time, time + beat / 2))
    song.instruments += [piano, flute, drums]
    song.time_signature_changes.append(pretty_midi.TimeSignature(4, 4, 0))
    if key is not None:
        song.key_signature_changes.append(pretty_midi.KeySignature(key, 0))
    song.write(str(path))
    file = mido.MidiFile(path)
    bar = 4 * file.ticks_per_beat
    marks = [mido.MetaMessage("marker", text="Verse", time=0), mido.MetaMessage("marker", text="Chorus", time=8 * bar)]
    tempo = [] if slower is None else [mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(slower), time=0)]
    file.tracks.append(mido.MidiTrack([*marks, *tempo]))
    file.save(path)
    return path


@pytest.fixture
def fluidsynth(tmp_path, monkeypatch):
    """A soundfont, and a program fluidsynth on the path that makes tones."""
    program = tmp_path / "bin/fluidsynth"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m tests.fake_fluidsynth "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    soundfont = tmp_path / "tones.sf2"
    soundfont.write_bytes(b"RIFF")
    return soundfont


def render(monkeypatch, capsys, *options: str | Path) -> str:
    monkeypatch.setattr("sys.argv", ["prepare", "midi", *map(str, options)])
    prepare.main()
    return capsys.readouterr().out


def heard_bpm(samples: np.ndarray, rate: int) -> float:
    """The tempo by the autocorrelation of the onsets' strength, between 90 and 180."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, 512)[::128]
    spectra = np.log1p(100 * np.abs(np.fft.rfft(frames * np.hanning(512))))
    onsets = np.maximum(np.diff(spectra, axis=0), 0).sum(1)
    onsets = onsets - onsets.mean()
    size = 1 << (2 * len(onsets)).bit_length()
    correlation = np.fft.irfft(np.abs(np.fft.rfft(onsets, size)) ** 2)
    # Over eight beats the lag tells the tempo to less than a percent.
    lags = np.arange(int(60 / 180 * rate / 128 * 8), int(60 / 90 * rate / 128 * 8))
    single = np.array([correlation[round(lag / 8)] for lag in lags])
    best = lags[np.argmax(correlation[lags] + single)]
    return float(60 * 8 / (best * 128 / rate))


def heard_key(samples: np.ndarray, rate: int) -> str:
    """The key by the energy of each pitch class between 60 and 1,500 Hz."""
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    frequency = np.fft.rfftfreq(len(samples), 1 / rate)
    inside = (frequency > 60) & (frequency < 1500)
    pitch = 69 + 12 * np.log2(frequency[inside] / 440)
    near = np.abs(pitch - np.round(pitch)) < 0.2
    return key_of(np.bincount(np.round(pitch[near]).astype(int) % 12, np.sqrt(power[inside][near]), minlength=12))


def check_song(output: Path) -> None:
    """The clips of two songs: facts, audio, questions."""
    rows = read_lines(output / "midi.jsonl")
    assert [row["clip"] for row in rows] == ["a_song-0", "a_song-1", "b-0", "b-1"]
    first = rows[0]
    assert first["bpm"] == pytest.approx(BPM, abs=0.01)
    assert (first["time_signature"], first["key"], first["key_from"]) == ("4/4", "A minor", "signature")
    assert first["chords"].split()[:4] == list(CHORDS)
    assert len(first["chords"].split()) == 11
    assert set(first["instruments"]) == {"Acoustic Grand Piano", "Flute", "Drums"}
    assert first["structure"] == ["Verse", "Chorus"]
    assert (rows[2]["key"], rows[2]["key_from"]) == ("A minor", "notes")
    for row in rows:
        samples, rate = soundfile.read(output / row["audio"])
        assert rate == 24000
        assert row["seconds"] == pytest.approx(len(samples) / rate, abs=3 if row["clip"].endswith("1") else 1e-3)
        assert 0.05 < np.abs(samples).max() <= 0.91
        if row["clip"].endswith("0"):
            assert heard_bpm(samples, rate) == pytest.approx(BPM, rel=0.02)
            assert heard_key(samples, rate) == "A minor"


def test_render(tmp_path, fluidsynth, monkeypatch, capsys):
    write_song(tmp_path / "midi/a/song.mid")
    write_song(tmp_path / "midi/b.midi", key=None)
    (tmp_path / "midi/broken.mid").write_bytes(b"MThd....")
    output = tmp_path / "made"
    options = (
        tmp_path / "midi",
        "--soundfont",
        fluidsynth,
        "--output",
        output,
        "--seconds",
        "20",
        "--clips_per_file",
        "5",
    )
    table = render(monkeypatch, capsys, *options)
    assert table.split() == ["files", "3", "clips", "4", "failed", "1"]
    check_song(output)
    (failure,) = read_lines(output / "failures.jsonl")
    assert failure["file"] == "broken.mid"
    assert "not a MIDI file, or damaged" in failure["reason"]
    asked = {
        line["question"]: line["answer"] for line in read_lines(output / "manifest.jsonl") if "song-0" in line["audio"]
    }
    assert asked["What is the tempo in beats per minute?"] == "132"
    assert asked["In which key is it?"] == "A minor"
    assert asked["Which chords are played, bar by bar?"] == "Am, Dm, E, Am, Am, Dm, E, Am"
    assert not [
        line for line in read_lines(output / "manifest.jsonl") if "b-0" in line["audio"] and "key" in line["question"]
    ]
    # Again: nothing is rendered, and the same comes out.
    before = {path: path.stat().st_mtime_ns for path in (output / "audio").iterdir()}
    fluidsynth.write_bytes(b"XXXX")
    assert render(monkeypatch, capsys, *options) == table
    assert {path: path.stat().st_mtime_ns for path in (output / "audio").iterdir()} == before
    # The clips are a dataset, and their facts a source of `instruct`.
    assert built(Manifest, output / "manifest.jsonl", output, tmp_path / "data").clips["there"] == 4
    source = next(iter(read_sources(str(output / "midi.jsonl"))))
    assert source.facts["bpm"] == "132"
    assert source.facts["instruments"].startswith("Acoustic Grand Piano")


def test_midi_caps(tmp_path, fluidsynth, monkeypatch, capsys):
    """Its train.json names the files that are rendered, with their captions."""
    for name in ("lmd_full/1/a.mid", "lmd_full/1/b.mid"):
        write_song(tmp_path / name)
    told = {
        "location": "lmd_full/1/a.mid",
        "caption": "A calm tune.",
        "genre": ["pop"],
        "mood": ["calm"],
        "test_set": True,
    }
    (tmp_path / "train.json").write_text(json.dumps(told) + "\n")
    options = ("--soundfont", fluidsynth, "--output", tmp_path / "made", "--captions", tmp_path / "train.json")
    render(monkeypatch, capsys, tmp_path, *options)
    (row,) = read_lines(tmp_path / "made/midi.jsonl")
    assert (row["caption"], row["genre"], row["split"]) == ("A calm tune.", ["pop"], "eval")
    assert {line["split"] for line in read_lines(tmp_path / "made/manifest.jsonl")} == {"eval"}


def test_a_scores_last_bar_has_its_chord(tmp_path):
    score = Score(write_song(tmp_path / "song.mid", bars=5))
    assert score.facts(0.0, score.seconds).chords == ("Am", "Dm", "E", "Am", "Am")
    assert score.facts(0.0, score.seconds - 1).chords == ("Am", "Dm", "E", "Am")


def test_a_tempo_that_changes_is_not_told(tmp_path):
    score = Score(write_song(tmp_path / "a.mid", slower=90))
    assert score.facts(0.0, 10.0).bpm == pytest.approx(BPM, abs=0.01)
    assert score.facts(0.0, 30.0).bpm is None
    assert score.facts(20.0, 30.0).bpm == pytest.approx(90, abs=0.01)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ((0, 4, 7), "C"),
        ((9, 0, 4), "Am"),
        ((7, 11, 2, 5), "G7"),
        ((2, 5, 9, 0), "Dm7"),
        ((11, 2, 5), "Bdim"),
        ((), "N"),
    ],
)
def test_chords(classes, expected):
    pitch_weights = np.zeros(12)
    pitch_weights[list(classes)] = 1.0
    pitch_weights[list(classes[:1])] = 1.2
    assert chord_of(pitch_weights) == expected


def test_what_is_missing_is_named(tmp_path, fluidsynth, monkeypatch, capsys):
    def error(*options) -> str:
        with pytest.raises(UserError) as found:
            render(monkeypatch, capsys, *options)
        return str(found.value)

    place = ("--output", tmp_path / "made")
    assert "no MIDI file there" in error(tmp_path, "--soundfont", fluidsynth, *place)
    assert "there is no such soundfont" in error(tmp_path, "--soundfont", "x.sf2", *place)
    assert "there is no such file or folder" in error("nowhere", "--soundfont", fluidsynth, *place)
    write_song(tmp_path / "a.mid", bars=4)
    (tmp_path / "not.sf2").write_bytes(b"XXXX")
    render(monkeypatch, capsys, tmp_path / "a.mid", "--soundfont", tmp_path / "not.sf2", *place)
    (failure,) = read_lines(tmp_path / "made/failures.jsonl")
    assert "fluidsynth cannot render it (fluidsynth: error: not a SoundFont)" in failure["reason"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "needs the program fluidsynth" in error(tmp_path, "--soundfont", fluidsynth, *place)


@pytest.mark.skipif(shutil.which("fluidsynth") is None or not SOUNDFONT.exists(), reason="no FluidSynth, no soundfont")
def test_the_real_fluidsynth(tmp_path, monkeypatch, capsys):
    write_song(tmp_path / "midi/a/song.mid")
    write_song(tmp_path / "midi/b.midi", key=None)
    options = ("--soundfont", SOUNDFONT, "--output", tmp_path / "made", "--seconds", "20", "--clips_per_file", "2")
    render(monkeypatch, capsys, tmp_path / "midi", *options)
    check_song(tmp_path / "made")

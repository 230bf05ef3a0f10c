"""Music whose truth is known: MIDI files rendered by FluidSynth, each clip with what its score says."""

import dataclasses
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tqdm import tqdm

from mlingo_jax.data.annotations import read_jsonl, text
from mlingo_jax.data.midi_facts import SILENCE, Facts, Score
from mlingo_jax.errors import UserError
from mlingo_jax.files import atomic_replace, write_atomic

SOURCES, MANIFEST, FAILURES = "midi.jsonl", "manifest.jsonl", "failures.jsonl"
_SUFFIXES = (".mid", ".midi", ".kar")
_RENDER_SECONDS = 600
_GAIN = "0.6"
# A shorter rest of a file is no clip.
_SHORTEST = 5.0
_LOUDEST = 0.9
_CHORDS_TOLD = 8


@dataclasses.dataclass(frozen=True)
class Rendering:
    """soundfont: the file. seconds: of a clip. clips: the most of a file, from its start on. rate: in Hz."""

    soundfont: Path
    seconds: float
    clips: int
    rate: int


@dataclasses.dataclass(frozen=True)
class Rendered:
    """How many files and clips there are now, and how many files failed."""

    files: int
    clips: int
    failed: int

    def table(self) -> str:
        """For the screen."""
        rows = (("files", self.files), ("clips", self.clips), ("failed", self.failed))
        return "\n".join(f"{name:<10}{count:>10,}" for name, count in rows)


def render_all(sources: Sequence[Path], captions: Path | None, output: Path, how: Rendering, workers: int) -> Rendered:
    """Renders all MIDI files of folders (at any depth) and files to `output`/audio, as flac.

    captions: MidiCaps' train.json, or any jsonl of location, caption and perhaps genre, mood and test_set: then only
    the files that it names. Beside the audio come midi.jsonl (a clip's facts, for `instruct`), manifest.jsonl
    (questions whose answers the score gives exactly) and failures.jsonl. What is rendered is not rendered again.

    Raises UserError if there is no fluidsynth, no soundfont or no MIDI file, or if nothing can be written.
    """
    if shutil.which("fluidsynth") is None:
        raise UserError("rendering MIDI needs the program fluidsynth; install it, as by `apt-get install fluidsynth`")
    if not how.soundfont.is_file():
        raise UserError(f"{how.soundfont}: there is no such soundfont (.sf2 or .sf3)")
    told = {} if captions is None else dict(_read_captions(captions))
    files = [(place, name) for place, name in _find(sources) if not told or name in told]
    if not files:
        raise UserError(f"{', '.join(map(str, sources))}: no MIDI file there{' that --captions names' if told else ''}")
    (output / "audio").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    bar = tqdm(desc="rendering", total=len(files), unit="file", disable=None)
    with ThreadPoolExecutor(workers) as pool, bar:
        outcomes = pool.map(lambda file: _render(file[0], file[1], output, how), files)
        for (_, name), outcome in zip(files, outcomes, strict=True):
            bar.update()
            if isinstance(outcome, str):
                failures.append({"file": name, "reason": outcome})
            else:
                rows += [row | told.get(name, {}) for row in outcome]
    _write(output / SOURCES, rows)
    _write(output / MANIFEST, (line for row in rows for line in questions(row)))
    _write(output / FAILURES, failures)
    return Rendered(len(files), len(rows), len(failures))


def questions(row: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """What can be asked of a clip with the score's answer. Keys that were reckoned from the notes are not asked."""
    asked = {
        "What is the tempo in beats per minute?": f"{row['bpm']:g}" if "bpm" in row else "",
        "What is the time signature?": row["time_signature"],
        "In which key is it?": row["key"] if row["key_from"] == "signature" else "",
        "Which instruments play?": ", ".join(row["instruments"]),
        "Which chords are played, bar by bar?": ", ".join(row["chords"].split()[:_CHORDS_TOLD]),
    }
    for question, answer in asked.items():
        if answer and set(answer.split(", ")) != {SILENCE}:
            yield {"audio": row["audio"], "question": question, "answer": answer, "split": row.get("split", "train")}


def _render(path: Path, name: str, output: Path, how: Rendering) -> list[dict[str, Any]] | str:
    """A row for each clip of a file; the reason if it fails."""
    try:
        score = Score(path)
        count = max(min(how.clips, int((score.seconds + how.seconds - _SHORTEST) // how.seconds)), 1)
        made = [output / "audio" / f"{_flat(name)}-{n}.flac" for n in range(count)]
        if not all(place.exists() for place in made):
            _write_clips(_synthesize(path, how), made, how)
        spans = [(n * how.seconds, min((n + 1) * how.seconds, score.seconds)) for n in range(count)]
        return [_row(place, *span, score.facts(*span)) for place, span in zip(made, spans, strict=True)]
    except UserError as error:
        return str(error)


def _row(place: Path, start: float, end: float, facts: Facts) -> dict[str, Any]:
    values = dataclasses.asdict(facts) | {"chords": " ".join(facts.chords)}
    known = {name: value for name, value in values.items() if value not in (None, "", (), [])}
    kept = {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}
    # These are there even if they are empty.
    always = {"instruments": list(facts.instruments), "chords": " ".join(facts.chords), "key": facts.key}
    return {"clip": place.stem, "audio": f"audio/{place.name}", "seconds": round(end - start, 3), **kept, **always}


def _synthesize(path: Path, how: Rendering) -> np.ndarray:
    """The whole file as samples, float32 [N], mono. Raises UserError if FluidSynth cannot."""
    with tempfile.TemporaryDirectory() as folder:
        wave = Path(folder) / "rendered.wav"
        options = ["-n", "-i", "-q", "-g", _GAIN, "-r", str(how.rate), "-F", str(wave)]
        command = ["fluidsynth", *options, str(how.soundfont.absolute()), str(path.absolute())]
        try:
            done = subprocess.run(command, capture_output=True, timeout=_RENDER_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"{path}: fluidsynth did not end within {_RENDER_SECONDS} s") from error
        if done.returncode or not wave.is_file():
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise UserError(f"{path}: fluidsynth cannot render it ({said[-1] if said else f'exit {done.returncode}'})")
        samples, _ = soundfile.read(wave, dtype="float32", always_2d=True)
    return samples.mean(1)


def _write_clips(samples: np.ndarray, places: Sequence[Path], how: Rendering) -> None:
    """Cuts [N] samples into clips; the whole file is made as loud as it may be, so that no clip is clipped."""
    samples = samples * (_LOUDEST / max(float(np.abs(samples).max(initial=0.0)), 1e-4))
    length = round(how.seconds * how.rate)
    for n, place in enumerate(places):
        with atomic_replace(place) as partial:
            soundfile.write(partial, samples[n * length : (n + 1) * length], how.rate, "PCM_16", format="FLAC")


def _find(sources: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """(file, its name below the folder that was given) of all MIDI files, in order."""
    for source in sources:
        if source.is_file():
            yield source, source.name
        elif source.is_dir():
            for path in sorted(source.rglob("*")):
                if path.suffix.lower() in _SUFFIXES and path.is_file():
                    yield path, path.relative_to(source).as_posix()
        else:
            raise UserError(f"{source}: there is no such file or folder")


def _read_captions(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(location, caption, genre, mood and split) of each line of MidiCaps' train.json."""
    for where, row in read_jsonl(path):
        known = {name: row[name] for name in ("caption", "genre", "mood") if row.get(name)}
        yield text(row, "location", where), known | {"split": "eval" if row.get("test_set") is True else "train"}


def _flat(name: str) -> str:
    return name.rpartition(".")[0].replace("/", "_")


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_atomic(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

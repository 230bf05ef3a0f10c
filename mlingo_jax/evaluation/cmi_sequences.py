"""CMI-Bench's answers that are lists: times of beats, playing techniques with their times, melodies.

Each is read by the rules of the benchmark's evaluator, quirks included, but as a literal, never as code.

F: frames of 10 ms. L: techniques.
"""

import ast
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

TECHNIQUES = (
    *("vibrato", "pointnote", "upwardportamento", "downwardportamento"),
    *("plucks", "glissando", "tremolo"),
)
_SECONDS, _RATE = 10, 100
_NOTE = re.compile(r"([A-Ga-g])([#b!]?)([+-]?\d+)")
_SEMITONES = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}
_ACCIDENTALS = {"": 0, "#": 1, "b": -1, "!": -1}

Melody = tuple[np.ndarray, np.ndarray]
"""Times in s and frequencies in Hz."""


def read_times(text: str) -> Float[np.ndarray, "B"] | None:
    """The times in "0.38s,0.82s,1:02.5", in s, ascending; None if one that begins with a digit is no time."""
    times = []
    for part in text.split(","):
        plain = part.strip().replace("s", "")
        minutes, colon, seconds = plain.partition(":")
        try:
            if plain[:1].isdigit() and not colon:
                times.append(float(plain))
            elif plain[:1].isdigit() and seconds:
                times.append(int(minutes) * 60 + float(seconds.partition(":")[0]))
        except ValueError:
            return None
    return np.array(sorted(times), float)


def beat_scores(
    beat: ModuleType, truth: Float[np.ndarray, "B"] | None, given: Float[np.ndarray, "C"] | None
) -> tuple[float, float, float]:
    """mir_eval.beat's F-measure, CMLt and AMLt; 0 for what it does not take."""
    if truth is None or given is None:
        return 0.0, 0.0, 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mir_eval warns of empty lists, which score 0
        f_measure = _or_zero(lambda: float(beat.f_measure(truth, given)))
        continuity = _or_zero(lambda: beat.continuity(truth, given)) or (0.0, 0.0, 0.0, 0.0)
    return f_measure, float(continuity[1]), float(continuity[3])


def technique_frames(text: str) -> Bool[np.ndarray, "F L"]:
    """In which frames of ten seconds each technique sounds.

    As in the benchmark, the first of the list's events counts and no other; what cannot be read is no technique.
    """
    frames = np.zeros((_SECONDS * _RATE, len(TECHNIQUES)), bool)
    event = _first_event(text)
    if event is None:
        return frames
    start, end, name = event
    label = re.sub(r"[_\-' .]", "", name).lower()
    if label in TECHNIQUES:
        first, last = int(start % 10 * _RATE), int(((end - 1e-4) % 10 + 1e-4) * _RATE)
        frames[first:last, TECHNIQUES.index(label)] = True
    return frames


def frame_counts(truth: Bool[np.ndarray, "F L"], given: Bool[np.ndarray, "F L"]) -> Float[np.ndarray, "3 L"]:
    """Of each technique the frames that are hit, that are named wrongly, and that are missed."""
    return np.stack([(truth & given).sum(0), (~truth & given).sum(0), (truth & ~given).sum(0)]).astype(float)


def micro_f1(sums: Float[np.ndarray, "*shape S"]) -> Float[np.ndarray, "*shape"]:
    """F1 over all techniques' frames together, of summed `frame_counts`."""
    return _f1(np.moveaxis(_by_technique(sums).sum(axis=-1), -1, 0))


def macro_f1(sums: Float[np.ndarray, "*shape S"]) -> Float[np.ndarray, "*shape"]:
    """The mean of the techniques' F1."""
    return np.asarray(_f1(np.moveaxis(_by_technique(sums), -2, 0)).mean(axis=-1))


def read_melody(text: str) -> Melody | None:
    """Times and frequencies of "[(0.52, 'C#4'), (0.67, 60), (0.83, '')]"; None for what is no such list."""
    for old, new in (("{'time':", "("), ("'MIDI_number':", "")):
        text = text.replace(old, new)
    text = text.replace("}", ")").replace("♯", "#").replace("♭", "b")
    if "{" in text or len(text) < 2:
        return None
    events = _read_pairs(text[:-1] if text[-2] == "]" else text)
    if not isinstance(events, list) or not all(isinstance(event, tuple) and len(event) == 2 for event in events):
        return None
    try:
        timed = sorted(((_seconds(time), note) for time, note in events), key=lambda event: event[0])
        first_of = dict(reversed(timed))
        notes = [_frequency(first_of[time]) for time in sorted(first_of)]
    except (ValueError, TypeError):
        return None
    times = np.array(sorted(first_of), float)
    return (times - times[0] // 10 * 10, np.array(notes, float)) if len(times) else None


def melody_score(evaluate: Callable[..., Mapping[str, float]], truth: Melody | None, given: Melody | None) -> float:
    """mir_eval's overall accuracy; 0 for lists that cannot be read, not a number for those that mir_eval refuses."""
    if truth is None or given is None:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return float(evaluate(*truth, *given)["Overall Accuracy"])
        except Exception:  # whatever mir_eval raises: the benchmark leaves the answer out
            return float("nan")


def _or_zero(compute: Callable[[], Any]) -> Any:
    try:
        return compute()
    except (ValueError, IndexError):
        return 0.0


def _first_event(text: str) -> tuple[float, float, str] | None:
    start, end = text.find("["), text.find(")")
    if start == -1 or start >= end:
        return None
    listed = text[start:end] + ")]"
    try:
        (event,) = ast.literal_eval(listed[2:] if listed.startswith('["[') else listed)
        values = tuple(event[name] for name in ("start", "end", "technique")) if isinstance(event, dict) else event
        return float(values[0]), float(values[1]), str(values[2])
    except (ValueError, SyntaxError, TypeError, KeyError, IndexError, RecursionError, MemoryError):
        return None


def _by_technique(sums: Float[np.ndarray, "*shape S"]) -> Float[np.ndarray, "*shape 3 L"]:
    return sums.reshape(*sums.shape[:-1], 3, len(TECHNIQUES))


def _f1(counts: Float[np.ndarray, "3 *shape"]) -> Float[np.ndarray, "*shape"]:
    """Of hits, false alarms and misses; 0 where there is nothing to hit and nothing named."""
    hits, wrong, missed = counts
    total = np.asarray(2 * hits + wrong + missed)
    return np.asarray(2 * hits / np.where(total > 0, total, 1))


def _read_pairs(text: str) -> Any:
    """The list in a text that may be cut off, or spell notes without quotes."""
    try:
        return ast.literal_eval(text)
    except SyntaxError as error:
        if "unterminated string" in str(error):
            last = text.rfind(")")
            start = text.find("[", 0, max(last, 0))
            return _literal(text[start:last] + ")]") if start >= 0 else None
        if "'[' was never closed" in str(error):
            return _literal(text + "]")
    except (ValueError, TypeError, RecursionError, MemoryError):
        pass
    split = [match.split(",") for match in re.findall(r"\(([^)]+)\)", text)]
    return [(parts[0], parts[1]) for parts in split] if all(len(parts) > 1 for parts in split) else None


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _seconds(time: Any) -> float:
    """A time as a number or as "m:ss"; raises ValueError or TypeError for anything else."""
    if isinstance(time, str) and ":" in time:
        parts: Sequence[str] = time.split(":")
        return float(parts[1]) + 60 * float(parts[0])
    return float(time)


def _frequency(note: Any) -> float:
    """A MIDI number's or a note name's frequency in Hz; 0 for silence. A name that is none counts as the number 0."""
    if note == "":
        return 0.0
    if isinstance(note, str):
        try:
            note = float(note)
        except ValueError:
            found = _NOTE.fullmatch(note)
            note = 0 if not found else _SEMITONES[found[1].lower()] + _ACCIDENTALS[found[2]] + 12 * (int(found[3]) + 1)
    return 440.0 * 2.0 ** ((float(note) - 69.0) / 12.0)

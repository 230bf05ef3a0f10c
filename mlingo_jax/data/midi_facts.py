"""What a MIDI file says about its music between two moments: tempo, key, chords, instruments, structure.

Times are in s from the file's start. Axes: N notes, P the twelve pitch classes from C.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mlingo_jax.errors import UserError

_NAMES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
_CHORDS = {
    "": (0, 4, 7),
    "m": (0, 3, 7),
    "dim": (0, 3, 6),
    "7": (0, 4, 7, 10),
    "maj7": (0, 4, 7, 11),
    "m7": (0, 3, 7, 10),
}
# A note more must explain so much more of what sounds.
_NOTE_COST = 0.08
SILENCE = "N"
# How well each degree fits a key, as listeners have rated it (Krumhansl and Kessler, 1982).
_MAJOR = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
_MINOR = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)
# A tempo that changes by less is one tempo.
_SAME_TEMPO = 0.01


@dataclasses.dataclass(frozen=True)
class Facts:
    """bpm: None if the tempo changes. key: as "A minor"; key_from: "signature" where the file says it, or "notes".

    chords: one a bar, as "Am" or "N". instruments: those that play, most of all first. structure: the file's markers.
    """

    bpm: float | None
    time_signature: str
    key: str
    key_from: str
    chords: tuple[str, ...]
    instruments: tuple[str, ...]
    structure: tuple[str, ...]


class Score:
    """A MIDI file, read once."""

    def __init__(self, path: Path):
        """Raises UserError if it cannot be read, is damaged or has no notes, or if pretty_midi is missing."""
        try:
            import mido
            import pretty_midi
        except ImportError as error:
            raise UserError("MIDI needs pretty_midi; install it by `pip install mlingo_jax[midi]`") from error
        try:
            midi = mido.MidiFile(path, clip=True)
            # A player goes by tempo and keys wherever they stand, pretty_midi by those of the first track.
            midi.tracks = [mido.merge_tracks(midi.tracks)]
            self._midi = pretty_midi.PrettyMIDI(mido_object=midi)
        # Its parser meets damaged files with whatever Python raises there.
        except Exception as error:
            raise UserError(f"{path}: not a MIDI file, or damaged ({type(error).__name__}: {error})") from error
        self._key_name, self._program_name = pretty_midi.key_number_to_key_name, pretty_midi.program_to_instrument_name
        self._markers = sorted(self._read_markers(midi))
        self.seconds: float = max((note.end for part in self._midi.instruments for note in part.notes), default=0.0)
        if not self.seconds:
            raise UserError(f"{path}: no notes in it")

    def facts(self, start: float, end: float) -> Facts:
        """What holds between two moments."""
        signatures = [s for s in self._midi.key_signature_changes if s.time <= start + 1e-6]
        pitch_weights = self._pitch_classes(start, end)
        key = self._key_name(signatures[-1].key_number) if signatures else key_of(pitch_weights)
        meters = [m for m in self._midi.time_signature_changes if m.time <= start + 1e-6]
        return Facts(
            bpm=self._bpm(start, end),
            time_signature=f"{meters[-1].numerator}/{meters[-1].denominator}" if meters else "4/4",
            key=_spelt(key or ""),
            key_from="signature" if signatures else "notes",
            chords=tuple(chord_of(self._pitch_classes(*bar)) for bar in self._bars(start, end)),
            instruments=tuple(self._playing(start, end)),
            structure=tuple(text for time, text in self._markers if start <= time < end),
        )

    def _bpm(self, start: float, end: float) -> float | None:
        times, tempi = self._midi.get_tempo_changes()
        here = [
            tempo for n, tempo in enumerate(tempi) if times[n] < end and (n + 1 == len(times) or times[n + 1] > start)
        ]
        return round(float(here[0]), 2) if max(here) <= min(here) * (1 + _SAME_TEMPO) else None

    def _bars(self, start: float, end: float) -> Iterator[tuple[float, float]]:
        """The whole bars between two moments; the score's last one ends with its last note."""
        beats = [float(time) for time in self._midi.get_downbeats()]
        for first, last in itertools.pairwise([*beats, self.seconds]):
            if first >= start - 1e-3 and first < last <= end + 1e-3:
                yield first, last

    def _pitch_classes(self, start: float, end: float) -> Float[np.ndarray, " P"]:
        """How long each pitch class sounds, drums apart, weighted by how hard it is struck."""
        pitch_weights = np.zeros(12)
        for part in self._midi.instruments:
            for note in () if part.is_drum else part.notes:
                seconds = min(note.end, end) - max(note.start, start)
                if seconds > 0:
                    pitch_weights[note.pitch % 12] += seconds * note.velocity / 127
        return pitch_weights

    def _playing(self, start: float, end: float) -> list[str]:
        sounding: dict[str, float] = {}
        for part in self._midi.instruments:
            seconds = sum(max(min(note.end, end) - max(note.start, start), 0.0) for note in part.notes)
            if seconds > 0:
                name = "Drums" if part.is_drum else self._program_name(part.program)
                sounding[name] = sounding.get(name, 0.0) + seconds
        return sorted(sounding, key=lambda name: (-sounding[name], name))

    def _read_markers(self, midi: Any) -> Iterator[tuple[float, str]]:
        # pretty_midi has made the messages' times absolute.
        for message in midi.tracks[0]:
            if message.type == "marker" and message.text.strip():
                yield self._midi.tick_to_time(message.time), message.text.strip()


def key_of(pitch_weights: Float[np.ndarray, " P"]) -> str:
    """The key whose profile goes best with what sounds (Krumhansl and Schmuckler's way), as "A minor"."""
    if not pitch_weights.any():
        return ""
    fits = {
        f"{_NAMES[tonic]} {mode}": float(np.corrcoef(np.roll(profile, tonic), pitch_weights)[0, 1])
        for mode, profile in (("Major", _MAJOR), ("minor", _MINOR))
        for tonic in range(12)
    }
    return max(fits, key=lambda key: fits[key])


def chord_of(pitch_weights: Float[np.ndarray, " P"]) -> str:
    """The chord that explains most of what sounds with the fewest notes; "N" if nothing does."""
    if pitch_weights.sum() < 1e-6:
        return SILENCE
    share = pitch_weights / pitch_weights.sum()
    best = max(
        ((_explained(share, root, notes), -root, name) for root in range(12) for name, notes in _CHORDS.items()),
    )
    return f"{_NAMES[-best[1]]}{best[2]}"


def _explained(share: Float[np.ndarray, " P"], root: int, notes: Sequence[int]) -> float:
    # The root sounds most in most voicings, which tells a chord from its relatives.
    members = [(root + note) % 12 for note in notes]
    return float(share[members].sum() + 0.1 * share[root] - _NOTE_COST * len(notes))


def _spelt(key: str) -> str:
    """As people write it: "C Major" and "c minor" of the library become "C major" and "C minor"."""
    tonic, _, mode = key.partition(" ")
    return f"{tonic[:1].upper()}{tonic[1:]} {mode.lower()}".strip()

"""Short pieces of music with a known register, tempo and mode: a melody over three chords.

Every piece is in C, and in its natural minor or its major: they differ in the third, the sixth and the seventh.
"""

import dataclasses

import numpy as np

from mlingo_jax.demo.synthesis import INSTRUMENTS, Note

# The key note of each register, as a MIDI pitch: C3, C4 and C5.
REGISTERS = {"low": 48, "middle": 60, "high": 72}
TEMPOS = {"slow": (60, 70), "medium": (100, 112), "fast": (158, 176)}
# The third, sixth and seventh of the natural minor lie a semitone lower; the chords on 1, 4 and 5 are then all minor.
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
PROGRESSIONS = ((0, 3, 4, 0), (0, 4, 3, 0), (0, 3, 0, 4), (0, 4, 0, 3))
# Of a beat: one note, two notes, or the note before held on.
RHYTHMS = ((1.0,), (0.5, 0.5), ())
# The last chord rings out for this long.
ENDING = 0.6


@dataclasses.dataclass(frozen=True)
class Piece:
    """What is true of a clip; the four attributes are what the demo asks about."""

    instrument: str
    register: str
    tempo: str
    mode: str


ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "instrument": INSTRUMENTS,
    "register": tuple(REGISTERS),
    "tempo": tuple(TEMPOS),
    "mode": tuple(SCALES),
}


def compose(piece: Piece, seconds: float, rng: np.random.Generator) -> list[Note]:
    """Notes of a piece of so many seconds: a chord every two beats, a melody above, both ending on the key note."""
    scale = SCALES[piece.mode]
    key = REGISTERS[piece.register]
    beat = 60 / rng.uniform(*TEMPOS[piece.tempo])
    beats = int((seconds - ENDING) / beat)
    chords = PROGRESSIONS[rng.integers(len(PROGRESSIONS))]
    notes, step = [], int(rng.choice([4, 6, 8]))
    for i in range(beats):
        last = i == beats - 1
        root = 0 if last else chords[i // 2 % len(chords)]
        if i % 2 == 0 or last:
            length = beat if last or i == beats - 2 else 2 * beat
            notes += [Note(i * beat, length, key + _pitch(scale, (root + third) % 7), 0.35) for third in (0, 2, 4)]
        rhythm = (1.0,) if last or i == 0 else RHYTHMS[rng.choice(len(RHYTHMS), p=(0.7, 0.2, 0.1))]
        at = 0.0
        for part in rhythm:
            on_chord = at == 0
            step = 7 if last else _next_step(step, root, on_chord, rng)
            notes.append(Note((i + at) * beat, part * beat, key + _pitch(scale, step), rng.uniform(0.7, 1.0)))
            at += part
    return notes


def _next_step(step: int, root: int, on_chord: bool, rng: np.random.Generator) -> int:
    """The melody's next step of the scale: a neighbour, and on the beat one that belongs to the chord."""
    near = [s for s in range(step - 3, step + 4) if 3 <= s <= 10 and s != step]
    if on_chord:
        near = [s for s in near if (s - root) % 7 in (0, 2, 4)]
    return int(rng.choice(near))


def _pitch(scale: tuple[int, ...], step: int) -> int:
    """Semitones above the key note of a step of the scale; step 7 is the octave."""
    octave, degree = divmod(step, 7)
    return 12 * octave + scale[degree]

"""Eight instruments made with numpy: each is a function from pitch to the sound of one long note.

A note is synthesised once, as a sampler would record it, and then played at any length and loudness.
Sounds are float32 at 24 kHz. Axes: P partials, N samples.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from mlingo_jax.models.mert_config import SAMPLE_RATE

NOTE_SECONDS = 2.6
TAKES = 2
A4 = 69

Sound = Float[np.ndarray, " N"]
Voice = Callable[[float, np.random.Generator], Sound]


@dataclasses.dataclass(frozen=True)
class Note:
    """One note of a piece: start and length in seconds, MIDI pitch, loudness from 0 to 1."""

    start: float
    seconds: float
    pitch: int
    loudness: float


def frequency(pitch: int) -> float:
    """Hertz of a MIDI pitch, equal temperament, A4 = 440 Hz."""
    return 440.0 * 2 ** ((pitch - A4) / 12)


def play(instrument: str, notes: Sequence[Note], seconds: float, rng: np.random.Generator) -> Sound:
    """A piece played by one of `INSTRUMENTS` in a small room, with a little noise; its peak is from 0.3 to 0.9."""
    dry = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    release = RELEASES[instrument]
    for note in notes:
        sound = recorded_note(instrument, note.pitch, int(rng.integers(TAKES)))
        start = round(note.start * SAMPLE_RATE)
        held = sound[: round((note.seconds + release) * SAMPLE_RATE)][: len(dry) - start]
        dry[start : start + len(held)] += note.loudness * held * _fade_out(len(held), release)
    wet = _in_room(dry)
    wet += rng.normal(0, 10 ** rng.uniform(-4, -3), len(wet)).astype(np.float32)
    return wet * np.float32(rng.uniform(0.3, 0.9) / np.abs(wet).max())


@functools.cache
def recorded_note(instrument: str, pitch: int, take: int) -> Sound:
    """A note of `NOTE_SECONDS`, of power 1 over its first half second; takes differ as two strokes of a bow do."""
    rng = np.random.default_rng([INSTRUMENTS.index(instrument), pitch, take])
    sound = VOICES[instrument](frequency(pitch), rng)
    return sound / np.sqrt(np.mean(np.square(sound[: SAMPLE_RATE // 2])))


def guitar(hertz: float, rng: np.random.Generator) -> Sound:
    """A plucked string (Karplus and Strong 1983): a burst of noise runs round a loop that averages its neighbours.

    The loop is computed period by period and read at the string's exact speed, so high notes are in tune too.
    """
    period = max(round(SAMPLE_RATE / hertz), 8)
    order = np.arange(1, period // 2 + 1)
    burst = np.exp(1j * rng.uniform(0, 2 * np.pi, len(order))) * np.abs(np.sin(np.pi * order / 5)) * order**-0.7
    # A short string loses its brightness in fewer of its periods than a long one, or it would be silent at once.
    damping = 0.5 * min(1.0, (130 / hertz) ** 1.5)
    loss = 10 ** (-3 / (4.5 * hertz))
    string = np.empty((int(NOTE_SECONDS * SAMPLE_RATE / period) + 3, period), np.float32)
    string[0] = np.fft.irfft(np.concatenate([[0], burst]), period)
    last = string[0, -1]
    for before, after in itertools.pairwise(string):
        after[:] = loss * (1 - damping) * before
        after[1:] += loss * damping * before[:-1]
        after[0] += loss * damping * last
        last = before[-1]
    speed = (period + damping) * hertz / SAMPLE_RATE
    return np.interp(speed * np.arange(len(_time())), np.arange(string.size), string.ravel()).astype(np.float32)


def violin(hertz: float, rng: np.random.Generator) -> Sound:
    """A bowed string: a sawtooth's partials through the body's resonances, a slow attack, vibrato, the bow's noise."""
    time = _time()
    vibrato = rng.uniform(5, 6.5)
    depth = 0.006 * np.clip((time - 0.15) / 0.3, 0, 1)
    phase = _vibrato_phase(hertz, vibrato, depth)
    ratios = _harmonics(hertz, 24)
    body = 0.25 + _peaks(
        ratios * hertz, [(290.0, 60.0, 1.0), (480.0, 90.0, 0.9), (900.0, 250.0, 0.7), (2600.0, 700.0, 1.1)]
    )
    sound = _partials(ratios, body / ratios, phase, rng)
    sound *= 1 + 0.12 * np.sin(2 * np.pi * vibrato * time + 1)
    sound += 0.04 * np.abs(sound).max() * _noise(rng, 2000.0, 6000.0)
    return sound * _attack(time, 0.09)


def flute(hertz: float, rng: np.random.Generator) -> Sound:
    """A blown pipe: a few partials, a breathy beginning, breath noise round the note, tremolo."""
    time = _time()
    tremolo = rng.uniform(4, 5)
    phase = _vibrato_phase(hertz, tremolo, 0.002 * np.clip(time / 0.5, 0, 1))
    ratios = _harmonics(hertz, 5)
    sound = _partials(ratios, np.array([1, 0.32, 0.12, 0.03, 0.01])[: len(ratios)], phase, rng)
    sound *= 1 + 0.15 * np.sin(2 * np.pi * tremolo * time)
    breath = _noise(rng, 0.8 * hertz, min(4 * hertz, 9000.0)) * (0.05 + 0.3 * np.exp(-time / 0.05))
    return (sound + breath) * _attack(time, 0.06)


def trumpet(hertz: float, rng: np.random.Generator) -> Sound:
    """Brass: the louder, the brighter, so the upper partials come in last (Risset); a bell's formant at 1.2 kHz."""
    time = _time()
    ratios = _harmonics(hertz, 20)
    formant = 0.15 + _peaks(ratios * hertz, [(1200.0, 600.0, 1.0), (2400.0, 900.0, 0.5)])
    swell = _attack(time, 0.05) * (1 + 0.06 * np.exp(-(((time - 0.07) / 0.03) ** 2)))
    phase = _vibrato_phase(hertz, rng.uniform(4.5, 5.5), 0.002 * np.clip((time - 0.4) / 0.3, 0, 1))
    starts = rng.uniform(0, 2 * np.pi, (len(ratios), 1))
    tones = np.sin((np.outer(ratios, phase) + starts).astype(np.float32))
    opening = swell[None] ** (1 + 0.35 * ratios[:, None]).astype(np.float32)
    return np.einsum("P,PN,PN->N", (formant / ratios**0.4).astype(np.float32), opening, tones)


def organ(hertz: float, rng: np.random.Generator) -> Sound:
    """Pipes of 8, 4, 2 2/3, 2, 1 3/5 and 1 foot, each with a double a little out of tune, and the chiff."""
    time = _time()
    stops = np.array([1, 2, 3, 4, 5, 8])
    loud = np.array([1, 0.8, 0.45, 0.5, 0.15, 0.3])
    audible = stops * hertz < 0.45 * SAMPLE_RATE
    ratios = np.concatenate([stops[audible], stops[audible] * 1.0015])
    sound = _partials(ratios, np.tile(loud[audible], 2), 2 * np.pi * hertz * time, rng)
    chiff = _noise(rng, 1000.0, 5000.0) * np.exp(-time / 0.02)
    return (sound + 0.8 * chiff) * _attack(time, 0.02)


def electric_piano(hertz: float, rng: np.random.Generator) -> Sound:
    """A struck tine beside a pickup: frequency modulation (Chowning 1973), a bell-like stroke over a round tone."""
    time = _time()
    angle = 2 * np.pi * hertz * time
    bark = rng.uniform(1.2, 1.8) * np.exp(-time / 0.7)
    tone = np.sin(angle + bark * np.sin(angle)) * np.exp(-time / 1.1)
    stroke = min(14.0, 0.42 * SAMPLE_RATE / hertz)
    tine = np.sin(stroke * angle + rng.uniform(0, 6)) * np.exp(-time / 0.12)
    tremolo = 1 + 0.25 * np.sin(2 * np.pi * 4.2 * time + rng.uniform(0, 6))
    return ((tone + 0.22 * tine) * tremolo * _attack(time, 0.004)).astype(np.float32)


def marimba(hertz: float, rng: np.random.Generator) -> Sound:
    """A wooden bar tuned to 1 : 4 : 9.2, soon silent, and the thump of the mallet."""
    time = _time()
    decay = 0.45 * (260 / hertz) ** 0.4
    sound = _struck(hertz, [(1.0, 1.0, decay), (3.98, 0.3, decay / 3.0), (9.2, 0.12, decay / 8.0)], rng)
    return sound + _noise(rng, 200.0, 1500.0) * 0.6 * np.exp(-time / 0.008)


def glockenspiel(hertz: float, rng: np.random.Generator) -> Sound:
    """Steel bars: the partials of a free bar (1 : 2.76 : 5.40 : 8.93), long ringing, each a pair that beats slowly."""
    pairs = [(1.0, 1.0, 2.2), (2.756, 0.7, 1.4), (5.404, 0.5, 0.7), (8.933, 0.25, 0.35)]
    beating = [(ratio * shift, level / 2, decay) for ratio, level, decay in pairs for shift in (1.0, 1.0012)]
    return _struck(hertz, beating, rng)


VOICES: dict[str, Voice] = {
    "guitar": guitar,
    "violin": violin,
    "flute": flute,
    "trumpet": trumpet,
    "organ": organ,
    "electric piano": electric_piano,
    "marimba": marimba,
    "glockenspiel": glockenspiel,
}
INSTRUMENTS = tuple(VOICES)
# Seconds from the end of a note to silence: a damped string is not cut off, a bell is left ringing.
RELEASES = dict(zip(INSTRUMENTS, (0.25, 0.15, 0.12, 0.1, 0.08, 0.25, 0.5, 1.0), strict=True))


def _time() -> Sound:
    return np.arange(round(NOTE_SECONDS * SAMPLE_RATE), dtype=np.float32) / SAMPLE_RATE


def _harmonics(hertz: float, most: int) -> Int[np.ndarray, " P"]:
    return np.arange(1, min(most, max(int(0.45 * SAMPLE_RATE / hertz), 1)) + 1)


def _partials(ratios: np.ndarray, levels: np.ndarray, phase: np.ndarray, rng: np.random.Generator) -> Sound:
    starts = rng.uniform(0, 2 * np.pi, len(ratios))
    tones = np.sin((np.outer(ratios, phase) + starts[:, None]).astype(np.float32))
    return levels.astype(np.float32) @ tones


def _struck(hertz: float, partials: Sequence[tuple[float, float, float]], rng: np.random.Generator) -> Sound:
    """Partials given as (ratio, level, seconds to fall to 1/e); those above the audible band are left out."""
    time = _time()
    kept = [p for p in partials if p[0] * hertz < 0.45 * SAMPLE_RATE]
    ratios, levels, decays = (np.array(column, np.float32)[:, None] for column in zip(*kept, strict=True))
    starts = rng.uniform(0, 2 * np.pi, ratios.shape)
    tones = np.sin((2 * np.pi * hertz * ratios * time.astype(np.float64) + starts).astype(np.float32))
    return (levels * tones * np.exp(-time / decays)).sum(0) * _attack(time, 0.002)


def _vibrato_phase(hertz: float, rate: float, depth: np.ndarray) -> np.ndarray:
    wobble = 1 + depth * np.sin(2 * np.pi * rate * _time())
    return 2 * np.pi * hertz * np.cumsum(wobble, dtype=np.float64) / SAMPLE_RATE


def _peaks(hertz: np.ndarray, resonances: Sequence[tuple[float, float, float]]) -> np.ndarray:
    centre, width, level = np.array(resonances).T[..., None]
    return (level / (1 + ((hertz - centre) / width) ** 2)).sum(0)


def _attack(time: Sound, seconds: float) -> Sound:
    return np.minimum(time / np.float32(seconds), 1) ** 1.5


def _noise(rng: np.random.Generator, low: float, high: float) -> Sound:
    """White noise between two frequencies in Hz, of deviation 1."""
    size = round(NOTE_SECONDS * SAMPLE_RATE)
    spectrum = np.fft.rfft(rng.standard_normal(size, np.float32))
    band = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    noise = np.fft.irfft(spectrum * ((band > low) & (band < high)), size).astype(np.float32)
    return noise / noise.std()


def _fade_out(samples: int, seconds: float) -> Sound:
    tail = min(round(seconds * SAMPLE_RATE), samples)
    return np.minimum(np.arange(samples, 0, -1, dtype=np.float32) / tail, 1)


@functools.cache
def _room() -> Sound:
    """A room's echo: the direct sound, and noise that falls by 60 dB in 0.9 s."""
    rng = np.random.default_rng(0)
    size = round(0.9 * SAMPLE_RATE)
    echo = rng.standard_normal(size) * 10 ** (-3 * np.arange(size) / size) * np.minimum(np.arange(size) / 200, 1)
    echo *= 0.35 / np.sqrt(np.square(echo).sum())
    echo[0] = 1
    return echo.astype(np.float32)


def _in_room(dry: Sound) -> Sound:
    size = 1 << (len(dry) + len(_room()) - 1).bit_length()
    spectrum = np.fft.rfft(dry, size) * np.fft.rfft(_room(), size)
    return np.fft.irfft(spectrum, size)[: len(dry)].astype(np.float32)

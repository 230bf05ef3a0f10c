"""A stand-in for the program fluidsynth, where it is not installed: every note is a decaying tone of its own pitch."""

import sys

import numpy as np
import pretty_midi
import soundfile


def main() -> None:
    options = sys.argv[1:]
    rate, wave = int(options[options.index("-r") + 1]), options[options.index("-F") + 1]
    soundfont, midi = options[-2:]
    with open(soundfont, "rb") as file:
        if file.read(4) != b"RIFF":
            sys.exit("fluidsynth: error: not a SoundFont")
    score = pretty_midi.PrettyMIDI(midi)
    samples = np.zeros(round((score.get_end_time() + 1) * rate))
    for part in score.instruments:
        for note in part.notes:
            first = round(note.start * rate)
            time = np.arange(min(round((note.end - note.start + 0.2) * rate), len(samples) - first)) / rate
            pitch = 8000 if part.is_drum else 440 * 2 ** ((note.pitch - 69) / 12)
            samples[first : first + len(time)] += note.velocity * np.exp(-6 * time) * np.sin(2 * np.pi * pitch * time)
    soundfile.write(wave, samples / np.abs(samples).max() / 2, rate)


if __name__ == "__main__":
    main()

"""A WordNet of a few words, in the files of the real one, as nltk reads them."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

_LETTERS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
SYNONYMS: dict[str, Sequence[Sequence[str]]] = {
    "noun": [["guitar"], ["melody", "tune", "air"], ["happiness", "gladness"], ["dawn", "morning"]],
    "verb": [["play", "perform"], ["sing"]],
    "adj": [["sad", "gloomy"], ["quick", "fast"]],
    "adv": [["softly", "gently"]],
}


def write_wordnet(nltk_data: Path) -> Path:
    """Writes corpora/wordnet below the folder of nltk's data, which it returns."""
    folder = nltk_data / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    # nltk reads no data that others may write to.
    for each in (folder, folder.parent, nltk_data):
        each.chmod(0o755)
    senses = []
    for part, groups in SYNONYMS.items():
        offsets = _write_part(folder, part, groups)
        senses += [f"{word}%1:00:00:: {offset:08d} 1 0" for word, each in offsets.items() for offset in each]
    (folder / "index.sense").write_text("\n".join(sorted(senses)) + "\n")
    (folder / "lexnames").write_text("00\tadj.all\t3\n01\tadj.pert\t3\n02\tadv.all\t4\n03\tnoun.Tops\t1\n")
    (folder / "cntlist.rev").write_text("")
    for file in folder.iterdir():
        file.chmod(0o644)
    return nltk_data


def _write_part(folder: Path, part: str, groups: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    """Writes a part of speech; returns the offsets of each word's synonym sets."""
    letter, data = _LETTERS[part], ""
    offsets: defaultdict[str, list[int]] = defaultdict(list)
    for words in groups:
        for word in words:
            offsets[word].append(len(data))
        spelled = " ".join(f"{word} 0" for word in words)
        frames = " 01 + 01 00" if part == "verb" else ""
        data += f"{len(data):08d} 00 {letter} {len(words):02x} {spelled} 000{frames} | a gloss  \n"
    index = [
        f"{word} {letter} {len(each)} 0 {len(each)} 0 {' '.join(f'{offset:08d}' for offset in each)}  "
        for word, each in sorted(offsets.items())
    ]
    (folder / f"data.{part}").write_text(data)
    (folder / f"index.{part}").write_text("\n".join(index) + "\n")
    (folder / f"{part}.exc").write_text("")
    return dict(offsets)

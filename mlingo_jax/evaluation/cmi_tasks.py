"""The metrics that CMI-Bench names for its tasks other than captioning, by its own rules of reading answers.

Where its evaluator runs a model's text as Python, here it is read as a literal: what is none counts as unreadable.

P: pairs. S: statistics of a pair.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from mlingo_jax.evaluation import cmi_sequences as sequences
from mlingo_jax.evaluation.optional import require_package
from mlingo_jax.evaluation.pairs import Pairs
from mlingo_jax.evaluation.resources import Resources
from mlingo_jax.evaluation.statistics import mean_statistics

Statistics = Mapping[str, Float[np.ndarray, "P S"]]

_FLATS = {"c": "db", "d": "eb", "f": "gb", "g": "ab", "a": "bb"}
_TONICS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
_KEYS = tuple(f"{tonic} {mode}" for mode in ("major", "minor") for tonic in _TONICS)
# Numbers that are no rating: those of the scale, of a beat, of the prompt's examples.
_NO_RATINGS = (
    *("out of 9", "1-9 scale", "from 1 to 9", r"\d-point scale"),
    *(r"\d/\d time signature", r"\d/\d beat", r"Example \d"),
)
_INTRODUCTIONS = (
    *(r".*? lyrics .*?are.*?:", r".*? content .*?is.*?:"),
    *(r".*? transcription .*?is.*?:", r".*? text .*?is.*?:", "<s>", "</s>"),
)
_PUNCTUATION = str.maketrans("", "", '!"#$%&\\()*+,-./:;<=>?@[]^_`{|}~')


def label_accuracy(pairs: Pairs, resources: Resources) -> Statistics:
    """`cmi.accuracy`: the right label is in the answer, and no other of the file's labels is.

    Where a label is part of another ("10" of "100") no answer can do that, so `cmi.exact_label` asks whether, of the
    labels in the answer that are no part of a longer one, there is the right one alone.
    """
    texts = [_normalise(text) for text in pairs.texts]
    labels = sorted({texts[i] for i in pairs.documents})
    named = {i: {label for label in labels if label in texts[i]} for i in np.unique(pairs.answers).tolist()}
    longest = {i: {a for a in found if not any(a != b and a in b for b in found)} for i, found in named.items()}
    right = [{texts[r]} for r in pairs.references]
    return {
        "cmi.accuracy": _mean([named[a] == truth for a, truth in zip(pairs.answers.tolist(), right, strict=True)]),
        "cmi.exact_label": _mean([longest[a] == truth for a, truth in zip(pairs.answers.tolist(), right, strict=True)]),
    }


def rating_r2(pairs: Pairs, resources: Resources) -> Statistics:
    """`cmi.r2`'s statistics (`r2`): of ratings brought to mean 0 and deviation 1, those that cannot be read to 0."""
    ratings = [_rating(text) for text in pairs.texts]
    x = np.array([ratings[a] if ratings[a] is not None else np.nan for a in pairs.answers], float)
    y = np.array([float(str(pairs.texts[r])) for r in pairs.references])
    read = np.isfinite(x).astype(float)
    x = np.nan_to_num(x)
    return {"cmi.r2": np.stack([read, x, x * x, x * y, read * y, np.ones_like(y), y, y * y], axis=1)}


def r2(sums: Float[np.ndarray, "*shape 8"]) -> Float[np.ndarray, "*shape"]:
    """R² of summed `rating_r2` statistics; not a number where all ratings are the same."""
    read, x, xx, xy, y_read, count, y, yy = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = x / read
        deviation = np.sqrt(np.maximum(xx / read - mean**2, 0))
        residual = read - 2 * (xy - mean * y_read) / deviation + yy
        return np.asarray(1 - residual / (yy - y**2 / count))


def key_score(pairs: Pairs, resources: Resources) -> Statistics:
    """`cmi.key_score`: mir_eval's weighted key score; 0 for an answer that names no key."""
    weighted = require_package("mir_eval.key").weighted_score
    keys = [_key(text) for text in pairs.texts]
    both = [(pairs.texts[r], keys[a]) for a, r in zip(pairs.answers, pairs.references, strict=True)]
    return {"cmi.key_score": mean_statistics(np.array([weighted(*each) if each[1] else 0 for each in both], float))}


def word_errors(pairs: Pairs, resources: Resources) -> Statistics:
    """`cmi.wer` and `cmi.cer`, by jiwer, of lyrics without their introduction and punctuation.

    The mean over answers; less is better.
    """
    jiwer = require_package("jiwer")
    num2words = require_package("num2words").num2words
    answers = [_plain_lyrics(_without_introduction(text), num2words) for text in pairs.texts]
    references = [_plain_lyrics(text, num2words) for text in pairs.texts]
    both = [(references[r], answers[a]) for a, r in zip(pairs.answers, pairs.references, strict=True)]
    rates = {"cmi.wer": jiwer.wer, "cmi.cer": jiwer.cer}
    return {name: mean_statistics(np.array([rate(*each) for each in both], float)) for name, rate in rates.items()}


def beats(pairs: Pairs, resources: Resources) -> Statistics:
    """`cmi.f_measure`, `cmi.cml_t`, `cmi.aml_t`: mir_eval's of times in seconds; 0 for answers without times."""
    beat = require_package("mir_eval.beat")
    times = [sequences.read_times(text) for text in pairs.texts]
    scores = np.zeros((len(pairs), 3))
    for i, (a, r) in enumerate(zip(pairs.answers, pairs.references, strict=True)):
        scores[i] = sequences.beat_scores(beat, times[r], times[a])
    return {f"cmi.{name}": mean_statistics(scores[:, k]) for k, name in enumerate(("f_measure", "cml_t", "aml_t"))}


def techniques(pairs: Pairs, resources: Resources) -> Statistics:
    """`cmi.micro_f1` and `cmi.macro_f1`'s statistics (`micro_f1`, `macro_f1`).

    Hits, false alarms and misses of each technique, in frames of 10 ms.
    """
    frames = [sequences.technique_frames(text) for text in pairs.texts]
    counted = [
        sequences.frame_counts(frames[r], frames[a]) for a, r in zip(pairs.answers, pairs.references, strict=True)
    ]
    statistics = np.array(counted, float).reshape(len(pairs), -1)
    return {"cmi.micro_f1": statistics, "cmi.macro_f1": statistics}


def melody(pairs: Pairs, resources: Resources) -> Statistics:
    """`cmi.melody`: mir_eval's overall accuracy of (time, note) lists; 0 where a list cannot be read."""
    evaluate = require_package("mir_eval.melody").evaluate
    melodies = [sequences.read_melody(text) for text in pairs.texts]
    scores = [
        sequences.melody_score(evaluate, melodies[r], melodies[a])
        for a, r in zip(pairs.answers, pairs.references, strict=True)
    ]
    accuracy = np.array(scores, float)
    # A weight of 0 leaves an answer out, as the benchmark leaves out those that mir_eval refuses.
    counted = np.isfinite(accuracy)
    return {"cmi.melody": np.stack([np.where(counted, accuracy, 0.0), counted.astype(float)], axis=1)}


TAGGING = ("MTT", "MTG_genre", "MTG_instrument", "MTG_emotion", "MTG_top50tags")
NO_TAGGING = (
    "CMI-Bench ranks tags by how near a text embedder finds them to the answer, over all clips at once; that is left "
    "to its own evaluator: --export cmi_bench"
)

Measure = Callable[[Pairs, Resources], Statistics]
_LABELS: tuple[Measure, tuple[str, ...]] = (label_accuracy, ("cmi.accuracy", "cmi.exact_label"))
_RATINGS: tuple[Measure, tuple[str, ...]] = (rating_r2, ("cmi.r2",))
_BEATS: tuple[Measure, tuple[str, ...]] = (beats, ("cmi.f_measure", "cmi.cml_t", "cmi.aml_t"))

TASK_MEASURES: Mapping[str, tuple[Measure, tuple[str, ...]]] = {
    **dict.fromkeys(("GTZAN", "VocalSet_tech", "Nsynth_instrument", "Nsynth_pitch"), _LABELS),
    **dict.fromkeys(("EMO_valence", "EMO_arousal"), _RATINGS),
    **dict.fromkeys(("ballroom_beat", "ballroom_downbeat", "gtzan_beat", "gtzan_downbeat"), _BEATS),
    "GS_key": (key_score, ("cmi.key_score",)),
    "DSing": (word_errors, ("cmi.wer", "cmi.cer")),
    "Guzheng_Tech": (techniques, ("cmi.micro_f1", "cmi.macro_f1")),
    "MedleyDB": (melody, ("cmi.melody",)),
}
"""The metric that the benchmark names for each task."""


def _mean(hits: Sequence[bool]) -> Float[np.ndarray, "P 2"]:
    return mean_statistics(np.array(hits, float))


def _normalise(text: str) -> str:
    for dropped in "_-' .":
        text = text.replace(dropped, "")
    return text.replace("#", "♯").lower()


def _rating(text: str) -> float | None:
    """The first number from 1 to 9; of two with a point between them, the decimal."""
    for pattern in _NO_RATINGS:
        text = re.sub(pattern, " ", text)
    found = [number for number in re.findall(r"\d+", text) if 0 < int(number) < 10]
    if len(found) == 2 and f"{found[0]}.{found[1]}" in text:
        return float(f"{found[0]}.{found[1]}")
    return float(found[0]) if found else None


def _key(text: str) -> str | None:
    """The first of the 24 keys in a text; "Am" and "A" are keys, too, and sharps are flats."""
    plain = "".join(letter for letter in text.lower().replace(" ", "") if not letter.isdigit())
    if len(plain) <= 3 and plain.endswith("m"):
        plain += "inor"
    elif len(plain) <= 2:
        plain += "major"
    if plain[1:2] in ("#", "♯") and plain:
        if plain[0] not in _FLATS:
            return None
        plain = _FLATS[plain[0]] + plain[2:]
    return next((key for key in _KEYS if key.lower().replace(" ", "") in plain), None)


def _without_introduction(text: str) -> str:
    for pattern in _INTRODUCTIONS:
        text = re.sub(pattern, "", text).strip()
    return text


def _plain_lyrics(text: str, num2words: Callable[[int], str]) -> str:
    words = text.translate(_PUNCTUATION).lower().replace("\n", " ").split()
    return " ".join(num2words(int(word)) if word.isdigit() else word for word in words)

"""From answers to statistics: every metric of both families, for the answers themselves and for their floors.

N: examples. P: pairs. S: statistics of an example.
"""

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from mlingo_jax.evaluation import paper, standard
from mlingo_jax.evaluation.answers import Answer, fingerprint
from mlingo_jax.evaluation.bert import bert_hash, bert_scores
from mlingo_jax.evaluation.floors import SHUFFLES, constant_answers, shuffles, training_answers
from mlingo_jax.evaluation.optional import MissingMetric
from mlingo_jax.evaluation.pairs import Pairs, pair_up
from mlingo_jax.evaluation.resources import Resources
from mlingo_jax.evaluation.statistics import BLEU_ORDERS, Scored, load_scored, save_scored

Measure = Callable[[Pairs, Resources], Mapping[str, Float[np.ndarray, "P S"]]]

MEASURES: Sequence[tuple[Measure, tuple[str, ...]]] = (
    (paper.character_bleu, ("paper.bleu", "paper.bleu4")),
    (paper.wordpunct_meteor, ("paper.meteor",)),
    (paper.rouge_recall, ("paper.rouge_l",)),
    (standard.word_bleu, tuple(BLEU_ORDERS)),
    (standard.word_meteor, ("standard.meteor",)),
    (standard.rouge_f1, ("standard.rouge_l",)),
    (standard.word_cider_d, ("standard.cider_d",)),
    (bert_scores, ("paper.bert_score", "standard.bert_score")),
)
"""What computes which metrics, in the order of their tables."""

_PACKAGES = ("nltk", "rouge-score", "sacrebleu", "rapidfuzz", "bert-score")


def score(
    examples: Sequence[Answer],
    resources: Resources,
    folder: Path,
    training: Sequence[Answer] = (),
    measures: Sequence[tuple[Measure, tuple[str, ...]]] = MEASURES,
) -> tuple[dict[str, Scored], dict[str, str]]:
    """The statistics by metric, and of metrics that cannot be computed here, why.

    Statistics are kept in the folder; those that are there from before, of the same answers, are taken from it.

    Args:
        examples: the N answers. resources: data that metrics need. training: the training split's true answers, for
            the floor of random training answers. measures: what computes which metrics.
    """
    scored: dict[str, Scored] = {}
    missing: dict[str, str] = {}
    key = fingerprint([fingerprint(e) for e in examples], [fingerprint(t) for t in training], versions(resources))
    assigned = None
    with tqdm(measures, "scoring", unit="metric", disable=None) as bar:
        for measure, names in bar:
            bar.set_postfix_str(names[0])
            kept = {name: load_scored(folder, name, key) for name in names}
            if any(value is None for value in kept.values()):
                assigned = assigned or _assign(examples, training)
                try:
                    computed = measure(assigned[0], resources)
                except MissingMetric as error:
                    missing |= dict.fromkeys(names, str(error))
                    continue
                kept = {name: _deal(computed[name], assigned[1]) for name in names}
                for name, value in kept.items():
                    save_scored(folder, name, value, key)
            scored |= {name: value for name, value in kept.items() if value is not None}
    return scored, missing


def versions(resources: Resources) -> dict[str, str | None]:
    """What the numbers depend on besides the answers: packages' versions, and BERTScore's hash."""
    found: dict[str, str | None] = {name: _version(name) for name in _PACKAGES}
    return found | {"bert_score_hash": bert_hash(resources)}


def _assign(examples: Sequence[Answer], training: Sequence[Answer]) -> tuple[Pairs, list[Int[np.ndarray, "N"]]]:
    """Which pairs of texts are needed, and each example's pair: its own, of each shuffle, of each floor."""
    answers = [example.answer for example in examples]
    candidates = [answers, *([answers[i] for i in dealt] for dealt in shuffles(examples))]
    candidates.append(constant_answers(examples, training))
    if training:
        candidates += training_answers(examples, training)
    return pair_up([example.reference for example in examples], candidates)


def _deal(statistics: Float[np.ndarray, "P S"], where: Sequence[Int[np.ndarray, "N"]]) -> Scored:
    """The pairs' statistics, in the order of `_assign`."""
    every = np.stack([statistics[each] for each in where])
    own, shuffled, constant, training = np.split(every, (1, 1 + SHUFFLES, 2 + SHUFFLES))
    floors = {"constant": constant, "training": training}
    return Scored(own[0], shuffled, {name: drawn for name, drawn in floors.items() if len(drawn)})


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

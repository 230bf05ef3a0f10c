"""BERTScore, by bert-score; the model reads each text once, however many pairs it is in."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mlingo_jax.evaluation.optional import MissingMetric, require_package
from mlingo_jax.evaluation.pairs import Pairs
from mlingo_jax.evaluation.resources import Resources
from mlingo_jax.evaluation.statistics import mean_statistics

# What bert-score takes for English.
ENGLISH = "roberta-large"


def bert_scores(pairs: Pairs, resources: Resources) -> Mapping[str, Float[np.ndarray, "P S"]]:
    """`paper.bert_score`: recall; `standard.bert_score`: F1. Neither rescaled nor weighed by idf; 0 for blank texts.

    Raises:
        MissingMetric: bert-score is not installed, or its model is not there.
    """
    folder, layers = _model(resources)
    library = require_package("bert_score")
    filled = np.array([bool(text.strip()) for text in pairs.texts], bool)
    kept = np.flatnonzero(filled[pairs.answers] & filled[pairs.references])
    answers, references = ([pairs.texts[i] for i in side[kept]] for side in (pairs.answers, pairs.references))
    recall, f1 = np.zeros(len(pairs)), np.zeros(len(pairs))
    with _quiet():
        scorer = library.BERTScorer(model_type=str(folder), num_layers=layers)
        if len(kept):
            _, recall[kept], f1[kept] = (one.double().numpy() for one in scorer.score(answers, references))
    return {"paper.bert_score": mean_statistics(recall), "standard.bert_score": mean_statistics(f1)}


def bert_hash(resources: Resources) -> str | None:
    """bert-score's name for model, layer and versions, to be told beside its numbers; None where there are none."""
    try:
        folder, layers = _model(resources)
        get_hash = require_package("bert_score.utils").get_hash
    except MissingMetric:
        return None
    return get_hash(folder.resolve().name, layers, False, False, False, False)


def _model(resources: Resources) -> tuple[Path, int]:
    """The model's folder and the layer to compare: bert-score's for a model of that name, else roberta-large's."""
    folder = resources.bert
    if folder is None:
        raise MissingMetric(f"needs {ENGLISH}: download it from the Hugging Face hub and give --bert_score FOLDER")
    try:
        depth = json.loads((folder / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    except (OSError, ValueError, KeyError) as error:
        raise MissingMetric(f"needs a model in {folder}, in Hugging Face layout; its config.json is not one") from error
    known = require_package("bert_score.utils").model2layers
    return folder, resources.bert_layers or min(known.get(folder.resolve().name, known[ENGLISH]), depth)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' notes on weights that BERTScore does not use."""
    logging = require_package("transformers.utils.logging")
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)

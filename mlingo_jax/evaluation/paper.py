"""The metrics of MusiLingo's paper, by the names and rules of its script, which MU-LLaMA and CMI-Bench use as well.

The names promise more than they keep: BLEU is over characters, ROUGE-L and BERTScore are recalls. Never to be set
beside numbers of the standard family. Every score is the mean over the examples.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from mlingo_jax.evaluation.bleu import sentence_bleu
from mlingo_jax.evaluation.meteor import meteor
from mlingo_jax.evaluation.ngrams import clipped_matches, count_ngrams, totals
from mlingo_jax.evaluation.optional import require_package
from mlingo_jax.evaluation.pairs import Pairs
from mlingo_jax.evaluation.resources import Resources
from mlingo_jax.evaluation.rouge import rouge_l
from mlingo_jax.evaluation.statistics import mean_statistics

Statistics = Mapping[str, Float[np.ndarray, "P S"]]


def character_bleu(pairs: Pairs, resources: Resources) -> Statistics:
    """`paper.bleu`: sentence BLEU over characters, unsmoothed; `paper.bleu4`: its 4-gram part alone."""
    counts = count_ngrams(pairs.texts)
    matches, lengths = clipped_matches(counts, pairs.answers, pairs.references), totals(counts)
    answers, references = lengths[pairs.answers], lengths[pairs.references]
    weights = {"paper.bleu": (0.25, 0.25, 0.25, 0.25), "paper.bleu4": (0.0, 0.0, 0.0, 1.0)}
    return {n: mean_statistics(sentence_bleu(matches, answers, references, w)) for n, w in weights.items()}


def wordpunct_meteor(pairs: Pairs, resources: Resources) -> Statistics:
    """`paper.meteor`: nltk's METEOR on wordpunct tokens."""
    tokenize = require_package("nltk.tokenize").wordpunct_tokenize
    return {"paper.meteor": mean_statistics(meteor(pairs, tokenize, resources.nltk_data))}


def rouge_recall(pairs: Pairs, resources: Resources) -> Statistics:
    """`paper.rouge_l`: recall of ROUGE-L over stems."""
    return {"paper.rouge_l": mean_statistics(rouge_l(pairs, stem=True)[1])}

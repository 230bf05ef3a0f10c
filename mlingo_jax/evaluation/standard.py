"""The metrics that captioning means by these names.

Words are sacrebleu's 13a tokens, so the same for BLEU, METEOR and CIDEr-D; ROUGE-L has rouge-score's own.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from mlingo_jax.evaluation.bleu import bleu_statistics
from mlingo_jax.evaluation.cider import cider_d
from mlingo_jax.evaluation.meteor import meteor
from mlingo_jax.evaluation.ngrams import clipped_matches, count_ngrams, totals
from mlingo_jax.evaluation.optional import require_package
from mlingo_jax.evaluation.pairs import Pairs
from mlingo_jax.evaluation.resources import Resources
from mlingo_jax.evaluation.rouge import f1, rouge_l
from mlingo_jax.evaluation.statistics import BLEU_ORDERS, mean_statistics

Statistics = Mapping[str, Float[np.ndarray, "P S"]]

_WORD = re.compile(r"[\w'-]+")


def word_bleu(pairs: Pairs, resources: Resources) -> Statistics:
    """`standard.bleu1` to `standard.bleu4`: corpus BLEU up to each order, case kept, sacrebleu's defaults."""
    counts = count_ngrams(_tokens(pairs.texts))
    matches, lengths = clipped_matches(counts, pairs.answers, pairs.references), totals(counts)
    statistics = bleu_statistics(matches, lengths[pairs.answers], lengths[pairs.references])
    return dict.fromkeys(BLEU_ORDERS, statistics)


def rouge_f1(pairs: Pairs, resources: Resources) -> Statistics:
    """`standard.rouge_l`: F1 of ROUGE-L, words as they are; the mean over the examples."""
    return {"standard.rouge_l": mean_statistics(f1(*rouge_l(pairs, stem=False)))}


def word_meteor(pairs: Pairs, resources: Resources) -> Statistics:
    """`standard.meteor`: nltk's METEOR on words; the mean over the examples."""
    tokens = dict(zip(pairs.texts, _tokens(pairs.texts), strict=True))
    return {"standard.meteor": mean_statistics(meteor(pairs, tokens.__getitem__, resources.nltk_data))}


def word_cider_d(pairs: Pairs, resources: Resources) -> Statistics:
    """`standard.cider_d`: CIDEr-D on words in lower case, punctuation left out; the mean over the examples."""
    tokens = _tokens([text.lower() for text in pairs.texts])
    words = [[token for token in text if any(map(str.isalnum, token))] for text in tokens]
    return {"standard.cider_d": mean_statistics(cider_d(pairs, words))}


def describe(texts: Sequence[str]) -> dict[str, Any]:
    """What texts are like, whatever they are about: distinct words and texts, mean length in words, blank ones."""
    words = [_WORD.findall(text.lower()) for text in texts]
    return {
        "vocabulary": len({word for text in words for word in text}),
        "mean_words": float(np.mean([len(text.split()) for text in texts])),
        "distinct": len(set(texts)) / len(texts),
        "empty": sum(not text.strip() for text in texts),
    }


def _tokens(texts: Sequence[str]) -> list[list[str]]:
    tokenize = require_package("sacrebleu.tokenizers.tokenizer_13a").Tokenizer13a()
    # sacrebleu strips a text's end before it tokenises.
    return [tokenize(text.rstrip()).split() for text in texts]

"""METEOR as nltk computes it (Lavie & Agarwal 2007: exact words, stems, WordNet's synonyms), of many pairs of texts.

Stems and synonyms belong to a word, and where words stand to a text: all is looked up once. What is left for each pair
is the alignment.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from mlingo_jax.evaluation.optional import MissingMetric, require_package
from mlingo_jax.evaluation.pairs import Pairs

# nltk's parameters of METEOR.
_ALPHA, _BETA, _GAMMA = 0.9, 3.0, 0.5


def meteor(pairs: Pairs, tokenize: Callable[[str], Sequence[str]], nltk_data: Path | None) -> Float[np.ndarray, "P"]:
    """METEOR of each pair; tokens are compared in lower case.

    Raises:
        MissingMetric: nltk or WordNet is not there.
    """
    wordnet = load_wordnet(nltk_data)
    stem = functools.cache(require_package("nltk.stem.porter").PorterStemmer().stem)
    tokens = [[token.lower() for token in tokenize(text)] for text in pairs.texts]
    stems = {stem(word) for text in tokens for word in text}
    # nltk looks up the synonyms of stems, and compares them with stems.
    synonyms = {one: _synonyms(one, wordnet, stems) for one in stems}
    texts = [_read(text, [stem(word) for word in text], synonyms) for text in tokens]
    return np.array(
        [_score(texts[a], texts[r]) for a, r in zip(pairs.answers.tolist(), pairs.references.tolist(), strict=True)],
        float,
    )


@functools.cache
def load_wordnet(nltk_data: Path | None) -> Any:
    """nltk's reader of WordNet, from a folder of nltk's data or from where nltk looks (NLTK_DATA and the user's home).

    Raises:
        MissingMetric: nltk or WordNet is not there.
    """
    data = require_package("nltk.data")
    corpus, reader = require_package("nltk.corpus.util"), require_package("nltk.corpus.reader")
    # A loader of its own: nltk's common one keeps the first WordNet that it finds.
    other_languages = corpus.LazyCorpusLoader("omw-1.4", reader.CorpusReader, r".*/wn-data-.*\.tab")
    wordnet = corpus.LazyCorpusLoader("wordnet", reader.WordNetCorpusReader, other_languages)
    elsewhere = list(data.path)
    if nltk_data is not None:
        data.path[:] = [str(nltk_data)]
    try:
        wordnet.ensure_loaded()
    except (LookupError, OSError) as error:
        raise MissingMetric(
            f"needs WordNet, which is not {f'in {nltk_data}' if nltk_data else 'where nltk looks'}: run "
            "`python -m nltk.downloader -d FOLDER wordnet` where there is a network, and give --nltk_data FOLDER"
        ) from error
    finally:
        # The folder stays among them: nltk opens files below these only, and WordNet's later still.
        data.path[:] = dict.fromkeys([*data.path, *elsewhere])
    return wordnet


class _Text(NamedTuple):
    """A text, ready to be aligned with any other.

    words: the position of each word's last occurrence, of its last but one, and so on: {(word, 0): 17, (word, 1): 4}.
    stems: each position's stem. by_stem: a stem's positions, from the back. reach: for each stem that is a synonym of
    another stem in the text, where those stand.
    """

    words: Mapping[tuple[str, int], int]
    stems: Sequence[str]
    by_stem: Mapping[str, Sequence[int]]
    reach: Mapping[str, Sequence[int]]


def _read(words: Sequence[str], stems: Sequence[str], synonyms: Mapping[str, frozenset[str]]) -> _Text:
    by_word: defaultdict[str, list[int]] = defaultdict(list)
    by_stem: defaultdict[str, list[int]] = defaultdict(list)
    reach: defaultdict[str, list[int]] = defaultdict(list)
    for position in reversed(range(len(words))):
        by_word[words[position]].append(position)
        by_stem[stems[position]].append(position)
        for synonym in synonyms[stems[position]]:
            reach[synonym].append(position)
    ranked = {(word, rank): place for word, places in by_word.items() for rank, place in enumerate(places)}
    return _Text(ranked, stems, dict(by_stem), dict(reach))


def _synonyms(word: str, wordnet: Any, stems: Set[str]) -> frozenset[str]:
    """The other stems that are synonyms of a word."""
    return frozenset({lemma.name() for synset in wordnet.synsets(word) for lemma in synset.lemmas()} & stems - {word})


def _align(answer: _Text, reference: _Text) -> dict[int, int]:
    """{position in the answer: position in the reference}.

    From the back, each word takes the last one that is still free: first all the same words, then the same stems, then
    synonyms. Of one word or stem the last goes with the last, so only synonyms have to be taken one by one.
    """
    same = answer.words.keys() & reference.words.keys()
    aligned = {answer.words[word]: reference.words[word] for word in same}
    taken = set(aligned.values())
    free: defaultdict[str, list[int]] = defaultdict(list)
    for position, stem in enumerate(reference.stems):
        if position not in taken:
            free[stem].append(position)
    for stem in free.keys() & answer.by_stem.keys():
        left = (position for position in answer.by_stem[stem] if position not in aligned)
        # The free positions come first: of two that run out, zip takes one too many of the first.
        aligned.update([(position, free[stem].pop()) for _, position in zip(tuple(free[stem]), left, strict=False)])
    _align_synonyms(answer, {stem: positions for stem, positions in free.items() if positions}, aligned)
    return aligned


def _align_synonyms(answer: _Text, free: dict[str, list[int]], aligned: dict[int, int]) -> None:
    """Adds to `aligned`; free: the reference's free positions of each stem, ascending."""
    wanted: defaultdict[int, list[str]] = defaultdict(list)
    for stem in free.keys() & answer.reach.keys():
        for position in answer.reach[stem]:
            if position not in aligned:
                wanted[position].append(stem)
    for position in sorted(wanted, reverse=True):
        open_stems = [free[stem] for stem in wanted[position] if free[stem]]
        if open_stems:
            aligned[position] = max(open_stems, key=lambda positions: positions[-1]).pop()


def _score(answer: _Text, reference: _Text) -> float:
    """METEOR of the best alignment."""
    aligned = _align(answer, reference)
    if not aligned:
        return 0.0
    # A chunk resumes where the word before it is aligned with the word before.
    chunks = sum(aligned.get(position - 1, -2) + 1 != place for position, place in aligned.items())
    precision, recall = len(aligned) / len(answer.stems), len(aligned) / len(reference.stems)
    mean = precision * recall / (_ALPHA * precision + (1 - _ALPHA) * recall)
    return (1 - _GAMMA * (chunks / len(aligned)) ** _BETA) * mean

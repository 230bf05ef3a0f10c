"""The metrics of both families against the libraries that define them, and the reference implementation's own
numbers."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import bert_score
import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from nltk.tokenize import wordpunct_tokenize
from nltk.translate.bleu_score import sentence_bleu
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU  # pyright: ignore[reportPrivateImportUsage]

from mlingo_jax.evaluation import paper, standard
from mlingo_jax.evaluation.answers import Answer
from mlingo_jax.evaluation.bert import bert_hash, bert_scores
from mlingo_jax.evaluation.cider import cider_d
from mlingo_jax.evaluation.meteor import load_wordnet
from mlingo_jax.evaluation.pairs import Pairs, pair_up
from mlingo_jax.evaluation.resources import Resources
from mlingo_jax.evaluation.scoring import score
from mlingo_jax.evaluation.statistics import BLEU_ORDERS
from mlingo_jax.evaluation.values import value_of
from tests.wordnet import SYNONYMS, write_wordnet

SHARED = Path(__file__).parents[1].parent / "shared"
# Texts in which words come again, in other forms, as synonyms of each other, in capitals and beside punctuation.
WORDS = [word for groups in SYNONYMS.values() for words in groups for word in words]
TOKENS = [
    *WORDS,
    "Guitars",
    "playing",
    "plays",
    "the",
    "the",
    "a",
    "songs,",
    "it's",
    "C#",
    "3/4",
    ".",
    "é",
    "-\n",
    "(x)",
]
TEXTS = st.lists(st.sampled_from(TOKENS), max_size=12).map(" ".join)
EXAMPLES = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def resources(tmp_path_factory) -> Iterator[Resources]:
    folder = tmp_path_factory.mktemp("nltk_data")
    load_wordnet.cache_clear()
    yield Resources(write_wordnet(folder))
    load_wordnet.cache_clear()


def pair(examples: list[tuple[str, str]]) -> tuple[Pairs, np.ndarray]:
    references, answers = [reference for reference, _ in examples], [answer for _, answer in examples]
    pairs, positions = pair_up(references, [answers])
    return pairs, positions[0]


@given(EXAMPLES)
def test_character_bleu_is_nltks(examples):
    pairs, positions = pair(examples)
    scores = paper.character_bleu(pairs, Resources())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nltk warns of orders without a match
        expected = [sentence_bleu([reference], answer) for reference, answer in examples]
        expected4 = [sentence_bleu([r], a, weights=(0.0, 0.0, 0.0, 1.0)) for r, a in examples]
    np.testing.assert_allclose(scores["paper.bleu"][positions, 0], expected, rtol=1e-12)
    np.testing.assert_allclose(scores["paper.bleu4"][positions, 0], expected4, rtol=1e-12)


@given(examples=EXAMPLES)
def test_meteor_is_nltks(resources, examples):
    pairs, positions = pair(examples)
    wordnet = load_wordnet(resources.nltk_data)
    scores = paper.wordpunct_meteor(pairs, resources)["paper.meteor"]
    expected = [meteor_score([wordpunct_tokenize(r)], wordpunct_tokenize(a), wordnet=wordnet) for r, a in examples]
    np.testing.assert_allclose(scores[positions, 0], expected, rtol=1e-12)
    words = [BLEU().tokenizer(text.rstrip()).split() for text in pairs.texts]
    standards = standard.word_meteor(pairs, resources)["standard.meteor"][:, 0]
    for value, answer, reference in zip(standards, pairs.answers, pairs.references, strict=True):
        assert value == pytest.approx(meteor_score([words[reference]], words[answer], wordnet=wordnet))


def test_meteor_matches_synonyms(resources):
    pairs, positions = pair([("a quick song", "a fast song"), ("a quick song", "a slow song")])
    scores = paper.wordpunct_meteor(pairs, resources)["paper.meteor"][positions, 0]
    assert scores[0] > 0.95 > 0.5 > scores[1]


@given(EXAMPLES)
def test_rouge_l_is_rouge_scores(examples):
    pairs, positions = pair(examples)
    recall = paper.rouge_recall(pairs, Resources())["paper.rouge_l"][positions, 0]
    f1 = standard.rouge_f1(pairs, Resources())["standard.rouge_l"][positions, 0]
    stemmed, plain = RougeScorer(["rougeL"], use_stemmer=True), RougeScorer(["rougeL"], use_stemmer=False)
    np.testing.assert_allclose(recall, [stemmed.score(r, a)["rougeL"].recall for r, a in examples], rtol=1e-12)
    np.testing.assert_allclose(f1, [plain.score(r, a)["rougeL"].fmeasure for r, a in examples], rtol=1e-12)


@given(EXAMPLES)
def test_corpus_bleu_is_sacrebleus(examples):
    pairs, positions = pair(examples)
    statistics = standard.word_bleu(pairs, Resources())
    for name, order in BLEU_ORDERS.items():
        scorer = BLEU(max_ngram_order=order)
        expected = scorer.corpus_score([a for _, a in examples], [[r for r, _ in examples]]).score / 100
        found = float(value_of(name)(statistics[name][positions].sum(axis=0)))
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12), name


def test_cider_d_from_its_definition():
    texts = [["a", "sad", "song", "a", "sad", "song"], ["a", "sad", "song"], ["a", "drum"], [], ["drum"]]
    answers, references = np.array([0, 1, 2, 3, 0]), np.array([1, 1, 4, 2, 2])
    pairs = Pairs(["0", "1", "2", "3", "4"], answers, references, np.array([1, 2, 2, 4]))
    expected = [
        _cider_d(texts[a], texts[r], [texts[d] for d in pairs.documents])
        for a, r in zip(answers, references, strict=True)
    ]
    np.testing.assert_allclose(cider_d(pairs, texts), expected, rtol=1e-12)
    assert expected[1] == pytest.approx(7.5)  # the text itself; it has no 4-gram


def _cider_d(answer: list[str], reference: list[str], documents: list[list[str]]) -> float:
    """Vedantam et al. 2015, section 4, word by word."""
    total = 0.0
    for n in (1, 2, 3, 4):

        def grams(words: list[str], n: int = n) -> list[tuple[str, ...]]:
            return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

        def weights(words: list[str], n: int = n) -> dict[tuple[str, ...], float]:
            found = {}
            for gram in grams(words, n):
                having = max(1, sum(gram in grams(document, n) for document in documents))
                found[gram] = grams(words, n).count(gram) * np.log(len(documents) / having)
            return found

        of_answer, of_reference = weights(answer), weights(reference)
        product = sum(min(w, of_reference.get(g, 0)) * of_reference.get(g, 0) for g, w in of_answer.items())
        lengths = np.sqrt(sum(w**2 for w in of_answer.values()) * sum(w**2 for w in of_reference.values()))
        total += product / lengths if lengths else 0.0
    bigrams = [max(0, len(words) - 1) for words in (answer, reference)]
    return 10 * total / 4 * np.exp(-((bigrams[0] - bigrams[1]) ** 2) / (2 * 6**2))


def test_bert_score_is_bert_scores(tmp_path):
    folder = _tiny_bert(tmp_path / "tiny-bert")
    examples = [("a sad song", "a gloomy tune ."), ("drum", "a drum plays"), ("a sad song", ""), ("drum", "drum")]
    pairs, positions = pair(examples)
    resources = Resources(bert=folder, bert_layers=2)
    scores = bert_scores(pairs, resources)
    filled = [(r, a) for r, a in examples if a]
    answers, references = [a for _, a in filled], [r for r, _ in filled]
    expected = bert_score.score(answers, references, model_type=str(folder), num_layers=2, device="cpu")
    _, recall, f1 = (np.asarray(one) for one in expected)
    np.testing.assert_allclose(scores["paper.bert_score"][positions, 0][[0, 1, 3]], recall, rtol=1e-6)
    np.testing.assert_allclose(scores["standard.bert_score"][positions, 0][[0, 1, 3]], f1, rtol=1e-6)
    assert scores["paper.bert_score"][positions[2], 0] == 0
    assert str(bert_hash(resources)).startswith("tiny-bert_L2_no-idf_version=0.3.")


def _tiny_bert(folder: Path) -> Path:
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "sad", "song", "drum", "plays", "."]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizer(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    transformers.set_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_what_is_missing_is_said_and_the_rest_is_scored(tmp_path, monkeypatch):
    monkeypatch.setattr("nltk.data.path", [])
    load_wordnet.cache_clear()
    examples = [Answer(str(i), "?", f"reference {i}", f"answer {i}") for i in range(4)]
    scored, missing = score(examples, Resources(tmp_path, tmp_path / "none"), tmp_path / "statistics")
    assert set(missing) == {"paper.meteor", "standard.meteor", "paper.bert_score", "standard.bert_score"}
    assert {"paper.bleu", "paper.rouge_l", "standard.cider_d"} < set(scored)
    assert "python -m nltk.downloader -d FOLDER wordnet" in missing["paper.meteor"]
    assert "config.json" in missing["paper.bert_score"]
    assert "\n" not in "".join(missing.values())


def test_the_originals_numbers(tmp_path):
    folder = SHARED / "expected" / "metrics"
    if not folder.is_dir():
        pytest.skip("the reference implementation script's numbers (../shared/expected/metrics) are not here")
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    expected = json.loads((folder / "expected.json").read_text())
    examples = [Answer(str(i), "", line["reference"], line["candidate"]) for i, line in enumerate(lines)]
    load_wordnet.cache_clear()
    scored, _ = score(examples, Resources(SHARED / "data" / "nltk_data"), tmp_path)
    names = {"BLEU": "paper.bleu", "BLEU-4": "paper.bleu4", "METEOR": "paper.meteor", "ROUGE-L recall": "paper.rouge_l"}
    for theirs, ours in names.items():
        whole = float(value_of(ours)(scored[ours].own.sum(axis=0)))
        assert whole == pytest.approx(expected["whole file"][theirs], abs=1e-6)
        each = [one[theirs] for one in expected["each"]]
        np.testing.assert_allclose(scored[ours].own[:, 0], each, atol=1e-6)

"""How fast evaluation is: likelihoods of many answers at once against one by one, and the metrics of 5,000 answers.

    python -m benchmarks.evaluation RUN MANIFEST [--most 100]
    python -m benchmarks.evaluation --metrics [--nltk_data FOLDER]

The first scores, for each question, ten answers with its clip's music, as `evaluate` does for `retrieval`: all at once,
and each answer in a call by itself. Programs are compiled before the clock runs. The second makes up 5,000 answers to
MusicQA-like questions and computes all metrics but BERTScore, the 20 shuffles included.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mlingo_jax.errors import UserError
from mlingo_jax.evaluation.answers import Answer
from mlingo_jax.evaluation.listening import group
from mlingo_jax.evaluation.model import Model, caches_of, open_model
from mlingo_jax.evaluation.questions import find_questions
from mlingo_jax.evaluation.resources import Resources
from mlingo_jax.evaluation.scoring import MEASURES, score
from mlingo_jax.inference.likelihood import Asked, answer_log_probs, tokens_read

ANSWERS = 5000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="a training run's folder")
    parser.add_argument("manifest", nargs="?", help="questions about clips, several about each question")
    parser.add_argument("--most", type=int, default=100, help="questions to score (default %(default)s)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--metrics", action="store_true", help="time the metrics instead")
    parser.add_argument("--nltk_data", type=Path, help="WordNet, for METEOR")
    arguments = parser.parse_args()
    if arguments.metrics:
        time_metrics(arguments.nltk_data)
    elif arguments.run and arguments.manifest:
        time_likelihoods(arguments.run, arguments.manifest, arguments.most, arguments.dtype)
    else:
        raise UserError("give a RUN and a MANIFEST, or --metrics")


def time_likelihoods(run: str, manifest: str, most: int, dtype: str) -> None:
    """Prints questions per second at once and one by one, and the tokens that each way reads."""
    questions = find_questions([manifest], Path("data"))
    with tempfile.TemporaryDirectory() as folder:
        model = open_model(run, questions.audio, caches_of(run, None), Path(folder), dtype=dtype)
        asked = retrieval_questions(model, questions.examples, most)
        seconds = {
            "at once": timed(lambda: scored(model, asked)),
            "one by one": timed(lambda: [scored(model, [one]) for one in each_alone(asked)]),
        }
    texts = [(one.question, one.answers, one.features.shape[-2]) for one in asked]
    read, whole = tokens_read(model.prompt, texts)
    for way, taken in seconds.items():
        print(f"{way:11} {len(asked) / taken:8.1f} questions/s of 10 answers each, {taken:.2f} s")
    ratio = seconds["one by one"] / seconds["at once"]
    print(f"{ratio:.1f} times as fast; {read:,} tokens read for {whole:,}: {whole / read:.1f} times fewer")


def retrieval_questions(model: Model, examples: Sequence[Answer], most: int) -> list[Asked]:
    """Questions with the ten answers that `retrieval` compares."""
    rows = [(members.tolist(), int(members[place])) for members, place in group(examples).rows()][:most]
    return [
        Asked(model.features(examples[own].clip), examples[own].question, tuple(examples[j].reference for j in members))
        for members, own in rows
    ]


def each_alone(asked: Sequence[Asked]) -> list[Asked]:
    return [Asked(one.features, one.question, (answer,)) for one in asked for answer in one.answers]


def scored(model: Model, asked: Sequence[Asked]) -> object:
    return answer_log_probs(model.networks, model.params, model.prompt, asked, mesh=model.mesh)


def timed(work: Callable[[], object]) -> float:
    """Seconds of the second time, when all programs are compiled."""
    work()
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def time_metrics(nltk_data: Path | None) -> None:
    """Prints how long all metrics of made-up answers take, but for BERTScore."""
    measures = [(measure, names) for measure, names in MEASURES if "standard.bert_score" not in names]
    examples = made_up()
    with tempfile.TemporaryDirectory() as folder:
        begun, worked = time.perf_counter(), time.process_time()
        scored, missing = score(examples, Resources(nltk_data), Path(folder), (), measures)
        taken, worked = time.perf_counter() - begun, time.process_time() - worked
    of_cpu = f"{taken:.1f} s, {worked:.1f} s of one CPU core"
    print(f"{len(examples):,} answers, {len(scored)} metrics, 20 shuffles: {of_cpu}; missing: {list(missing)}")


def made_up() -> list[Answer]:
    """Answers of about 40 words to nine questions about each clip, of a vocabulary as MusicQA's."""
    dice = random.Random(0)
    words = [f"w{number}" for number in range(4000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]

    def text() -> str:
        return " ".join(dice.choices(words, weights, k=dice.randint(10, 70)))

    return [Answer(str(i // 9), f"question {i % 9}", text(), text()) for i in range(ANSWERS)]


if __name__ == "__main__":
    main()

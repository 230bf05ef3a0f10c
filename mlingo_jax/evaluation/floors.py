"""What can be scored without listening: the same answers dealt to other clips, one answer for all, training answers.

N: examples. K: shuffles. D: draws.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from mlingo_jax.errors import UserError
from mlingo_jax.evaluation.answers import Answer
from mlingo_jax.evaluation.ngrams import count_ngrams

SHUFFLES = 20
TRAINING_DRAWS = 5


def shuffles(examples: Sequence[Answer], count: int = SHUFFLES, seed: int = 0) -> Int[np.ndarray, "K N"]:
    """For each example another one, about another clip, whose answer it gets: K derangements.

    Answers go to the same question about another clip. Where a question is asked about too few clips for that, its
    answers are dealt among all such questions of their source, and failing that among all such questions.

    Raises:
        UserError: all answers are about one clip, or more than half of them.
    """
    groups = _groups(examples)
    made = np.empty((count, len(examples)), np.int64)
    for k in range(count):
        random = np.random.default_rng((seed, k))
        for members in groups:
            made[k, members] = _derange(members, examples, random)
    return made


def constant_answers(examples: Sequence[Answer], training: Sequence[Answer] = ()) -> list[str]:
    """For each example the one answer that is given to all who ask its question.

    That is the most typical of the training answers to the question, or of the references where there are none: the
    nearest to their mean, by words. Questions about few clips share one answer.
    """
    pools = _pools(training) if training else {}
    chosen: list[str] = [""] * len(examples)
    for members in _groups(examples):
        questions = {examples[i].question for i in members}
        pool = next(iter(questions)) if len(questions) == 1 else None
        texts = pools.get(pool) or pools.get(None) or [examples[i].reference for i in members]
        answer = _most_typical(texts)
        for i in members:
            chosen[i] = answer
    return chosen


def training_answers(
    examples: Sequence[Answer], training: Sequence[Answer], draws: int = TRAINING_DRAWS, seed: int = 0
) -> list[list[str]]:
    """D times, for each example a random training answer: to the same question, or to any if it is not asked there."""
    pools = _pools(training)
    drawn = []
    for draw in range(draws):
        random = np.random.default_rng((seed, draw))
        wanted = [pools.get(example.question) or pools[None] for example in examples]
        drawn.append([pool[random.integers(len(pool))] for pool in wanted])
    return drawn


def _pools(training: Sequence[Answer]) -> Mapping[str | None, list[str]]:
    """The training answers to each question, and to any (None)."""
    pools: defaultdict[str | None, list[str]] = defaultdict(list)
    for example in training:
        pools[example.question].append(example.reference)
        pools[None].append(example.reference)
    return pools


def _most_typical(texts: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(texts))
    counts = count_ngrams([text.lower().split() for text in distinct])[0]
    often = Counter(texts)
    mean = counts.T @ np.array([often[text] for text in distinct], float)
    norms = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1), float))
    return distinct[int(np.argmax(counts @ mean / np.maximum(norms, 1)))]


def _groups(examples: Sequence[Answer]) -> list[list[int]]:
    """Examples among which answers can be dealt so that each goes to another clip."""
    left, groups = list(range(len(examples))), []
    for same in (_source_and_question, _source, lambda _: None):
        some: defaultdict[Hashable, list[int]] = defaultdict(list)
        for i in left:
            some[same(examples[i])].append(i)
        groups += [members for members in some.values() if _can_derange(members, examples)]
        left = [i for members in some.values() if not _can_derange(members, examples) for i in members]
    if left:
        # A few that find no others: they join the largest group that takes them.
        for group in sorted(groups, key=len, reverse=True):
            if _can_derange(group + left, examples):
                group += left
                return groups
        everyone = list(range(len(examples)))
        if _can_derange(everyone, examples):
            return [everyone]
        clip, count = Counter(example.clip for example in examples).most_common(1)[0]
        raise UserError(
            f"{count} of {len(examples)} answers are about one clip ({clip or 'no clip is named'}): they cannot be "
            "dealt to other clips, and no score is reported without that floor; give answers about more clips"
        )
    return groups


def _source_and_question(example: Answer) -> Hashable:
    return example.source, example.question


def _source(example: Answer) -> Hashable:
    return example.source


def _can_derange(members: Sequence[int], examples: Sequence[Answer]) -> bool:
    return 2 * _most_about_one(members, examples) <= len(members)


def _most_about_one(members: Sequence[int], examples: Sequence[Answer]) -> int:
    return max(Counter(examples[i].clip for i in members).values())


def _derange(members: Sequence[int], examples: Sequence[Answer], random: np.random.Generator) -> Int[np.ndarray, "M"]:
    """Another member for each, about another clip.

    In a random order that keeps a clip's examples together, a turn by at least as many places as the largest clip has
    examples, and at most that many short of a full turn, takes every example out of its clip.
    """
    by_clip: defaultdict[str, list[int]] = defaultdict(list)
    for position in random.permutation(len(members)):
        by_clip[examples[members[position]].clip].append(int(position))
    order = np.array([position for positions in by_clip.values() for position in positions])
    most = max(map(len, by_clip.values()))
    turn = random.integers(most, len(members) - most + 1)
    dealt = np.empty(len(members), np.int64)
    dealt[order] = np.array(members)[np.roll(order, -turn)]
    return dealt

"""Listening measured without generating: how likely the true answers are, with their clip's music and with other.

`nll`: the mean negative log-likelihood of the true answers, in nats a token, with their own clip, another one, silence
and no music. `retrieval`: among K answers to a question, of which one is the clip's own, how often that is the
likeliest; and of K clips, how often the answer's own makes it likeliest. None of it needs a reference metric.

N: examples. G: groups. K: candidates. D: draws.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from mlingo_jax.evaluation.answers import Answer
from mlingo_jax.evaluation.floors import shuffles
from mlingo_jax.evaluation.statistics import Scored, mean_statistics

CANDIDATES = 10
OWN, OTHER, SILENCE, NONE = "own", "other", "silence", "none"
MUSICS = (OWN, OTHER, SILENCE, NONE)


@dataclasses.dataclass(frozen=True)
class Pairing:
    """An answer with music: the answer of the example `answer` to its question, with the music of `music`.

    music: the number of the example whose clip it is, or SILENCE or NONE.
    """

    answer: int
    music: int | str


@dataclasses.dataclass(frozen=True)
class Listened:
    """What was measured of a model besides its answers.

    By metric; why other metrics are missing; and what the numbers depend on.
    """

    scored: dict[str, Scored]
    missing: dict[str, str]
    settings: dict[str, Any]


Likelihoods = Mapping[Pairing, tuple[float, int]]
"""The log-likelihood of an answer, in nats, and its number of tokens."""


@dataclasses.dataclass(frozen=True)
class Groups:
    """Examples with one question about K clips each: candidates for one another.

    members: their numbers. counted: those for which the group is theirs; the others fill it up. An example that
    `counted` has nowhere belongs to a question that is asked about fewer than K clips.
    """

    members: Int[np.ndarray, "G K"]
    counted: Bool[np.ndarray, "G K"]

    def rows(self) -> Iterator[tuple[Int[np.ndarray, "K"], int]]:
        """Each example that counts: its group's members, and which of them it is."""
        for members, counted in zip(self.members, self.counted, strict=True):
            for place in np.flatnonzero(counted):
                yield members, int(place)


def group(examples: Sequence[Answer], candidates: int = CANDIDATES, seed: int = 0) -> Groups:
    """Deals the examples of each question into groups of K about different clips.

    Equal answers come into different groups where that can be.
    """
    alike: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        alike[example.source, example.question].append(i)
    groups: list[tuple[list[int], int]] = []
    for number, members in enumerate(alike.values()):
        if len({examples[i].clip for i in members}) >= candidates:
            groups += _deal(members, examples, candidates, np.random.default_rng((seed, number)))
    counted = [[place < own for place in range(candidates)] for _, own in groups]
    found = np.array([members for members, _ in groups], np.int64).reshape(-1, candidates)
    which = np.array(counted, bool).reshape(-1, candidates)
    # The true one's place says nothing.
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(candidates), (len(found), 1)), axis=1)
    return Groups(np.take_along_axis(found, order, 1), np.take_along_axis(which, order, 1))


def _deal(
    members: Sequence[int], examples: Sequence[Answer], candidates: int, random: np.random.Generator
) -> Iterator[tuple[list[int], int]]:
    """Groups of one question's examples, and how many of each group's first are its own."""
    rounds: defaultdict[int, list[int]] = defaultdict(list)
    seen: defaultdict[str, int] = defaultdict(int)
    # A clip that is asked about several times is in a round once.
    for i in random.permutation(members).tolist():
        rounds[seen[examples[i].clip]].append(i)
        seen[examples[i].clip] += 1
    for some in rounds.values():
        count = -(-len(some) // candidates)
        some.sort(key=lambda i: examples[i].reference)
        for start in range(count):
            own = some[start::count]
            yield _filled(own, members, examples, candidates, random), len(own)


def _filled(
    own: Sequence[int], members: Sequence[int], examples: Sequence[Answer], candidates: int, random: np.random.Generator
) -> list[int]:
    """The group with others about further clips, up to K; those with further answers first."""
    filled, clips = list(own), {examples[i].clip for i in own}
    texts = {examples[i].reference for i in own}
    others = random.permutation(members).tolist() if len(own) < candidates else []
    for i in sorted(others, key=lambda i: examples[i].reference in texts):
        if len(filled) < candidates and examples[i].clip not in clips:
            filled.append(i)
            clips.add(examples[i].clip)
    return filled


def other_clips(examples: Sequence[Answer], seed: int = 0) -> Int[np.ndarray, "N"]:
    """For each example another one, about another clip, whose music stands in for its own."""
    return shuffles(examples, 1, seed)[0]


def nll_pairings(examples: Sequence[Answer], silence: bool) -> list[Pairing]:
    """What `nll` has to know the likelihood of."""
    others = other_clips(examples).tolist()
    pairs = [Pairing(i, music) for i, other in enumerate(others) for music in (i, other, NONE)]
    return pairs + [Pairing(i, SILENCE) for i in range(len(examples))] * silence


def retrieval_pairings(groups: Groups) -> list[Pairing]:
    """What `retrieval` has to know the likelihood of."""
    pairs: dict[Pairing, None] = {}
    for members, place in groups.rows():
        own = int(members[place])
        for other in members.tolist():
            pairs |= {Pairing(other, own): None, Pairing(own, other): None, Pairing(other, NONE): None}
    return list(pairs)


def nll_statistics(examples: Sequence[Answer], likelihoods: Likelihoods, silence: bool) -> dict[str, Scored]:
    """`nll.own`, `nll.other`, `nll.silence`, `nll.none`: (nats, tokens) of each answer.

    Each has another clip's music as its floor.
    """
    others = other_clips(examples).tolist()
    musics: dict[str, list[Pairing]] = {
        OWN: [Pairing(i, i) for i in range(len(examples))],
        OTHER: [Pairing(i, other) for i, other in enumerate(others)],
        **({SILENCE: [Pairing(i, SILENCE) for i in range(len(examples))]} if silence else {}),
        NONE: [Pairing(i, NONE) for i in range(len(examples))],
    }
    found = {name: np.array([_nats(likelihoods[pair]) for pair in pairs]) for name, pairs in musics.items()}
    return {f"nll.{name}": Scored(values, found[OTHER][None]) for name, values in found.items()}


def retrieval_statistics(examples: Sequence[Answer], likelihoods: Likelihoods, groups: Groups) -> dict[str, Scored]:
    """How often the likeliest answer, or clip, is the true one, equals sharing it.

    `retrieval.answer`, `retrieval.answer_pmi` (corrected by what the answers' likelihoods are without music) and
    `retrieval.clip`.

    Floors: the same places chosen for other clips (shuffled), the likeliest answer without music (none), chance.
    Examples of questions about fewer than K clips count in none.
    """
    rows = [(members.tolist(), place, int(members[place])) for members, place in groups.rows()]
    answers = _logs(likelihoods, ([Pairing(j, own) for j in members] for members, _, own in rows))
    clips = _logs(likelihoods, ([Pairing(own, j) for j in members] for members, _, own in rows))
    without = _logs(likelihoods, ([Pairing(j, NONE) for j in members] for members, _, own in rows))
    owners = [own for _, _, own in rows]
    places = np.array([place for _, place, _ in rows], np.int64)
    dealt = shuffles([examples[own] for own in owners])
    chosen = {"answer": answers, "answer_pmi": answers - without, "clip": clips}
    lost = _share_of_best(without)
    scored = {}
    for name, scores in chosen.items():
        shares = _share_of_best(scores)
        floors = {"chance": np.full(len(rows), 1 / groups.members.shape[1])}
        floors |= {} if name == "clip" else {NONE: _at(lost, places)}
        drawn = {floor: _spread(values, owners, len(examples))[None] for floor, values in floors.items()}
        own = _spread(_at(shares, places), owners, len(examples))
        others = [_spread(_at(shares[order], places), owners, len(examples)) for order in dealt]
        scored[f"retrieval.{name}"] = Scored(own, np.stack(others), drawn)
    return scored


def _nats(found: tuple[float, int]) -> tuple[float, float]:
    return -found[0], float(found[1])


def _logs(likelihoods: Likelihoods, rows: Iterable[Sequence[Pairing]]) -> Float[np.ndarray, "N K"]:
    return np.array([[likelihoods[pair][0] for pair in pairs] for pairs in rows])


def _share_of_best(scores: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "N K"]:
    """1 for the best of each row; equals share it: the same answer about two clips cannot be told apart."""
    best = scores >= scores.max(axis=1, keepdims=True) - 1e-6
    return best / best.sum(axis=1, keepdims=True)


def _at(shares: Float[np.ndarray, "N K"], places: Int[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    return np.take_along_axis(shares, places[:, None], axis=1)[:, 0]


def _spread(values: Float[np.ndarray, "_"], owners: Sequence[int], count: int) -> Float[np.ndarray, "N 2"]:
    """The statistics of a mean over the examples that have a value."""
    statistics = np.zeros((count, 2))
    statistics[owners] = mean_statistics(values)
    return statistics

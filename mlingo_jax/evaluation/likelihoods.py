"""Asking a model how likely answers are: each prompt is read once, whatever was found before is not asked again.

Several processes share the work; each has a model of its own, and the first one keeps what all of them find.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from mlingo_jax.evaluation.answers import fingerprint
from mlingo_jax.evaluation.kept import Kept
from mlingo_jax.evaluation.model import Features, Model
from mlingo_jax.inference.likelihood import Asked, answer_log_probs, tokens_read
from mlingo_jax.processes import all_gather, broadcast
from mlingo_jax.wording import counted

# Prompts whose answers' likelihoods are kept at once: what a kill can cost.
_AT_ONCE = 128


class Music(NamedTuple):
    """What a question is asked about: a clip; no music (neither); or silence as long as the clip `silent_like`."""

    clip: str | None = None
    silent_like: str | None = None


class Query(NamedTuple):
    """An answer to a question, with some music."""

    music: Music
    question: str
    answer: str


Found = Mapping[Query, tuple[float, int]]
"""Of each query the answer's log-likelihood in nats, and its number of tokens."""


def find_likelihoods(model: Model, queries: Iterable[Query], kept: Kept) -> dict[Query, tuple[float, int]]:
    """The likelihoods of all queries; those that are kept from before are not computed again.

    Says what it will cost before it begins. All processes must call it with the same queries.

    Raises:
        UserError: a clip's features are not in the model's cache, or results cannot be kept.
    """
    wanted = list(dict.fromkeys(queries))
    of_model = fingerprint(model.identity)
    keys = {query: fingerprint(of_model, query) for query in wanted}
    known = broadcast([keys[query] in kept for query in wanted])
    todo = [query for query, is_known in zip(wanted, known, strict=True) if not is_known]
    prompts = _by_prompt(todo)
    silence = model.silence() if any(music.silent_like is not None for music, _ in prompts) else None
    if todo:
        _say_cost(model, prompts, len(wanted))
    shares = _deal(list(prompts), jax.process_index(), jax.process_count())
    with tqdm(total=len(todo), desc="likelihoods", unit="answer", disable=None if kept.writes else True) as bar:
        for share in shares:
            asked = [Asked(_features(model, m, silence), q, tuple(prompts[m, q])) for m, q in share]
            scores = answer_log_probs(model.networks, model.params, model.prompt, asked, mesh=model.mesh)
            found = [
                (keys[Query(music, question, answer)], float(log_probs.sum(dtype=np.float64)), len(log_probs))
                for (music, question), of_prompt in zip(share, scores, strict=True)
                for answer, log_probs in zip(prompts[music, question], of_prompt, strict=True)
            ]
            for key, nats, tokens in (one for of_process in all_gather(found) for one in of_process):
                kept.add(key, {"log_likelihood": nats, "tokens": tokens})
                bar.update()
    return {query: (kept[key]["log_likelihood"], kept[key]["tokens"]) for query, key in keys.items()}


def _by_prompt(queries: Sequence[Query]) -> dict[tuple[Music, str], list[str]]:
    """The answers to each question about each music; those of like length one after the other."""
    prompts: defaultdict[tuple[Music, str], list[str]] = defaultdict(list)
    for query in queries:
        prompts[query.music, query.question].append(query.answer)
    return dict(sorted(prompts.items(), key=lambda item: (len(item[1]), len(item[0][1]) + max(map(len, item[1])))))


def _deal(prompts: Sequence[tuple[Music, str]], process: int, processes: int) -> list[Sequence[tuple[Music, str]]]:
    """A process's prompts, a round at a time; each has a share of every round, perhaps an empty one."""
    rounds = range(0, len(prompts), _AT_ONCE * processes)
    return [prompts[start : start + _AT_ONCE * processes][process::processes] for start in rounds]


def _features(model: Model, music: Music, silence: Features | None) -> Features:
    if music.clip is not None:
        return model.features(music.clip)
    if music.silent_like is None or silence is None:
        return model.no_music
    count = model.tokens(music.silent_like)
    return np.take(silence, np.arange(count) % silence.shape[-2], axis=-2)


def _say_cost(model: Model, prompts: Mapping[tuple[Music, str], list[str]], wanted: int) -> None:
    """What is to be done, in tokens and operations: two for each of the language model's parameters and tokens."""
    lengths = {m: 0 if m == Music() else model.tokens(m.clip or m.silent_like or "") for m, _ in prompts}
    asked = [(question, answers, lengths[music]) for (music, question), answers in prompts.items()]
    read, whole = tokens_read(model.prompt, asked)
    todo = sum(len(answers) for answers in prompts.values())
    operations = 2 * read * sum(leaf.size for leaf in jax.tree.leaves(model.params[0]))
    already = f" ({wanted - todo:,} are there already)" if wanted > todo else ""
    print(
        f"{counted(todo, 'likelihood')}{already} of answers to {counted(len(prompts), 'prompt')}: {read:,} tokens to "
        f"read, {whole / read:.1f} times fewer than one by one; {operations:.1e} operations",
        file=sys.stderr,
    )

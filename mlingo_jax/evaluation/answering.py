"""Having a model answer questions, by the engine that `caption` answers with; nothing is answered twice.

Several processes share the questions; each has a model of its own, and the first one keeps what all of them write.
"""

import dataclasses
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
from tqdm import tqdm

from mlingo_jax.evaluation.answers import Answer, fingerprint
from mlingo_jax.evaluation.kept import Kept
from mlingo_jax.evaluation.model import Model
from mlingo_jax.inference.answering import Writer, answers
from mlingo_jax.inference.generate import Options
from mlingo_jax.inference.prompts import about_clip, by_clip
from mlingo_jax.inference.requests import Request
from mlingo_jax.inference.writing import open_writer
from mlingo_jax.processes import all_gather, broadcast

# Answers of a process that are kept at once: what a kill can cost.
_AT_ONCE = 64


class Asked(NamedTuple):
    """A question about a clip, or (None) about no music."""

    clip: str | None
    question: str


def write_answers(
    model: Model, asked: Iterable[Asked], options: Options, seed: int, kept: Kept
) -> dict[Asked, Mapping[str, str]]:
    """The model's answer to each question, as {"answer", "finish_reason"}; what is kept from before is not asked again.

    All processes must call it with the same questions. A draw depends on the seed, the clip's name and the question.

    Raises:
        UserError: a clip's features are not in the model's cache, or answers cannot be kept.
    """
    wanted = list(dict.fromkeys(asked))
    settings = fingerprint(model.identity, dataclasses.asdict(options), seed if options.temperature > 0 else None)
    keys = {one: fingerprint(settings, one) for one in wanted}
    known = broadcast([keys[one] in kept for one in wanted])
    todo = [one for one, is_known in zip(wanted, known, strict=True) if not is_known]
    shares = _deal(todo, jax.process_index(), jax.process_count())
    writer: Writer | None = None
    with tqdm(total=len(todo), desc="answering", unit="answer", disable=None if kept.writes else True) as bar:
        for share in shares:
            requests = [_request(model, one, options, seed) for one in share]
            order = by_clip(requests)
            if requests and writer is None:
                of_all = max(len(share) for share in shares)
                writer = open_writer(
                    model.llm, model.networks, model.params, model.prompt, options, at_most=of_all, mesh=model.mesh
                )
            written = []
            for place, answer in answers(writer, (requests[i] for i in order)) if writer and requests else ():
                one = share[order[place]]
                written.append((*one, answer.text, answer.finish_reason))
            for clip, question, text, reason in (line for lines in all_gather(written) for line in lines):
                line = {"clip": clip, "question": question, "answer": text, "finish_reason": reason}
                kept.add(keys[Asked(clip, question)], line)
                bar.update()
    return {one: kept[key] for one, key in keys.items()}


def answered(examples: Sequence[Answer], found: Mapping[Asked, Mapping[str, str]]) -> list[Answer]:
    """The examples with the answers found to their questions."""
    return [dataclasses.replace(e, answer=found[Asked(e.clip, e.question)]["answer"]) for e in examples]


def _deal(asked: Sequence[Asked], process: int, processes: int) -> list[Sequence[Asked]]:
    """A process's questions, a round at a time, those about one clip together as they come."""
    rounds = range(0, len(asked), _AT_ONCE * processes)
    return [asked[start : start + _AT_ONCE * processes][process::processes] for start in rounds]


def _request(model: Model, one: Asked, options: Options, seed: int) -> Request:
    features = model.no_music if one.clip is None else model.features(one.clip)
    salt = zlib.crc32(f"{one.clip} {one.question}".encode())
    return about_clip(model.prompt, one.question, features, options, clip=one.clip, salt=salt, seed=seed)

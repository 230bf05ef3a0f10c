"""A few held-out questions, answered while a run goes on, beside their true answers.

Axes: B rows, N samples, K music features, D encoder width.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int32

from mlingo_jax.data.examples import Example, Examples
from mlingo_jax.data.prompt import Prompt
from mlingo_jax.data.rows import Batch, Music
from mlingo_jax.inference.answering import answers
from mlingo_jax.inference.generate import Options
from mlingo_jax.inference.prompts import about_clip
from mlingo_jax.inference.writing import open_writer
from mlingo_jax.models.musilingo import Networks, bind
from mlingo_jax.training.optim import Params
from mlingo_jax.training.sharding import batch_shards
from mlingo_jax.weights.load import Tower


class HeldOutAnswers:
    """Some of the held-out questions, and the model that answers them as it is by then."""

    def __init__(
        self,
        examples: Examples | tuple[()],
        prompt: Prompt,
        music: Music,
        llm: Tower,
        networks: Networks,
        frozen: Mapping[str, Params],
        mesh: Mesh,
    ):
        self._examples = [examples[i] for i in range(len(examples))]
        self._prompt, self._music, self._llm, self._mesh = prompt, music, llm, mesh
        self._networks, self._frozen = networks, frozen

    def __call__(self, trained: Mapping[str, Params]) -> list[dict[str, str]]:
        """{"clip", "question", "reference", "answer"} of each; a clip that cannot be read is left out."""
        found = [(e, f) for e in self._examples if (f := self._features(e, trained)) is not None]
        if not found:
            return []
        options = Options(self._prompt.settings.max_answer_tokens)
        requests = [about_clip(self._prompt, e.question, f, options, clip=e.clip, salt=0) for e, f in found]
        # Music comes as features here.
        networks = dataclasses.replace(self._networks, encoder=None)
        params = self._frozen, trained
        # The mesh splits rows evenly.
        rows = batch_shards(self._mesh) * -(-len(requests) // batch_shards(self._mesh))
        writer = open_writer(self._llm, networks, params, self._prompt, options, rows=rows, mesh=self._mesh)
        texts = {place: answer.text for place, answer in answers(writer, requests)}
        return [
            {"clip": e.clip, "question": e.question, "reference": e.answer, "answer": texts[place]}
            for place, (e, _) in enumerate(found)
        ]

    def _features(self, example: Example, trained: Mapping[str, Params]) -> Float[np.ndarray, "..."] | None:
        """The music features of an example's clip; None if it cannot be read."""
        tokens, fields = self._music.load(example, None)
        if not tokens:
            return None
        if "music" in fields:
            return fields["music"][..., :tokens, :]
        return _encode(self._networks, self._frozen, trained, fields, self._mesh)[..., :tokens, :]


def shown(answered: Sequence[Mapping[str, str]]) -> list[str]:
    """What the terminal shows of them, a line each."""
    texts = [[" ".join(one[name].split()) for name in ("question", "reference", "answer")] for one in answered]
    return [f"  {question} (true: {reference}) {answer or '(nothing)'}" for question, reference, answer in texts]


def _encode(
    networks: Networks, frozen: Mapping[str, Params], trained: Mapping[str, Params], fields: Batch, mesh: Mesh
) -> Float[np.ndarray, "..."]:
    """The features of one waveform, on every process; the batch's other rows are the same."""
    rows = batch_shards(mesh)
    waveform = np.repeat(fields["waveform"][None], rows, axis=0)
    length = np.repeat(fields["waveform_length"][None], rows)
    placed = jax.device_put((waveform, length), NamedSharding(mesh, P()))
    return np.asarray(_features(networks, mesh, frozen, trained, *placed)[0])


@partial(jax.jit, static_argnums=(0, 1))
def _features(
    networks: Networks,
    mesh: Mesh,
    frozen: Mapping[str, Any],
    trained: Mapping[str, Any],
    waveform: Float[Array, "B N"],
    length: Int32[Array, " B"],
) -> Float[Array, "B ..."]:
    _, adapter, encoder = bind(networks, frozen, trained)
    assert encoder is not None
    frames, per_layer = networks.frames_per_token, adapter.config.per_layer
    found = encoder.features(waveform, length, frames_per_token=frames, per_layer=per_layer)
    return jax.lax.with_sharding_constraint(found, NamedSharding(mesh, P()))

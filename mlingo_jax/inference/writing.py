"""What writes answers for a model: the engine, or beam search, with as many rows as the devices hold."""

from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from mlingo_jax.data.prompt import Prompt
from mlingo_jax.data.tokenizer import read_eos
from mlingo_jax.inference.beams import Beams
from mlingo_jax.inference.engine import Engine
from mlingo_jax.inference.generate import Options
from mlingo_jax.inference.layout import layout, most_rows
from mlingo_jax.inference.stopping import StopRule, stop_rule
from mlingo_jax.models.musilingo import Networks
from mlingo_jax.weights.load import Tower


def open_writer(
    llm: Tower,
    networks: Networks,
    params: Any,
    prompt: Prompt,
    options: Options,
    *,
    rows: int | None = None,
    at_most: int | None = None,
    mesh: Mesh | None = None,
) -> Engine | Beams:
    """What answers requests: an engine, or for options with several beams, a search.

    Args:
        llm: the language model. networks, params: it and the adapter; their parameters, frozen and trained.
        prompt: how questions are put.
        options: those of the requests that will come; an engine takes others too.
        rows: answers written at once; by default what the devices' memory holds.
        at_most: as many requests as will come at all, if that is known.
        mesh: the parameters' own, if they are on one.
    """
    opening, answer = prompt.opening, options.max_new_tokens
    one = layout(1, len(opening), answer=answer)
    if rows is None:
        item = jnp.dtype(llm.identity["dtype"]).itemsize
        rows = most_rows(llm.config, one, item, mesh)
        rows = rows if at_most is None else min(rows, 1 << (at_most - 1).bit_length())
    rule = stop_rule_of(llm, prompt)
    if options.num_beams > 1:
        return Beams(networks, params, rows, opening, rule, mesh)
    return Engine(networks, params, layout(rows, len(opening), answer=answer), opening, rule, mesh)


def stop_rule_of(llm: Tower, prompt: Prompt) -> StopRule:
    """What ends an answer of this language model."""
    eos = read_eos(llm.folder, prompt.tokenizer, llm.config.vocab_size)
    return stop_rule(prompt.tokenizer, prompt.settings.stop, eos, llm.config.vocab_size)

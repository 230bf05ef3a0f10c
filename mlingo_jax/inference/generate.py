"""How answers are to be written, and what they are."""

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlingo_jax.errors import UserError
from mlingo_jax.inference.sampling import Sampling
from mlingo_jax.inference.stopping import FinishReason


@dataclasses.dataclass(frozen=True)
class Options:
    """How answers are generated.

    At temperature 0 the most probable token is taken; above it tokens are drawn, after `top_k` and `top_p` if given.
    With several beams the hypothesis of the highest mean log-probability per token is searched for, without drawing.
    Warns of a `top_k` or `top_p` at temperature 0, where it is not used.

    Raises:
        UserError: a number is out of its range, or beams and a temperature are given together.
    """

    max_new_tokens: int = 300
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    num_beams: int = 1

    def __post_init__(self):
        _require(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "at least 1")
        finite = math.isfinite(self.temperature)
        _require(finite and self.temperature >= 0, "temperature", self.temperature, "at least 0 (0: the most probable)")
        _require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "at least 1; leave it out for no limit")
        in_range = self.top_p is None or 0 < self.top_p <= 1
        _require(in_range, "top_p", self.top_p, "above 0 and at most 1; leave it out for no limit")
        _require(self.num_beams >= 1, "num_beams", self.num_beams, "at least 1")
        if self.num_beams > 1 and self.temperature > 0:
            raise UserError(
                f"num_beams is {self.num_beams} and temperature {self.temperature}: beam search does not draw; "
                "give num_beams 1 or temperature 0"
            )
        limits = {"top_k": self.top_k is not None, "top_p": self.top_p not in (None, 1)}
        if self.temperature == 0 and any(limits.values()):
            given = " and ".join(name for name, is_given in limits.items() if is_given)
            warnings.warn(
                f"{given} will not be used: at temperature 0 nothing is drawn; give a temperature above 0", stacklevel=3
            )


def sampling_of(options: Sequence[Options]) -> Sampling:
    """How rows that have an `Options` each are drawn."""
    return Sampling(
        temperature=np.array([o.temperature for o in options], np.float32),
        top_k=np.array([o.top_k or 0 for o in options], np.int32),
        top_p=np.array([o.top_p or 1 for o in options], np.float32),
    )


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer's text, without the stop text and white space around it, and what ended it.

    `finish_reason` is "stop" for a stop text, "eos" for an end-of-sequence token, "length" where the answer was cut at
    the greatest number of tokens. `tokens` are the ids as generated, with those of the ending, and `log_probs` their
    log-probabilities as the model gives them, at temperature 1 (of beams none).
    """

    text: str
    finish_reason: FinishReason
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...] = dataclasses.field(default=(), compare=False, repr=False)


def _require(holds: bool, name: str, value: Any, expected: str) -> None:
    if not holds:
        raise UserError(f"{name} is {value}; expected {expected}")

"""How a metric's summed statistics become its value."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from jaxtyping import Float

from mlingo_jax.evaluation.bleu import corpus_bleu
from mlingo_jax.evaluation.cmi_sequences import macro_f1, micro_f1
from mlingo_jax.evaluation.cmi_tasks import r2
from mlingo_jax.evaluation.statistics import BLEU_ORDERS, ratio

Value = Callable[[Float[np.ndarray, "*shape S"]], Float[np.ndarray, "*shape"]]

_VALUES: Mapping[str, Value] = {
    **{name: partial(corpus_bleu, order=order) for name, order in BLEU_ORDERS.items()},
    "cmi.r2": r2,
    "cmi.micro_f1": micro_f1,
    "cmi.macro_f1": macro_f1,
}


def is_likelihood(metric: str) -> bool:
    """Whether a metric is in nats a token, of which fewer are better; all others are fractions."""
    return metric.startswith("nll.")


def value_of(metric: str) -> Value:
    """The metric of summed statistics: the first sum over the second, but for the few that are no mean."""
    return _VALUES.get(metric, ratio)

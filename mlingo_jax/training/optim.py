"""AdamW on the adapter, and the original's learning-rate curve.

The moments are a plain dict {"count", "mu", "nu"} in float32: a checkpoint does not depend on a library's types.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from configs.base import OptimConfig

Params = dict[str, Any]


def learning_rate(step: Int[Array, ""] | int, settings: OptimConfig, steps: int) -> Float[Array, ""]:
    """The rate of micro-step `step` (from 0) of a run of `steps`, as MusiLingo's runner sets it.

    While step < warmup_steps it climbs from warmup_lr towards lr, by the step's place within its epoch. After that it
    is a half cosine from lr to min_lr over the whole run. The cosine does not leave the warm-up out: with 6 epochs of
    5,000 steps and a warm-up of 5,000 it starts at 2.87e-5, not at 3e-5 (all the original's configs have this drop).
    With epoch_steps 0 the run is one epoch.

    The rate is that of the micro-step: with gradient accumulation, an update uses the rate of the step it falls on.
    """
    step = jnp.asarray(step)
    within = step % settings.epoch_steps if settings.epoch_steps else step
    climb = settings.warmup_lr + (settings.lr - settings.warmup_lr) * within / max(settings.warmup_steps, 1)
    cosine = settings.min_lr + (settings.lr - settings.min_lr) * 0.5 * (1 + jnp.cos(jnp.pi * step / steps))
    warm = jnp.minimum(climb, settings.lr)
    return jnp.where(step < settings.warmup_steps, warm, cosine).astype(jnp.float32)


def adamw(rate: Float[Array, ""] | float, settings: OptimConfig | None = None) -> optax.GradientTransformation:
    """AdamW at one learning rate, as in torch.optim.AdamW: weight decay is decoupled and scaled by the rate.

    Its state is the moments, {"count", "mu", "nu"}; `update` gives what is to be added to the parameters.
    """
    settings = settings or OptimConfig()
    beta1, beta2 = settings.beta1, settings.beta2

    def init(params: Any) -> Any:
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        return {"count": jnp.zeros((), jnp.int32), "mu": zeros, "nu": jax.tree.map(jnp.copy, zeros)}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        count = state["count"] + 1
        mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state["mu"], updates)
        nu = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state["nu"], updates)
        scale1, scale2 = _bias_correction(beta1, count), _bias_correction(beta2, count)

        def change(m: Array, v: Array, p: Array, decays: bool) -> Array:
            direction = m / scale1 / (jnp.sqrt(v / scale2) + settings.eps)
            return -rate * (direction + settings.weight_decay * p if decays else direction)

        return jax.tree.map(change, mu, nu, params, decay_mask(params)), {"count": count, "mu": mu, "nu": nu}

    return optax.GradientTransformation(init, update)


def decay_mask(params: Params) -> Params:
    """True for the parameters that decay: matrices; never a bias, whatever its shape (the original's rule)."""
    return jax.tree_util.tree_map_with_path(lambda path, p: p.ndim >= 2 and path[-1].key != "bias", params)


def clip(gradient: Params, norm: Float[Array, ""], limit: float) -> Params:
    """The gradient scaled down to norm `limit` if its norm is larger; limit 0: as it is."""
    if not limit:
        return gradient
    scale = jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-12))
    return jax.tree.map(lambda g: g * scale, gradient)


def _bias_correction(beta: float, count: Int[Array, ""]) -> Float[Array, ""] | float:
    # 1 - beta**count would lose four digits to cancellation: in float32, 1 - 0.999 is off by 5e-5 of itself.
    return -jnp.expm1(count * math.log(beta)) if beta else 1.0

"""AdamW on the adapter, and the reference implementation's learning-rate curve."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from mlingo_jax.settings import OptimConfig

Params = dict[str, Any]


def learning_rate(step: Int[Array, ""] | int, settings: OptimConfig, steps: int) -> Float[Array, ""]:
    """The rate of micro-step `step` (from 0) of a run of `steps`, as MusiLingo's runner sets it.

    While step < warmup_steps it climbs from warmup_lr towards lr, by the step's place within its epoch. After that it
    is a half cosine from lr to min_lr over the whole run. The cosine does not leave the warm-up out: with 6 epochs of
    5,000 steps and a warm-up of 5,000 it starts at 2.87e-5, not at 3e-5 (all the reference implementation's configs
    have this drop). With epoch_steps 0 the run is one epoch.

    With gradient accumulation, an update uses the rate of the micro-step it falls on.
    """
    step = jnp.asarray(step)
    within = step % settings.epoch_steps if settings.epoch_steps else step
    climb = settings.warmup_lr + (settings.lr - settings.warmup_lr) * within / max(settings.warmup_steps, 1)
    cosine = settings.min_lr + (settings.lr - settings.min_lr) * 0.5 * (1 + jnp.cos(jnp.pi * step / steps))
    warm = jnp.minimum(climb, settings.lr)
    return jnp.where(step < settings.warmup_steps, warm, cosine).astype(jnp.float32)


def adamw(settings: OptimConfig) -> optax.GradientTransformation:
    """AdamW's changes at a learning rate of 1, its gradient clipped first if the settings say so.

    The rate is the step's to multiply with: optax would count updates, and a run may leave some out.
    """
    clip = optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity()
    adamw = optax.adamw(
        1.0, settings.beta1, settings.beta2, settings.eps, weight_decay=settings.weight_decay, mask=decay_mask
    )
    return optax.chain(clip, adamw)


def named_opt_state(state: optax.OptState) -> dict[str, Array]:
    """The optimiser's arrays by their paths: a checkpoint does not depend on a library's types."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def with_opt_state(state: optax.OptState, named: Mapping[str, Any]) -> optax.OptState:
    """A state of this structure with the arrays of `named_opt_state`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: named[_name(path)], state)


def decay_mask(params: Params) -> Params:
    """True for the parameters that decay: matrices.

    Never a bias, whatever its shape: the reference implementation's rule.
    """
    return jax.tree_util.tree_map_with_path(lambda path, p: p.ndim >= 2 and path[-1].key != "bias", params)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")

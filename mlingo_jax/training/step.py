"""The train step: a pure function from a state and a micro-batch to the next state and what is worth knowing of it.

Only what is trained is differentiated, a tree of named parts: the adapter. The towers are an argument: a closure would
bake gigabytes into the program, and donating them would lose them.

Axes: B rows, L positions, M music tokens, N samples, D encoder width.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from mlingo_jax.models.musilingo import Networks, answer_loss, bind
from mlingo_jax.settings import OptimConfig
from mlingo_jax.training.optim import Params, adamw, learning_rate

Batch = Mapping[str, Array]
Metrics = dict[str, Array]

METRICS = ("loss", "tokens", "learning_rate", "gradient_norm", "update_norm", "parameter_norm")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes, all of it donated to the next one. Leaves are arrays, or their shapes under `eval_shape`.

    step: micro-steps done, int32 [].
    trained: the trained parameters by the names of their parts, float32.
    opt_state: AdamW's, as optax keeps them.
    gradient: the loss sum's gradient, summed over the micro-steps since the last update.
    token_count: the number of answer tokens in it, float32 [].
    """

    step: Any
    trained: Params
    opt_state: optax.OptState
    gradient: Params
    token_count: Any


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When and how what is trained is updated: by `optim`, every `accumulate`-th of `steps` micro-steps."""

    optim: OptimConfig
    steps: int
    accumulate: int


def init_state(trained: Params, optim: OptimConfig) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trained=trained,
        opt_state=adamw(optim).init(trained),
        gradient=jax.tree.map(jnp.zeros_like, trained),
        token_count=jnp.zeros((), jnp.float32),
    )


def loss_sum(
    trained: Params, frozen: Mapping[str, Params], batch: Batch, networks: Networks
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The loss summed over the batch's answer tokens, and their number; encodes the audio if the batch brings any."""
    llm, adapter, encoder = bind(networks, frozen, trained)
    if encoder is None:
        music = batch["music"]
    else:
        music = encoder.features(
            batch["waveform"],
            batch["waveform_length"],
            frames_per_token=networks.frames_per_token,
            per_layer=adapter.config.per_layer,
        )
    return answer_loss(llm, adapter, batch, jax.lax.stop_gradient(music), remat=networks.remat)


def train_step(
    state: TrainState, frozen: Mapping[str, Params], batch: Batch, *, networks: Networks, schedule: Schedule
) -> tuple[TrainState, Metrics]:
    """One micro-step; every `schedule.accumulate`-th one updates what is trained.

    An update's gradient is that of (loss sum) / (number of answer tokens) over all its micro-batches, so it does not
    depend on how the examples fall into them. A micro-step whose loss or gradient is not finite changes nothing but
    the number of steps: its update is that of the others', and without any answer tokens there is no update.

    Metrics, float32 scalars: loss (of this micro-batch), tokens (its answer tokens), learning_rate, gradient_norm (of
    the mean gradient gathered since the last update, before clipping), update_norm (0 between updates), parameter_norm.
    """
    (total, tokens), gradient = jax.value_and_grad(loss_sum, has_aux=True)(state.trained, frozen, batch, networks)
    gathered = dataclasses.replace(
        state, gradient=jax.tree.map(jnp.add, state.gradient, gradient), token_count=state.token_count + tokens
    )
    loss, norm = total / _at_least_one(tokens), optax.tree.norm(_mean_gradient(gathered))
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), gathered, state)
    kept = dataclasses.replace(kept, step=state.step + 1)

    rate = learning_rate(state.step, schedule.optim, schedule.steps)

    def update(state: TrainState) -> tuple[TrainState, Array]:
        change, opt_state = adamw(schedule.optim).update(_mean_gradient(state), state.opt_state, state.trained)
        change = jax.tree.map(lambda c: rate * c, change)
        updated = TrainState(
            step=state.step,
            trained=jax.tree.map(jnp.add, state.trained, change),
            opt_state=opt_state,
            gradient=jax.tree.map(jnp.zeros_like, state.gradient),
            token_count=jnp.zeros_like(state.token_count),
        )
        return updated, optax.tree.norm(change)

    def keep(state: TrainState) -> tuple[TrainState, Array]:
        return state, jnp.zeros_like(norm)

    due = (kept.step % schedule.accumulate == 0) & (kept.token_count > 0)
    new, update_norm = jax.lax.cond(due, update, keep, kept)
    metrics = {
        "loss": loss,
        "tokens": tokens,
        "learning_rate": rate,
        "gradient_norm": norm,
        "update_norm": update_norm,
        "parameter_norm": optax.tree.norm(new.trained),
    }
    return new, metrics


def compile_train_step(
    networks: Networks, schedule: Schedule, mesh: Mesh
) -> Callable[[TrainState, Mapping[str, Params], Batch], tuple[TrainState, Metrics]]:
    """`train_step` jitted for a mesh: the state donated and on every device whole, like the metrics."""

    def step(state: TrainState, frozen: Mapping[str, Params], batch: Batch) -> tuple[TrainState, Metrics]:
        return train_step(state, frozen, batch, networks=networks, schedule=schedule)

    return jax.jit(step, donate_argnums=0, out_shardings=NamedSharding(mesh, P()))


def compile_eval_step(
    networks: Networks, mesh: Mesh
) -> Callable[[Params, Mapping[str, Params], Batch], tuple[Array, Array]]:
    """`loss_sum` jitted for a mesh: (trained, frozen, batch) -> (loss sum, number of answer tokens)."""

    def step(trained: Params, frozen: Mapping[str, Params], batch: Batch) -> tuple[Array, Array]:
        return loss_sum(trained, frozen, batch, networks)

    return jax.jit(step, out_shardings=NamedSharding(mesh, P()))


def _mean_gradient(state: TrainState) -> Params:
    """That of the loss per answer token, over the micro-steps since the last update."""
    return jax.tree.map(lambda g: g / _at_least_one(state.token_count), state.gradient)


def _at_least_one(token_count: Float[Array, ""]) -> Float[Array, ""]:
    # A micro-batch without an answer token has loss 0, not 0 / 0.
    return jnp.where(token_count > 0, token_count, 1)

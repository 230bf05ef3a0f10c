"""What making the two small towers has in common: fitting, and saving as a Hugging Face folder."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float
from tqdm import tqdm

from mlingo_jax.weights.checkpoints import write_checkpoint
from mlingo_jax.weights.folders import TowerKindName
from mlingo_jax.weights.keymap import entries, parameters
from mlingo_jax.weights.tensors import Tensor
from mlingo_jax.weights.towers import KINDS

Params = dict[str, Any]
Batch = Mapping[str, Array]


def fit(
    params: Params,
    loss: Callable[[Params, Batch], Float[Array, ""]],
    batches: Iterator[dict[str, np.ndarray]],
    *,
    steps: int,
    rate: float,
    title: str,
) -> Params:
    """Parameters after so many steps of AdamW, its rate rising to `rate` and falling to zero; shows a bar."""
    schedule = optax.cosine_onecycle_schedule(max(steps, 1), rate, pct_start=0.1)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))

    @jax.jit
    def step(params: Params, state: optax.OptState, batch: Batch) -> tuple[Any, optax.OptState, Array]:
        value, gradient = jax.value_and_grad(loss)(params, batch)
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimiser.init(params)
    with tqdm(total=steps, desc=title, unit="step", disable=None) as bar:
        for _ in range(steps):
            params, state, value = step(params, state, next(batches))
            bar.set_postfix_str(f"loss {value:.3f}", refresh=False)
            bar.update()
    return params


def write_tower(folder: Path, name: TowerKindName, values: dict[str, Any], model: nnx.Module, params: Params) -> None:
    """Writes a Hugging Face folder, config.json and safetensors, by the table by which conversion reads them."""
    table = entries(KINDS[name].rules, parameters(model))
    tensors = {}
    for entry in table:
        tree: Any = params
        for key in entry.parameter.path:
            tree = tree[key]
        value = np.asarray(tree)
        array = entry.to_torch(value if entry.layer is None else value[entry.layer])
        tensors[entry.torch] = Tensor(array.shape, array.dtype, lambda array=array: array)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    write_checkpoint(folder, tensors, shard_bytes=2**30, title=name)

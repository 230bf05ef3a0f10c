"""The adapter at rest: MusiLingo's names and layouts of its two tensors and ours, and the files it may come in."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from mlingo_jax.differences import current_names
from mlingo_jax.errors import UserError
from mlingo_jax.files import read_json
from mlingo_jax.models.adapter import Adapter, AdapterConfig
from mlingo_jax.runs.folder import RUN, read_run
from mlingo_jax.weights import released
from mlingo_jax.weights.checkpoints import read_checkpoint, read_weights
from mlingo_jax.weights.folders import RECORD, Found, identify
from mlingo_jax.weights.keymap import Entry, Rule, check, entries, parameters, to_flax
from mlingo_jax.weights.tensors import Tensor, Tensors

RULES = (
    Rule("llama_proj.weight", "projection.kernel", "E D -> D E"),
    Rule("llama_proj.bias", "projection.bias", "E -> E"),
)


@dataclasses.dataclass(frozen=True)
class OpenAdapter:
    """An adapter's architecture and its tensors, by Flax's names and none of them read yet."""

    config: AdapterConfig
    tensors: dict[str, Tensor]


def open_adapter(source: Path) -> OpenAdapter:
    """The adapter of a `.pth` or `.safetensors`, or of the folder of an adapter, a training run or a whole MusiLingo.

    Raises:
        UserError: there is no adapter, its file is broken, or tensors are missing, left over or of the wrong shape.
    """
    found = identify(source)
    if found == Found("musilingo", "jax"):
        return open_adapter(source / released.PARTS["adapter"].folder)
    if found.kind == "musilingo":
        return _open(released.read_adapter(source), None, source)
    if found.kind != "adapter":
        raise UserError(f"{source}: holds a {found.kind} model, expected an adapter")
    if found.layout == "run":
        return _open(_run_tensors(source), _described(read_run(source), RUN, source), source)
    if source.is_file():
        return _open(read_weights(source), None, source)
    record = read_json(source / RECORD) if found.layout == "jax" else {}
    return _open(read_checkpoint(source), _described(record, RECORD, source), source)


def adapter_entries(config: AdapterConfig) -> list[Entry]:
    """Both sides of an adapter's tensors; learned layer weights have none in PyTorch.

    The reference implementation takes the plain mean over the encoder's hidden states.
    """
    plain = dataclasses.replace(config, states=None)
    return entries(RULES, parameters(nnx.eval_shape(lambda: Adapter(plain, rngs=nnx.Rngs(0)))))


def _described(values: dict, name: str, source: Path) -> AdapterConfig | None:
    """The adapter that a folder's file describes; None if it is from before adapters were described."""
    described = values.get("adapter_config")
    return None if described is None else AdapterConfig.from_json(described, f"{source}: {name}")


def _run_tensors(workdir: Path) -> dict[str, Tensor]:
    from mlingo_jax.runs.checkpoints import load_run_adapter  # Orbax is slow to import and seldom needed here.

    params, _ = load_run_adapter(workdir)
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    return {name: Tensor(leaf.shape, leaf.dtype, functools.partial(np.asarray, leaf)) for name, leaf in leaves.items()}


def _open(tensors: Tensors, config: AdapterConfig | None, source: Path) -> OpenAdapter:
    """Tensors by either side's names, as they should be by the config, or without one by the projection's own sizes."""
    tensors = current_names(tensors)
    config = config or _from_sizes(tensors, source)
    if "llama_proj.weight" in tensors:
        return OpenAdapter(config, to_flax(adapter_entries(config), tensors, str(source)))
    model = nnx.eval_shape(lambda: Adapter(config, rngs=nnx.Rngs(0)))
    check({parameter.name: parameter.shape for parameter in parameters(model)}, tensors, str(source))
    return OpenAdapter(config, dict(tensors))


def _from_sizes(tensors: Tensors, source: Path) -> AdapterConfig:
    """The architecture of an adapter that comes without a description: MusiLingo's own, and those of earlier runs."""
    for name in ("projection.kernel", "llama_proj.weight"):
        if name in tensors and len(tensors[name].shape) == 2:
            break
    else:
        raise UserError(
            f"{source}: no adapter: expected a matrix llama_proj.weight among {', '.join(tensors) or 'nothing'}"
        )
    if name == "llama_proj.weight":
        tokens, features = tensors[name].shape
        return AdapterConfig(features, tokens)
    states = tensors.get("layer_weights")
    features, tokens = tensors[name].shape
    return AdapterConfig(features, tokens, states.shape[0] if states is not None and len(states.shape) == 1 else None)

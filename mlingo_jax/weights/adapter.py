"""The adapter at rest: MusiLingo's names and layouts of its two tensors and ours, and the files it may come in."""

import functools
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from mlingo_jax.differences import current_names
from mlingo_jax.errors import UserError
from mlingo_jax.models.adapter import Adapter
from mlingo_jax.weights import released
from mlingo_jax.weights.checkpoints import read_checkpoint, read_weights
from mlingo_jax.weights.folders import Found, identify
from mlingo_jax.weights.keymap import Entry, Rule, check, entries, parameters, to_flax
from mlingo_jax.weights.tensors import Tensor, Tensors

RULES = (
    Rule("llama_proj.weight", "projection.kernel", "E D -> D E"),
    Rule("llama_proj.bias", "projection.bias", "E -> E"),
)
# Has no rule: the reference implementation takes the plain mean over the encoder's hidden states.
LAYER_WEIGHTS = "layer_weights"


def open_adapter(source: Path) -> dict[str, Tensor]:
    """An adapter's tensors by Flax's names: of a `.pth` or `.safetensors`, or of the folder of an adapter, a
    training run or a whole MusiLingo.

    Raises:
        UserError: there is no adapter, its file is broken, or tensors are missing, left over or of the wrong shape.
    """
    found = identify(source)
    if found == Found("musilingo", "jax"):
        return open_adapter(source / released.PARTS["adapter"].folder)
    if found.kind == "musilingo":
        return _as_flax(released.read_adapter(source), source)
    if found.kind != "adapter":
        raise UserError(f"{source}: holds a {found.kind} model, expected an adapter")
    if found.layout == "run":
        return _run_tensors(source)
    return _as_flax(read_weights(source) if source.is_file() else read_checkpoint(source), source)


def _run_tensors(workdir: Path) -> dict[str, Tensor]:
    from mlingo_jax.runs.checkpoints import load_run_adapter  # Orbax is slow to import and seldom needed here.

    params, _ = load_run_adapter(workdir)
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    return {name: Tensor(leaf.shape, leaf.dtype, functools.partial(np.asarray, leaf)) for name, leaf in leaves.items()}


def adapter_entries(tensors: Tensors) -> list[Entry]:
    """Both sides of an adapter's tensors, which are given by Flax's names; learned state weights have no other side."""
    features, tokens = tensors["projection.kernel"].shape
    return _entries(features, tokens)


def _entries(features: int, tokens: int) -> list[Entry]:
    model = nnx.eval_shape(lambda: Adapter(features, tokens, rngs=nnx.Rngs(0)))
    return entries(RULES, parameters(model))


def _as_flax(tensors: Tensors, source: Path) -> dict[str, Tensor]:
    tensors = current_names(tensors)
    for name in ("projection.kernel", "llama_proj.weight"):
        if name in tensors and len(tensors[name].shape) == 2:
            break
    else:
        raise UserError(
            f"{source}: no adapter: expected a matrix llama_proj.weight among {', '.join(tensors) or 'nothing'}"
        )
    if name == "llama_proj.weight":
        tokens, features = tensors[name].shape
        return to_flax(_entries(features, tokens), tensors, str(source))
    expected = {entry.flax: entry.flax_shape for entry in adapter_entries(tensors)}
    if (logits := tensors.get(LAYER_WEIGHTS)) is not None and len(logits.shape) == 1:
        expected[LAYER_WEIGHTS] = logits.shape
    check(expected, tensors, str(source))
    return dict(tensors)

"""Weights from any layout straight onto the devices."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike
from tqdm import tqdm

from mlingo_jax.errors import UserError
from mlingo_jax.models.adapter import Adapter, AdapterConfig
from mlingo_jax.models.llama import stacks_layers
from mlingo_jax.models.partition import check_divides, partition
from mlingo_jax.models.quantization import INTEGERS, Quantization, quantize
from mlingo_jax.weights.adapter import open_adapter
from mlingo_jax.weights.checksum import weights_checksums
from mlingo_jax.weights.folders import find
from mlingo_jax.weights.keymap import Parameter, parameters
from mlingo_jax.weights.tensors import Tensor
from mlingo_jax.weights.towers import OpenTower, Role, open_tower
from mlingo_jax.wording import counted

ROUNDED = jnp.bfloat16
"""The dtype in which towers of different dtypes are compared."""


@dataclasses.dataclass(frozen=True)
class Tower:
    """A frozen tower on its devices.

    Attributes:
        role: what it is in a MusiLingo.
        folder: where its tokenizer or preprocessor files are.
        config: its architecture.
        graphdef: the static half of the network; `nnx.merge(graphdef, nnx.State(params))` is the network.
        params: nested dict of arrays.
        identity: name, config (SHA-256), weights (checksum, see `mlingo_jax.weights.checksum`), dtype, and of a
            language model quantization, for checkpoints; of float32, rounded: the checksum that it would have in
            bfloat16.
    """

    role: Role
    folder: Path
    config: Any
    graphdef: nnx.GraphDef
    params: dict[str, Any]
    identity: dict[str, str]


@dataclasses.dataclass(frozen=True)
class LoadedAdapter:
    """An adapter that fits its towers: its architecture, the static half of the network, and its parameters."""

    config: AdapterConfig
    graphdef: nnx.GraphDef[Adapter]
    params: dict[str, Any]


def load_tower(
    source: str | Path,
    *,
    role: Role,
    dtype: DTypeLike,
    quantization: Quantization = "none",
    mesh: Mesh | None = None,
) -> Tower:
    """Loads an encoder or a language model, one parameter at a time in the host's memory.

    Args:
        source: a Hugging Face folder, one that `conversion.to_jax` wrote, a MusiLingo folder, or a hub id.
        role: which of the two; of which kind it is, its config.json says.
        dtype: what the parameters are kept in.
        quantization: of a language model, what its projections are kept in instead; made as they are read.
        mesh: where they go (see `models.partition`); None for the default device.

    Raises:
        UserError: see `open_with_files`; a size of the tower does not divide over the mesh; or weights are not finite.
    """
    tower, files = open_with_files(source, role)
    dtype, integer = jnp.dtype(dtype), INTEGERS.get(quantization)
    make = partial(tower.kind.model, tower.config, dtype=dtype)
    if role == "llm":
        make = partial(make, quantization=quantization, stacked=stacks_layers(mesh))
    # Not the opened tower's network, which is a float32 one: an encoder computes in the dtype that it was made with.
    model = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    if mesh is not None:
        check_divides(model, str(source), mesh)
    params = _place(tower, model, dtype, integer, mesh)
    _check_finite(tower, params, source)
    dtypes = (None,) if dtype == ROUNDED or integer else (None, ROUNDED)
    checksum, *rounded = weights_checksums(params, dtypes)
    identity = {
        "name": files.resolve().name if Path(source).expanduser().exists() else str(source),
        "config": tower.config_hash(),
        "weights": checksum,
        "dtype": dtype.name,
        **({"quantization": quantization} if role == "llm" else {}),
        **({"rounded": rounded[0]} if rounded else {}),
    }
    return Tower(role, files, tower.config, nnx.graphdef(model), params, identity)


def open_with_files(source: str | Path, role: Role) -> tuple[OpenTower, Path]:
    """A tower whose weights have not been read, and the folder of its config and tokenizer or preprocessor.

    Raises:
        UserError: it has no such files (a released MusiLingo), and what `mlingo_jax.weights.towers.open_tower` raises.
    """
    tower = open_tower(find(source), role)
    if tower.files is None:
        raise UserError(
            f"{source}: has no config and tokenizer of its towers; run python -m conversion.to_jax on it first"
        )
    return tower, tower.files


def load_adapter(source: str | Path) -> tuple[AdapterConfig, dict[str, Any]]:
    """An adapter's architecture, and its parameters, float32 on the host.

    The parameters are {"projection": {"kernel" [D, E], "bias" [E]}, "layer_weights" [S]}, the last only where it was
    trained along. `source` is a MusiLingo `.pth`, a `.safetensors`, a folder that `conversion.to_jax` wrote, a training
    run's folder, or a released MusiLingo folder.

    Raises:
        UserError: see `mlingo_jax.weights.adapter.open_adapter`.
    """
    opened, params = open_adapter(find(source)), {}
    for name, tensor in opened.tensors.items():
        _insert(params, tuple(name.split(".")), tensor.read().astype(np.float32))
    return opened.config, params


def fit_adapter(
    params: dict[str, Any] | None, config: AdapterConfig, *, seed: int = 0, source: str | Path = ""
) -> LoadedAdapter:
    """An adapter of this architecture.

    Its parameters are those given (`load_adapter`'s, read from `source`), or without any drawn from `seed`.

    Raises:
        UserError: the shapes given are not those of this adapter, or a number is not finite.
    """
    graph, state = nnx.split(Adapter(config, rngs=nnx.Rngs(seed)), nnx.Param)
    drawn = nnx.to_pure_dict(state)
    if params is None:
        return LoadedAdapter(config, graph, drawn)
    expected, found = _shapes(drawn), _shapes(params)
    if expected != found:
        raise UserError(
            f"{source}: the adapter does not fit: expected {expected} for an encoder of width {config.features} "
            f"and a language model of width {config.tokens}, found {found}; name the towers it was trained with"
        )
    given: dict[str, Any] = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    if not all(bool(jnp.isfinite(p).all()) for p in jax.tree.leaves(given)):
        raise UserError(f"{source}: the adapter holds numbers that are not finite; give another checkpoint")
    return LoadedAdapter(config, graph, given)


def _place(
    tower: OpenTower, model: nnx.Module, dtype: np.dtype, integer: DTypeLike | None, mesh: Mesh | None
) -> dict[str, Any]:
    """The parameters of `model`: the opened tower's network, or one not stacked, or with `integer` kernels."""
    params: dict[str, Any] = {}
    leaves = {parameter.name: parameter for parameter in parameters(model)}
    slots = {name: found for name in leaves if (found := _slots(tower, name))}
    with tqdm(total=len(slots), desc=f"load {tower.kind.name}", unit="weights", leave=False, disable=None) as progress:
        for name, tensors in slots.items():
            # What no file has are scales, each beside its kernel.
            scale = leaves.get(f"{name.removesuffix('kernel')}scale")
            if scale is None or scale.name in slots or integer is None:
                array = _host_array(tensors, leaves[name], dtype)
            else:
                array, factors = _quantized_arrays(tensors, leaves[name], integer, scale, dtype)
                _insert(params, scale.path, _device_array(factors, scale, mesh))
            _insert(params, leaves[name].path, _device_array(array, leaves[name], mesh))
            progress.update()
    return params


def _check_finite(tower: OpenTower, params: dict[str, Any], source: str | Path) -> None:
    """Raises UserError if a weight is NaN or infinite: answers would be one token without an end."""
    flags = {
        jax.tree_util.keystr(path, simple=True, separator="."): _is_finite(leaf)
        for path, leaf in jax.tree.leaves_with_path(params)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    broken = [name for name, finite in flags.items() if not finite]
    if not broken:
        return
    # In the file's own words, unless the numbers came about here.
    kernel = f"{broken[0].removesuffix('scale')}kernel" if broken[0].endswith(".scale") else broken[0]
    held = [
        entry.torch
        for entry in tower.entries
        if {broken[0], kernel} & {entry.parameter.name, entry.flax}
        and not np.isfinite(tower.tensors[entry.flax].read()).all()
    ]
    more = f", and {counted(len(broken) - 1, 'other parameter')}" if len(broken) > 1 else ""
    raise UserError(
        f"{source}: weights are NaN or infinite: {(held or broken)[0]}{more}; get them again, or give others"
    )


@jax.jit
def _is_finite(x: jax.Array) -> jax.Array:
    return jnp.isfinite(x).all()


Slots = list[tuple[Any, Tensor]]


def _host_array(slots: Slots, parameter: Parameter, dtype: np.dtype) -> np.ndarray:
    array = np.empty(parameter.shape, dtype)
    for slot, tensor in slots:
        array[slot] = tensor.read()
    return array


def _quantized_arrays(
    slots: Slots, kernel: Parameter, integer: DTypeLike, scale: Parameter, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """A kernel as integers and its scales, quantised layer by layer: of no more than one do the floats stand."""
    integers, scales = np.empty(kernel.shape, integer), np.empty(scale.shape, dtype)
    for slot, tensor in slots:
        floats = tensor.read().astype(np.float32)
        # Of what is no number the scale becomes none, and is found with the others.
        with np.errstate(invalid="ignore"):
            integers[slot], scales[slot] = quantize(floats, scales[slot].shape, integer, dtype)
    return integers, scales


def _slots(tower: OpenTower, name: str) -> Slots:
    """The tensors of a parameter, and where each stands in it: the whole, or of a stacked one a layer's slot.

    In a network whose layers are not stacked its name is a tensor's own, `layers.7.…`.
    """
    if name in tower.tensors:
        return [(..., tower.tensors[name])]
    return [(entry.layer, tower.tensors[entry.flax]) for entry in tower.entries if entry.parameter.name == name]


def _device_array(array: np.ndarray, parameter: Parameter, mesh: Mesh | None) -> jax.Array:
    if mesh is None:
        return jnp.asarray(array)
    sharding = NamedSharding(mesh, partition(parameter.axes, mesh))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _shapes(params: dict[str, Any]) -> str:
    """A tree's shapes in words, as "projection.bias 16, projection.kernel 8 x 16"."""
    leaves = sorted(
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf.shape)
        for path, leaf in jax.tree.leaves_with_path(params)
    )
    return ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in leaves)


def _insert(tree: dict[Any, Any], path: tuple[str | int, ...], leaf: Any) -> None:
    *parents, last = path
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = leaf

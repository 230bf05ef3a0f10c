"""Integer weights: how near they come, what is computed with them, and that no floats of all layers ever stand."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlingo_jax.models.adapter import AdapterConfig
from mlingo_jax.models.layers import Projection
from mlingo_jax.models.musilingo import Networks
from mlingo_jax.models.quantization import INTEGERS, dequantize, quantize, scale_axes, scale_shape
from mlingo_jax.training.step import loss_sum
from mlingo_jax.weights import load
from mlingo_jax.weights.load import fit_adapter, load_tower
from tests.test_step import WIDTH, make_batch
from tests.tiny import tiny_llama

KINDS = ("int8", "int4")
# Axes that eight devices can share, whichever they are.
WIDE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
DEEP = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llm") / "llm", **WIDE)


@pytest.mark.parametrize(
    ("quantization", "axes", "shape", "contracted", "groups", "letters"),
    [
        ("int8", "LDNH", (2, 64, 4, 8), "D", (2, 1, 4, 8), "L1NH"),
        ("int8", "LNHD", (2, 4, 8, 64), "NH", (2, 1, 1, 64), "L11D"),
        ("int4", "LDNH", (2, 64, 4, 8), "D", (2, 2, 4, 8), "LDNH"),
        ("int4", "LNHD", (2, 4, 64, 96), "NH", (2, 4, 2, 96), "LNHD"),
        ("int4", "FD", (11008, 4096), "F", (344, 4096), "FD"),
        ("int4", "FD", (48, 33), "F", (3, 33), "FD"),
        ("int4", "DF", (32, 48), "D", (1, 48), "1F"),
    ],
)
def test_scales_have_their_kernels_axes(quantization, axes, shape, contracted, groups, letters):
    assert scale_shape(axes, shape, contracted, quantization) == groups
    assert scale_axes(axes, groups) == letters


@given(
    kernel=arrays(np.float32, (6, 4, 2), elements=st.floats(-3e4, 3e4, width=32)),
    groups=st.tuples(st.sampled_from((1, 2, 3, 6)), st.sampled_from((1, 2, 4)), st.sampled_from((1, 2))),
    quantization=st.sampled_from(KINDS),
)
def test_every_number_comes_back_within_a_step(kernel: np.ndarray, groups: tuple[int, int, int], quantization: Any):
    integers, scale = quantize(kernel, groups, INTEGERS[quantization], np.float32)
    assert integers.dtype == INTEGERS[quantization]
    assert scale.shape == groups
    found = np.asarray(dequantize(jnp.asarray(integers), jnp.asarray(scale)))
    parts = [n for size, count in zip(kernel.shape, groups, strict=True) for n in (count, size // count)]
    values, error = kernel.reshape(parts), np.abs(found - kernel).reshape(parts)
    step = np.abs(scale).reshape([n for count in groups for n in (count, 1)])
    # The greatest of a group becomes the least integer; opposite to it there is one integer less.
    opposite = np.sign(values) == np.sign(scale).reshape(step.shape)
    cut = opposite & (np.abs(values) > step * -(jnp.iinfo(integers.dtype).min + 0.5))
    # Room for the rounding of the quotient and the product, and for steps too small to be normal numbers.
    assert np.all(error <= np.where(cut, 1.0, 0.5) * step * (1 + 1e-5) + 1e-37)


@pytest.mark.parametrize("quantization", KINDS)
def test_numpy_and_jax_quantise_alike(quantization: Any):
    kernel = np.random.default_rng(0).normal(size=(64, 3, 8)).astype(np.float32)
    kernel[:, 1, 1] = 0
    groups = scale_shape("DNH", kernel.shape, "D", quantization)
    made = partial(quantize, groups=groups, integer=INTEGERS[quantization], dtype=jnp.bfloat16)
    host, device = made(kernel), jax.jit(made)(jnp.asarray(kernel))
    for ours, theirs in zip(host, device, strict=True):
        np.testing.assert_array_equal(ours.astype(np.float32), np.asarray(theirs).astype(np.float32))
    assert np.all(dequantize(*map(jnp.asarray, host))[:, 1, 1] == 0)


@pytest.mark.parametrize("quantization", KINDS)
@pytest.mark.parametrize("equation", ["BTD,DNH->BTNH", "BTNH,NHD->BTD", "BTD,DF->BTF"])
def test_a_projection_computes_with_the_numbers_that_its_integers_stand_for(equation: str, quantization: Any):
    sizes = {"D": 64, "N": 4, "H": 16, "F": 48}
    project = Projection(equation, sizes, dtype=jnp.float32, quantization=quantization, rngs=nnx.Rngs(0))
    same_draw = Projection(equation, sizes, dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert project.scale is not None
    floats = dequantize(project.kernel[...], project.scale[...])
    error = np.linalg.norm(floats - same_draw.kernel[...]) / np.linalg.norm(same_draw.kernel[...])
    assert error < {"int8": 0.01, "int4": 0.1}[quantization]
    given = equation.split(",")[0]
    x = jax.random.normal(jax.random.key(1), [{"B": 2, "T": 3, **sizes}[a] for a in given])
    y, pull = jax.vjp(project, x)
    expected, expected_pull = jax.vjp(lambda x: jnp.einsum(equation, x, floats), x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pull(y)[0], expected_pull(y)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("equation", ["BTD,DNH->BTNH", "BTNH,NHD->BTD"])
def test_a_scale_per_output_is_multiplied_with_the_product(equation: str):
    """Never with the kernel: nothing of its size is made but the integers as floats, as the product takes them."""
    sizes = {"B": 2, "T": 3, "D": 64, "N": 4, "H": 16}
    project = Projection(equation, sizes, dtype=jnp.bfloat16, quantization="int8", rngs=nnx.Rngs(0))
    x = jnp.ones([sizes[axis] for axis in equation.split(",")[0]], jnp.bfloat16)

    def there_and_back(x: jax.Array) -> Any:
        y, pull = jax.vjp(project, x)
        return pull(y)

    equations = jax.make_jaxpr(there_and_back)(x).eqns
    large = {e.primitive.name for e in equations if any(out.aval.size >= project.kernel.size for out in e.outvars)}
    assert "convert_element_type" in large
    assert large <= {"convert_element_type", "transpose"}


def dequantized(params: Any) -> Any:
    """A tower's parameters with floats for integers, as the network without quantisation takes them."""
    if not isinstance(params, dict):
        return params
    if "kernel" in params and "scale" in params:
        kernel = dequantize(params["kernel"], params["scale"])
        return {name: kernel if name == "kernel" else p for name, p in params.items() if name != "scale"}
    return {name: dequantized(part) for name, part in params.items()}


@pytest.mark.parametrize("quantization", KINDS)
def test_the_adapter_learns_what_it_would_from_the_dequantised_tower(folder: Path, quantization: Any):
    plain = load_tower(folder, role="llm", dtype="float32")
    tower = load_tower(folder, role="llm", dtype="float32", quantization=quantization)
    adapter = fit_adapter(None, AdapterConfig(WIDTH, WIDE["hidden_size"]))
    batch = {name: jnp.asarray(values) for name, values in make_batch(0).items()}

    def learn(graph: Any, params: Any) -> tuple[Any, Any]:
        networks = Networks(graph, adapter.graphdef, remat="layer")
        total = partial(loss_sum, frozen={"llm": params}, batch=batch, networks=networks)
        (loss, _), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))({"adapter": adapter.params})
        return loss, gradient

    loss, gradient = learn(tower.graphdef, tower.params)
    same, expected = learn(plain.graphdef, dequantized(tower.params))
    np.testing.assert_allclose(loss, same, rtol=1e-5)
    for found, wanted in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        # Weights this large multiply rounding: half a unit in the kernels' last place already changes it by 3e-5.
        assert np.linalg.norm(found - wanted) < 3e-4 * np.linalg.norm(wanted)
    near, _ = learn(plain.graphdef, plain.params)
    assert 0 < abs(float(loss / near) - 1) < {"int8": 0.01, "int4": 0.1}[quantization]


def test_a_tower_is_quantised_layer_by_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []

    def quantize_and_tell(floats: np.ndarray, *rest: Any) -> Any:
        seen.append(floats.shape)
        return quantize(floats, *rest)

    monkeypatch.setattr(load, "quantize", quantize_and_tell)
    folder = tiny_llama(tmp_path / "llm", num_hidden_layers=3)
    tower = load_tower(folder, role="llm", dtype="bfloat16", quantization="int4")
    shapes = [leaf.shape for _, leaf in kernels(tower.params)]
    assert len(shapes) == 7 * 3
    assert sorted(seen) == sorted(shapes)


def kernels(params: Any) -> list[tuple[str, jax.Array]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [(name, leaf) for path, leaf in leaves if (name := jax.tree_util.keystr(path)).endswith("['kernel']")]


def test_quantised_towers_are_other_towers(folder: Path):
    towers = {name: load_tower(folder, role="llm", dtype="bfloat16", quantization=name) for name in ("none", *KINDS)}
    assert len({tower.identity["weights"] for tower in towers.values()}) == 3
    assert {name: tower.identity["quantization"] for name, tower in towers.items()} == {n: n for n in towers}
    again = load_tower(folder, role="llm", dtype="bfloat16", quantization="int4")
    assert again.identity == towers["int4"].identity
    for name in KINDS:
        assert {leaf.dtype for _, leaf in kernels(towers[name].params)} == {jnp.dtype(INTEGERS[name])}
        others = [leaf.dtype for leaf in jax.tree.leaves(towers[name].params) if leaf.dtype != INTEGERS[name]]
        assert set(others) == {jnp.dtype("bfloat16")}


SCRIPT = """
import json
import sys
import jax, jax.numpy as jnp
from mlingo_jax.models.adapter import AdapterConfig
from mlingo_jax.models.musilingo import Networks
from mlingo_jax.settings import Config, MeshConfig
from mlingo_jax.weights.load import fit_adapter, load_tower
from mlingo_jax.training.sharding import make_mesh, put_batch, replicate
from mlingo_jax.training.step import loss_sum
from tests.test_step import WIDTH, make_batch

adapter = fit_adapter(None, AdapterConfig(WIDTH, 256))

def prepare(folder, mesh, quantization, remat="layer"):
    llm = load_tower(folder, role="llm", dtype="float32", quantization=quantization, mesh=mesh)
    networks = Networks(llm.graphdef, adapter.graphdef, remat=remat)
    step = jax.jit(jax.value_and_grad(lambda a, p, b: loss_sum(a, {"llm": p}, b, networks), has_aux=True))
    return llm, step, (replicate({"adapter": adapter.params}, mesh), llm.params, put_batch(make_batch(0, rows=8), mesh))

def learn(mesh, quantization):
    with jax.set_mesh(mesh):
        llm, step, given = prepare(sys.argv[1], mesh, quantization)
        (loss, _), gradient = step(*given)
    gate = llm.params["layers"]["mlp"]["gate"]
    return {
        "loss": float(loss),
        "gradient": [float(jnp.linalg.norm(g)) for g in jax.tree.leaves(gradient)],
        "parts": [len({str(s.index) for s in gate[n].addressable_shards}) for n in ("kernel", "scale") if n in gate],
        "weights": llm.identity["weights"],
    }

def temporary(mesh, quantization, remat):
    with jax.set_mesh(mesh):
        llm, step, given = prepare(sys.argv[2], mesh, quantization, remat)
        return step.lower(*given).compile().memory_analysis().temp_size_in_bytes

shapes = ((8, 1, 1), (2, 2, 2), (1, 8, 1), (1, 1, 8))
meshes = {shape: make_mesh(MeshConfig(*shape)) for shape in shapes}
found = {"int4": [learn(mesh, "int4") for mesh in meshes.values()]}
found["int8"] = [learn(meshes[shape], "int8") for shape in ((8, 1, 1), (2, 2, 2))]
# The optimiser could bring floats about again, so these programs are optimised.
jax.config.update("jax_disable_most_optimizations", False)
cases = (("int8", "none"), ("int4", "none"), ("int4", "dots"), ("int4", "layer"))
found["temporary"] = [temporary(meshes[8, 1, 1], *case) for case in cases]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def on_meshes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    root = Path(__file__).parents[1]
    deep = tiny_llama(tmp_path_factory.mktemp("deep") / "llm", num_hidden_layers=DEEP, **WIDE)
    command = [sys.executable, "-c", SCRIPT, str(folder), str(deep)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("quantization", KINDS)
def test_every_mesh_gives_one_loss_and_one_gradient(on_meshes: dict[str, Any], quantization: str):
    first, *others = on_meshes[quantization]
    for other in others:
        # Sums over devices are taken in another order.
        assert other["loss"] == pytest.approx(first["loss"], rel=1e-5)
        assert other["gradient"] == pytest.approx(first["gradient"], rel=1e-4)
        assert other["weights"] == first["weights"]


def test_scales_are_split_along_with_their_kernels(on_meshes: dict[str, Any]):
    assert [found["parts"] for found in on_meshes["int4"]] == [[1, 1], [4, 4], [8, 8], [8, 8]]
    assert [found["parts"] for found in on_meshes["int8"]] == [[1, 1], [4, 2]]


def test_no_floats_of_all_layers_ever_stand(on_meshes: dict[str, Any]):
    width, inner = WIDE["hidden_size"], WIDE["intermediate_size"]
    floats = 4 * DEEP * (4 * width * width + 3 * width * inner)
    # Most of it is the activations'; with the floats it would be more than twice this.
    assert max(on_meshes["temporary"]) < 0.8 * floats

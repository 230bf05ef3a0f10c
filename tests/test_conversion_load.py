"""Loading: the same parameters from every layout, in the asked dtype, on a mesh too; and what tells models apart."""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from huggingface_hub import constants
from safetensors.numpy import save_file

from mlingo_jax.conversion import to_jax
from mlingo_jax.errors import UserError
from mlingo_jax.models.llama_config import LlamaConfig
from mlingo_jax.models.mert import MertConfig
from mlingo_jax.weights import checksum
from mlingo_jax.weights.checkpoints import read_checkpoint
from mlingo_jax.weights.checksum import weights_checksum
from mlingo_jax.weights.load import load_adapter, load_tower
from tests.tiny import tiny_llama, tiny_mert


@pytest.fixture(scope="module")
def mert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mert(tmp_path_factory.mktemp("towers") / "mert")


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("towers") / "llm")


def test_parameters_stand_where_the_table_says(llm: Path, mert: Path):
    tower = load_tower(llm, role="llm", dtype="float32")
    torch_side = {name: tensor.read() for name, tensor in read_checkpoint(llm).items()}
    key = torch_side["model.layers.1.self_attn.k_proj.weight"].reshape(2, 8, 32)
    np.testing.assert_array_equal(tower.params["layers"][1]["attention"]["key"]["kernel"], key)
    np.testing.assert_array_equal(tower.params["head"], torch_side["lm_head.weight"])
    assert isinstance(tower.config, LlamaConfig)
    encoder = load_tower(mert, role="encoder", dtype="float32")
    taps = read_checkpoint(mert)["feature_extractor.conv_layers.2.conv.weight"].read()
    np.testing.assert_array_equal(encoder.params["conv_layers"][2]["kernel"], taps.transpose(2, 1, 0))
    assert isinstance(encoder.config, MertConfig)
    model = nnx.merge(encoder.graphdef, nnx.State(encoder.params))
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(model, nnx.Param)), encoder.params)


@pytest.mark.parametrize("role", ["encoder", "llm"])
@pytest.mark.parametrize("dtype", ["float32", jnp.bfloat16])
def test_a_converted_folder_loads_as_its_source(role, dtype, mert: Path, llm: Path, tmp_path: Path):
    source = mert if role == "encoder" else llm
    to_jax.convert(source, tmp_path / source.name)
    before, after = (load_tower(folder, role=role, dtype=dtype) for folder in (source, tmp_path / source.name))
    assert before.identity == after.identity
    assert before.identity["name"] == source.name
    assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {jnp.dtype(dtype)}
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    assert after.graphdef == before.graphdef
    assert after.folder == tmp_path / source.name


def test_identities_tell_models_apart(llm: Path, tmp_path: Path):
    identity = load_tower(llm, role="llm", dtype="float32").identity
    others = {
        "weights": load_tower(tiny_llama(tmp_path / "a/llm", seed=1), role="llm", dtype="float32").identity,
        "config": load_tower(tiny_llama(tmp_path / "b/llm", rms_norm_eps=1e-5), role="llm", dtype="float32").identity,
    }
    for field, other in others.items():
        assert {name for name in identity if identity[name] != other[name]} - {"rounded"} == {field}


def test_checksums_tell_what_changed():
    params = {"a": {"kernel": jnp.arange(12.0).reshape(3, 4)}, "b": jnp.zeros(2, jnp.bfloat16), "c": jnp.ones(())}
    found = weights_checksum(params)
    assert found == weights_checksum(params) == weights_checksum(jax.tree.map(np.asarray, params))
    kernel = params["a"]["kernel"]
    changes = {
        "one number": params | {"a": {"kernel": kernel.at[2, 1].add(1e-6 * 9)}},
        "the sign of a zero": params | {"b": jnp.array([0.0, -0.0], jnp.bfloat16)},
        "two numbers swapped": params | {"a": {"kernel": kernel[:, jnp.array([1, 0, 2, 3])]}},
        "shape": params | {"a": {"kernel": kernel.reshape(4, 3)}},
        "dtype": params | {"b": jnp.zeros(2, jnp.float16)},
        "name": {name.replace("c", "d"): value for name, value in params.items()},
    }
    assert len({found, *(weights_checksum(changed) for changed in changes.values())}) == 1 + len(changes)


def test_a_checksum_is_that_of_the_stack():
    layers = [{"kernel": jnp.arange(12.0).reshape(3, 4) * n, "scale": jnp.ones(3, jnp.bfloat16)} for n in (1, 2, 3)]
    one_by_one = {"layers": dict(enumerate(layers)), "head": jnp.ones(2)}
    stacked = {"layers": jax.tree.map(lambda *parts: jnp.stack(parts), *layers), "head": jnp.ones(2)}
    other_order = {"layers": dict(enumerate(layers[::-1])), "head": jnp.ones(2)}
    assert weights_checksum(one_by_one) == weights_checksum(stacked) != weights_checksum(other_order)


ON_A_MESH = """
    import sys
    import jax, numpy as np
    from mlingo_jax.weights.load import load_tower

    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    for role, folder in zip(("encoder", "llm"), sys.argv[1:], strict=True):
        alone = load_tower(folder, role=role, dtype="bfloat16")
        spread = load_tower(folder, role=role, dtype="bfloat16", mesh=mesh)
        assert alone.identity == spread.identity
        layers = alone.params.get("layers", {})
        if 0 in layers:
            alone.params["layers"] = jax.tree.map(lambda *parts: np.stack(parts), *layers.values())
        jax.tree.map(np.testing.assert_array_equal, alone.params, spread.params)
        assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(spread.params)} == {8}
    kernel = spread.params["layers"]["mlp"]["gate"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 16, 24)}
    print("equal")
"""


def test_a_mesh_of_eight_devices(mert: Path, llm: Path):
    """In a process of its own: the number of devices is set before JAX starts."""
    code = "import jax; jax.config.update('jax_num_cpu_devices', 8)\n" + textwrap.dedent(ON_A_MESH)
    process = subprocess.run(
        [sys.executable, "-c", code, str(mert), str(llm)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stdout == "equal\n", process.stderr


def test_bfloat16_is_rounded_to_nearest(llm: Path):
    norm = read_checkpoint(llm)["model.norm.weight"].read()
    loaded = load_tower(llm, role="llm", dtype="bfloat16").params["norm"]["scale"]
    np.testing.assert_array_equal(np.asarray(loaded), norm.astype(ml_dtypes.bfloat16))


def test_a_hub_id_without_a_network(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"`hf download someone/some-model --local-dir some-model`") as caught:
        load_tower("someone/some-model", role="encoder", dtype="float32")
    assert "\n" not in str(caught.value)


def test_a_hub_id_in_the_local_cache(mert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--some-model"
    shutil.copytree(mert, repository / "snapshots/0123abcd")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0123abcd")
    tower = load_tower("someone/some-model", role="encoder", dtype="float32")
    assert tower.identity == load_tower(mert, role="encoder", dtype="float32").identity | {"name": "someone/some-model"}
    assert tower.folder.name == "0123abcd"


def test_what_is_not_there(tmp_path: Path, llm: Path, mert: Path):
    (tmp_path / "empty").mkdir()
    for source, message in (
        (tmp_path / "nothing", "nothing: no such file or folder"),
        (tmp_path / "empty", "empty: the folder is empty"),
        (llm, r"llm: holds a llama model, expected an encoder"),
    ):
        with pytest.raises(UserError, match=message):
            load_tower(source, role="encoder", dtype="float32")
    with pytest.raises(UserError, match=r"mert: holds a mert model, expected an adapter"):
        load_adapter(mert)


def broken(folder: Path, source: Path, name: str, value: float) -> Path:
    """A copy of a model in which one number of one tensor is no number."""
    shutil.copytree(source, folder)
    tensors = {n: tensor.read().copy() for n, tensor in read_checkpoint(source).items()}
    tensors[name].flat[0] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.layers.1.self_attn.k_proj.weight", np.nan),
        ("model.embed_tokens.weight", np.inf),
        ("model.norm.weight", -np.inf),
    ],
)
def test_weights_that_are_no_numbers_are_named(name, value, quantization, llm: Path, tmp_path: Path):
    folder = broken(tmp_path / "llm", llm, name, value)
    with pytest.raises(UserError, match=rf"llm: weights are NaN or infinite: {name}; get them again"):
        load_tower(folder, role="llm", dtype="bfloat16", quantization=quantization)


def test_an_encoder_s_weights_are_looked_at_too(mert: Path, tmp_path: Path):
    name = "encoder.layers.0.attention.q_proj.weight"
    with pytest.raises(UserError, match=rf"mert: weights are NaN or infinite: {name}"):
        load_tower(broken(tmp_path / "mert", mert, name, np.nan), role="encoder", dtype="float32")


def test_a_checksum_is_the_same_in_blocks_and_whole(monkeypatch: pytest.MonkeyPatch):
    """A CPU's arrays in blocks, by one program for all; those that are spread, or elsewhere, each as a whole."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(3, 1100, 700)), rng.normal(size=7), rng.normal(size=(1024, 1024)), np.zeros((2, 0))]
    params = {f"p{n}": jnp.asarray(array, jnp.float32) for n, array in enumerate(arrays)}
    params["integers"] = jnp.asarray(rng.integers(-7, 8, (5, 9)), jnp.int4)
    sums = checksum.weights_checksums(params, (None, jnp.bfloat16))

    def whole(x: jax.Array, index: int, dtypes: tuple[np.dtype, ...], _: object) -> np.ndarray:
        return np.stack([np.asarray(checksum._digest(x, jnp.uint32(index), dtype)) for dtype in dtypes])

    monkeypatch.setattr(checksum, "_digests", whole)
    assert sums == checksum.weights_checksums(params, (None, jnp.bfloat16))
    assert len(set(sums)) == 2

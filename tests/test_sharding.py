"""Meshes: eight devices of this machine's one, in a process of their own; the same losses however they are laid out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = """
import json
from functools import partial
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.sharding import AxisType
from mlingo_jax.settings import Config, MeshConfig
from mlingo_jax.weights.load import load_tower
from mlingo_jax.errors import UserError
from mlingo_jax.training.sharding import AXES, check_batch, make_mesh, put_batch, replicate
from mlingo_jax.training.step import compile_train_step, init_state
from mlingo_jax.models.musilingo import Networks
from tests.test_step import config, make_batch, new_adapter, schedule_of

def refusal(call):
    try:
        call()
    except UserError as error:
        return str(error)

def share(params):
    leaves = jax.tree.leaves(params)
    return sum(x.addressable_shards[0].data.nbytes for x in leaves) / sum(x.nbytes for x in leaves)

def losses(mesh):
    with jax.set_mesh(mesh):
        llm = load_tower(LLM, role="llm", dtype="float32", mesh=mesh)
        graph, adapter = new_adapter()
        step = compile_train_step(Networks(llm.graphdef, graph, remat="layer"), schedule_of(config()), mesh)
        state, found = replicate(init_state({"adapter": adapter}, config().optim), mesh), []
        for number in range(2):
            state, metrics = step(state, {"llm": llm.params}, put_batch(make_batch(number, rows=8), mesh))
            found.append(float(metrics["loss"]))
        return {
            "losses": found,
            "compiles": step._cache_size(),
            "share": share(llm.params),
            "adapter": state.trained["adapter"]["projection"]["kernel"].sharding.is_fully_replicated,
        }

def encoded(mesh):
    with jax.set_mesh(mesh):
        mert, rng = load_tower(MERT, role="encoder", dtype="float32", mesh=mesh), np.random.default_rng(0)
        clips = {"waveform": rng.normal(size=(8, 4000)), "lengths": rng.integers(3000, 4001, 8)}
        network = partial(nnx.merge, mert.graphdef)
        listen = jax.jit(lambda params, clips: network(nnx.State(params)).features(**clips, frames_per_token=4))
        return np.asarray(listen(mert.params, put_batch(clips, mesh))).tolist()

one = jax.make_mesh((1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:1])
mesh = make_mesh(MeshConfig(data=-1, fsdp=2, tensor=2))
meshes = [(8, 1, 1), (4, 2, 1), (1, 8, 1), (1, 1, 8)]
with jax.set_mesh(mesh):
    print(json.dumps({
        "shape": dict(mesh.shape),
        "one": losses(one),
        "meshes": [losses(make_mesh(MeshConfig(*sizes))) for sizes in meshes] + [losses(mesh)],
        "encoded": [encoded(one), encoded(mesh)],
        "refusals": [
            refusal(lambda: make_mesh(MeshConfig(fsdp=3, data=-1))),
            refusal(lambda: make_mesh(MeshConfig(data=3, tensor=2))),
            refusal(lambda: check_batch(mesh, 6)),
            refusal(lambda: load_tower(LLM, role="llm", dtype="float32", mesh=ODD)),
        ],
    }))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    from tests.tiny import tiny_llama, tiny_mert

    folder = tmp_path_factory.mktemp("towers")
    llm = tiny_llama(folder / "llm", num_attention_heads=8, num_key_value_heads=8)
    mert = tiny_mert(folder / "mert", num_attention_heads=8)
    odd = 'jax.make_mesh((2, 3), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:6])'
    script = SCRIPT.replace("LLM", repr(str(llm))).replace("MERT", repr(str(mert))).replace("ODD", odd)
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_mesh_gives_the_losses_of_one_device(found):
    for mesh in found["meshes"]:
        # Sums over devices are taken in another order.
        assert mesh["losses"] == pytest.approx(found["one"]["losses"], rel=1e-5)
        assert mesh["compiles"] == 1


def test_clips_sound_the_same_on_a_mesh(found):
    # To 1e-5 of a feature's usual size, which is about one.
    np.testing.assert_allclose(*found["encoded"], rtol=1e-5, atol=1e-5)


def test_towers_are_split_and_the_adapter_is_whole(found):
    assert found["shape"] == {"data": 2, "fsdp": 2, "tensor": 2}
    for mesh, parts in zip(found["meshes"], (1, 2, 8, 8, 4), strict=True):
        assert mesh["share"] == pytest.approx(1 / parts, rel=0.05)
        assert mesh["adapter"]


def test_sizes_that_do_not_divide_are_named(found):
    fsdp, data, batch, llm = found["refusals"]
    assert "fsdp 3 times tensor 1 does not make up the number of devices, 8" in fsdp
    assert "times data 3 does not make up the number of devices, 8" in data
    assert "config.batch_size is 6: must be a multiple of 4" in batch
    expected = "8 heads over tensor 3, 8 key/value heads over tensor 3, a vocabulary of 320 tokens over tensor 3"
    assert f"llm: cannot be split evenly: {expected}; choose another mesh" in llm

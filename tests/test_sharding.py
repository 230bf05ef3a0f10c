"""Meshes: eight devices of this machine's one, in a process of their own; the same losses however they are laid out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding
from configs.base import Config, MeshConfig
from conversion.load import load_tower
from mlingo_jax.errors import UserError
from mlingo_jax.training.sharding import AXES, check_batch, make_mesh, put_batch, replicate
from mlingo_jax.training.step import Networks, compile_train_step, init_state
from tests.test_step import config, make_batch, new_adapter

def refusal(call):
    try:
        call()
    except UserError as error:
        return str(error)

def losses(mesh):
    with jax.set_mesh(mesh):
        llm = load_tower(FOLDER, kind="llama", dtype="float32", mesh=mesh)
        graph, adapter = new_adapter()
        step = compile_train_step(Networks(graph, llm.graphdef, None, False), config(), mesh)
        state, found = replicate(init_state(adapter, config()), mesh), []
        for number in range(3):
            state, metrics = step(state, {"llm": llm.params}, put_batch(make_batch(number, rows=8), mesh))
            found.append(float(metrics["loss"]))
        query = llm.params["layers"]["attention"]["query"]["kernel"]
        return {
            "losses": found,
            "compiles": step._cache_size(),
            "parts": len({str(s.index) for s in query.addressable_shards}),
            "adapter": state.adapter["projection"]["kernel"].sharding.is_fully_replicated,
        }

one = jax.make_mesh((1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:1])
mesh = make_mesh(MeshConfig(data=-1, fsdp=2, tensor=2))
print(json.dumps({
    "shape": dict(mesh.shape),
    "one": losses(one),
    "data": losses(make_mesh(MeshConfig())),
    "all": losses(mesh),
    "refusals": [
        refusal(lambda: make_mesh(MeshConfig(fsdp=3))),
        refusal(lambda: make_mesh(MeshConfig(data=3, tensor=2))),
        refusal(lambda: check_batch(mesh, 6)),
    ],
}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    from tests.tiny import tiny_llama

    folder = tiny_llama(tmp_path_factory.mktemp("llm"))
    script = SCRIPT.replace("FOLDER", repr(str(folder)))
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_mesh_gives_the_losses_of_one_device(found):
    for name in ("data", "all"):
        # Sums over devices are taken in another order.
        assert found[name]["losses"] == pytest.approx(found["one"]["losses"], rel=1e-5)
        assert found[name]["compiles"] == 1


def test_towers_are_split_and_the_adapter_is_whole(found):
    assert found["shape"] == {"data": 2, "fsdp": 2, "tensor": 2}
    assert [found[name]["parts"] for name in ("one", "data", "all")] == [1, 1, 4]
    assert all(found[name]["adapter"] for name in ("one", "data", "all"))


def test_sizes_that_do_not_divide_are_named(found):
    fsdp, data, batch = found["refusals"]
    assert "fsdp 3 times tensor 1 does not make up the 8 devices" in fsdp
    assert "times data 3 does not make up the 8 devices" in data
    assert "config.batch_size is 6: must be a multiple of 4" in batch

"""The encoder on several devices of this machine's one, in a process of its own: what one device encodes, the work
split."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import tiny_mert

SCRIPT = """
import json
import jax, numpy as np
from jax.sharding import AxisType
from mlingo_jax.weights.load import load_tower
from mlingo_jax.features import encode
from mlingo_jax.data.audio import AudioSettings
from mlingo_jax.features.encode import AudioEncoder

AXES = ("data", "fsdp", "tensor")
AUDIO = AudioSettings(sample_rate=24000, normalize=True)
rng = np.random.default_rng(0)
clips = [rng.normal(0, 0.1, round(24000 * s)).astype(np.float32) for s in (0.3, 0.5, 0.9, 1.9)]
placed = []

def spy(*arguments):
    out = FEATURES(*arguments)
    placed.append([list(out.shape), len({str(s.index) for s in out.addressable_shards}), len(out.devices())])
    return out

FEATURES, encode._features = encode._features, spy

def encoded(shape):
    devices = jax.devices()[: int(np.prod(shape))]
    mesh = jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
    with jax.set_mesh(mesh):
        tower = load_tower(FOLDER, role="encoder", dtype="float32", mesh=mesh)
        how = {"frames_per_token": 20, "seconds": 2.0, "mesh": mesh}
        encoder = AudioEncoder(tower.graphdef, tower.params, tower.config, AUDIO, **how)
        placed.clear()
        features = encoder(clips)
    return {"features": [f.tolist() for f in features], "placed": list(placed)}

meshes = {"one": (1, 1, 1), "three": (3, 1, 1), "eight": (2, 2, 2)}
print(json.dumps({name: encoded(shape) for name, shape in meshes.items()}))
"""


@pytest.fixture(scope="module")
def encoded(tmp_path_factory) -> dict:
    folder = tiny_mert(tmp_path_factory.mktemp("mert"))
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("FOLDER", repr(str(folder)))],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("mesh", ["three", "eight"])
def test_several_devices_hear_what_one_hears(encoded, mesh):
    for ours, theirs in zip(encoded[mesh]["features"], encoded["one"]["features"], strict=True):
        assert ours == [pytest.approx(row, rel=1e-5, abs=1e-5) for row in theirs]


@pytest.mark.parametrize(("mesh", "parts", "devices"), [("one", 1, 1), ("three", 3, 3), ("eight", 4, 8)])
def test_each_device_hears_its_share_of_every_batch(encoded, mesh, parts, devices):
    for shape, split, used in encoded[mesh]["placed"]:
        assert shape[0] % parts == 0
        assert (split, used) == (parts, devices)

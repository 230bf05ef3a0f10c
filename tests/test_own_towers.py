"""A run's adapter belongs to its encoder and its language model: others of the same widths are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import mlingo_jax
from mlingo_jax.conversion import to_pytorch
from mlingo_jax.data.prompt import PromptSettings
from mlingo_jax.errors import UserError
from mlingo_jax.runs.checkpoints import CheckpointState
from mlingo_jax.training.checkpoint import Checkpoints
from mlingo_jax.training.run import require_towers
from mlingo_jax.training.setup import set_up
from mlingo_jax.training.sharding import make_mesh
from mlingo_jax.weights.checksum import weights_checksum
from mlingo_jax.weights.load import load_tower
from mlingo_jax.weights.towers import Role
from tests.tiny import tiny_llama, tiny_mert
from tests.tiny_run import as_config, make_corpus, settings

ROLES: dict[str, Role] = {"mert": "encoder", "llm": "llm"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def run(request, corpus, tmp_path_factory) -> Path:
    """A run with one checkpoint, made by hand: its towers are the corpus's."""
    workdir = tmp_path_factory.mktemp("run")
    loaded = {name: load_tower(corpus / name, role=role, dtype=request.param) for name, role in ROLES.items()}
    towers = {name: {"folder": str(corpus / name), "identity": tower.identity} for name, tower in loaded.items()}
    prompt = PromptSettings().to_json()
    (workdir / "run.json").write_text(json.dumps({**towers, "id": "r", "prompt": prompt, "window": 20}))
    adapter = {"projection": {"kernel": np.ones((24, 32), np.float32), "bias": np.zeros(32, np.float32)}}
    with Checkpoints(workdir, keep=1, best=0, losses={}) as checkpoints:
        checkpoints.save(CheckpointState(5, {"adapter": adapter}, {"opt_state": adapter}, {}), {})
    return workdir


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> Path:
    """Towers of the same widths and configs, and other weights."""
    folder = tmp_path_factory.mktemp("others")
    tiny_mert(folder / "mert", seed=5)
    tiny_llama(folder / "llm", seed=5)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_its_own_towers_are_taken_in_any_dtype_and_others_in_none(run, corpus, others, dtype, tmp_path):
    assert mlingo_jax.load(adapter=run, dtype=dtype).llm.identity["name"] == "llm"
    moved = shutil.copytree(corpus / "llm", tmp_path / "moved")
    mlingo_jax.load(adapter=run, llm=moved, dtype=dtype)
    for name, what in (("mert", "encoder"), ("llm", "language model")):
        with pytest.raises(
            UserError, match=rf"was trained with another {what}, {name} \(\w+\), than {name} \("
        ) as error:
            mlingo_jax.load(adapter=run, dtype=dtype, **{name: others / name})
        assert "\n" not in str(error.value)


def test_a_tower_that_was_replaced_in_its_place_is_noticed(run, others, tmp_path):
    described = json.loads((run / "run.json").read_text())
    described["mert"]["folder"] = str(others / "mert")
    changed = shutil.copytree(run, tmp_path / "changed")
    (changed / "run.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="was trained with another encoder"):
        mlingo_jax.load(adapter=changed / "checkpoints" / "5", dtype="float32")


def test_the_adapter_alone_may_be_used_with_any_that_fit(run, corpus, others, tmp_path):
    pytest.importorskip("torch")
    to_pytorch.convert(run, tmp_path / "adapter.pth")
    mlingo_jax.load(adapter=tmp_path / "adapter.pth", mert=others / "mert", llm=corpus / "llm", dtype="float32")


@pytest.mark.parametrize("name", ["mert", "llm"])
def test_a_run_does_not_start_from_one_with_other_towers(run, corpus, others, name, tmp_path):
    values = settings(corpus, tmp_path / "next") | {"adapter.start": run, "data.features": tmp_path / "features"}
    config = as_config(values | {f"{name}.path": others / name})
    with pytest.raises(UserError, match="was trained with another"):
        set_up(config, make_mesh(config.mesh))


def test_the_rounded_checksum_is_that_of_the_tower_in_bfloat16(corpus):
    for name, role in ROLES.items():
        wide, narrow = (load_tower(corpus / name, role=role, dtype=dtype) for dtype in ("float32", "bfloat16"))
        assert wide.identity["rounded"] == narrow.identity["weights"]
        assert "rounded" not in narrow.identity
        assert weights_checksum(wide.params) == wide.identity["weights"] != narrow.identity["weights"]


def test_what_cannot_be_compared_by_weights_is_by_config(corpus):
    tower = load_tower(corpus / "llm", role="llm", dtype="float32", quantization="int4")
    identity = load_tower(corpus / "llm", role="llm", dtype="bfloat16").identity
    require_towers("run", {"llm": {"identity": tower.identity}}, llm=identity)
    # A run in float32 from before the rounded checksum was kept.
    old = {n: v for n, v in load_tower(corpus / "llm", role="llm", dtype="float32").identity.items() if n != "rounded"}
    require_towers("run", {"llm": {"identity": old}}, llm=identity)
    with pytest.raises(UserError, match="was trained with another language model"):
        require_towers("run", {"llm": {"identity": {**old, "config": "another"}}}, llm=identity)

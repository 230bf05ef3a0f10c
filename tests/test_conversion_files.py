"""Weight files: what is written is what other libraries read, and broken or dangerous files are refused in one line."""

import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from mlingo_jax.errors import UserError
from mlingo_jax.files import read_json
from mlingo_jax.weights.checkpoints import read_checkpoint, write_checkpoint
from mlingo_jax.weights.tensors import Tensor, Tensors, read_safetensors, write_safetensors
from mlingo_jax.weights.torch_files import read_torch, write_torch

torch = pytest.importorskip("torch")

ARRAYS = {
    "single": np.arange(6, dtype=np.float32).reshape(2, 3),
    "brain": np.linspace(-3, 3, 5).astype(ml_dtypes.bfloat16),
    "half": np.array([[np.inf, -0.0, 6e-8]], np.float16),
    "double": np.array(np.pi),
    "empty": np.zeros((0, 4), np.float32),
}


def at_rest(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: Tensor(array.shape, array.dtype, lambda array=array: array) for name, array in arrays.items()}


def assert_same(tensors: Tensors, arrays: dict[str, np.ndarray]) -> None:
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        read = tensors[name].read()
        assert (tensors[name].shape, tensors[name].dtype) == (read.shape, read.dtype) == (array.shape, array.dtype)
        assert read.tobytes() == array.tobytes()


def test_safetensors_are_what_the_library_reads_and_writes(tmp_path: Path):
    write_safetensors(tmp_path / "ours.safetensors", at_rest(ARRAYS))
    theirs = safetensors.numpy.load_file(tmp_path / "ours.safetensors")
    assert_same(at_rest(theirs), ARRAYS)
    safetensors.numpy.save_file(ARRAYS, tmp_path / "theirs.safetensors")
    assert_same(read_safetensors(tmp_path / "theirs.safetensors"), ARRAYS)


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8), limit=st.integers(1, 200))
def test_shards_hold_every_tensor_once_and_stay_under_the_limit(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int
):
    folder = tmp_path_factory.mktemp("shards")
    arrays = {f"t{i}": np.full(size, i, np.float32) for i, size in enumerate(sizes)}
    write_checkpoint(folder, at_rest(arrays), shard_bytes=limit, title="test")
    assert_same(read_checkpoint(folder), arrays)
    for shard in folder.glob("*.safetensors"):
        tensors = safetensors.numpy.load_file(shard)
        assert len(tensors) == 1 or sum(array.nbytes for array in tensors.values()) <= limit


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_torch_files(tmp_path: Path, zipped: bool):
    path = tmp_path / "pytorch_model.bin"
    state: dict[str, Any] = {
        "single": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "brain": torch.linspace(-3, 3, 5).to(torch.bfloat16),
        "half": torch.tensor([[torch.inf, -0.0, 6e-8]], dtype=torch.float16),
        "double": torch.tensor(np.pi, dtype=torch.float64),
        "empty": torch.zeros((0, 4)),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2),
        "embeddings.position_ids": torch.arange(3),
    }
    state["transposed"] = torch.arange(6.0).reshape(3, 2).T
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    assert_same(read_torch(path), ARRAYS | {"transposed": np.arange(6, dtype=np.float32).reshape(3, 2).T})


def test_torch_files_of_training_code(tmp_path: Path):
    write_torch(tmp_path / "ours.pth", {"model": at_rest(ARRAYS)})
    assert_same(read_torch(tmp_path / "ours.pth"), ARRAYS)
    state = torch.load(tmp_path / "ours.pth", weights_only=True)
    # As MusiLingo's runner saves it, with Adam's state and a configuration beside the model.
    torch.save(
        state | {"optimizer": {"state": {0: {"step": 1}}}, "config": {"run": {"seed": 42}}}, tmp_path / "its.pth"
    )
    assert_same(read_torch(tmp_path / "its.pth"), ARRAYS)


def write_tensors(path: Path) -> None:
    write_safetensors(path, at_rest(ARRAYS))


def write_torch_tensors(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path)


@pytest.mark.parametrize(
    ("name", "write"), [("model.safetensors", write_tensors), ("pytorch_model.bin", write_torch_tensors)]
)
@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:40], lambda b: b"", lambda b: b"\xff" * 2000])
def test_damaged_files(tmp_path: Path, name: str, write: Callable[[Path], None], damage: Callable[[bytes], bytes]):
    path = tmp_path / name
    write(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"{name}: (truncated or )?corrupt") as caught:
        read_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


class Trap:
    """Unpickled, it would make a folder."""

    def __reduce__(self):
        return os.mkdir, ("trapped",)


@pytest.mark.parametrize("dump", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state, 2))])
def test_pickled_code_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dump: Callable[..., Any]):
    monkeypatch.chdir(tmp_path)
    dump({"model": {"llama_proj.weight": Trap()}}, tmp_path / "adapter.pth")
    with pytest.raises(UserError, match=r"adapter.pth: .*holds more than tensors"):
        read_torch(tmp_path / "adapter.pth")
    assert not (tmp_path / "trapped").exists()


def test_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_torch_tensors(tmp_path / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pytorch_model.bin: needs torch: pip install 'mlingo_jax\[torch\]'"):
        read_checkpoint(tmp_path)


def index(weight_map: Any) -> str:
    return json.dumps({"weight_map": weight_map})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no weights"),
        ({"model.safetensors.index.json": index({"a": "model-1.safetensors"})}, r"not there: model-1.safetensors"),
        ({"model.safetensors.index.json": index({"a": "../model.safetensors"})}, "weight_map"),
        ({"model.safetensors.index.json": index(["a"])}, "weight_map"),
        ({"model.safetensors.index.json": '{"weight_map": '}, "not JSON"),
        ({"model.safetensors.index.json": "[]"}, "expected a JSON object, found list"),
    ],
)
def test_folders_without_all_their_weights(tmp_path: Path, files: dict[str, str], message: str):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path)


def test_a_tensor_in_two_shards(tmp_path: Path):
    for i in (1, 2):
        write_safetensors(tmp_path / f"model-{i}.safetensors", at_rest({"a": np.zeros(2)}))
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(index(weight_map))
    with pytest.raises(UserError, match=r"model-2.safetensors: holds tensors that an earlier shard holds as well: a"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "write", [safetensors.numpy.save_file, lambda s, p: torch.save({"q": torch.tensor(s["q"])}, p)]
)
def test_quantised_weights(tmp_path: Path, write: Callable[..., Any]):
    path = tmp_path / ("model.safetensors" if write is safetensors.numpy.save_file else "pytorch_model.bin")
    write({"q": np.zeros((2, 2), np.int8)}, path)
    with pytest.raises(UserError, match=r"q is stored as .*int8|q is stored as I8"):
        read_checkpoint(tmp_path)


def test_json_that_is_not_there(tmp_path: Path):
    with pytest.raises(UserError, match=r"config.json: No such file"):
        read_json(tmp_path / "config.json")


def test_a_pointer_to_a_torch_file_is_told_as_one(tmp_path: Path):
    pointer = tmp_path / "pytorch_model.bin"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 13476955136\n")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: is a git-LFS pointer, .*`hf download`"):
        read_torch(pointer)


def test_json_may_begin_with_a_byte_order_mark(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8-sig")
    assert read_json(tmp_path / "config.json") == {"model_type": "llama"}

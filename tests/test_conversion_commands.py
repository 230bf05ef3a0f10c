"""The two commands as a user meets them: exit codes, one clear line, and targets that are whole or not there."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlingo_jax.conversion import to_jax, to_pytorch
from mlingo_jax.errors import UserError
from mlingo_jax.weights.folders import carry, new_target
from tests.tiny import tiny_llama, tiny_mert


@pytest.fixture(scope="module")
def mert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mert(tmp_path_factory.mktemp("towers") / "mert")


def command(name: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", f"conversion.{name}", *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )


def test_both_commands(mert: Path, tmp_path: Path):
    there = command("to_jax", mert, tmp_path / "jax")
    assert (there.returncode, there.stderr) == (0, "")
    back = command("to_pytorch", tmp_path / "jax", tmp_path / "back")
    assert (back.returncode, back.stderr) == (0, "")
    before, after = load_file(mert / "model.safetensors"), load_file(tmp_path / "back/model.safetensors")
    assert {name: array.tobytes() for name, array in before.items()} == {n: a.tobytes() for n, a in after.items()}
    # Nothing beside the two folders, and the same rights as any folder made here.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "jax"]
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "jax").stat().st_mode == (tmp_path / "plain").stat().st_mode

    again = command("to_jax", mert, tmp_path / "jax")
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == f"error: {tmp_path / 'jax'}: is there already; name a new folder, or remove it\n"


@pytest.mark.parametrize("name", ["to_jax", "to_pytorch"])
def test_help(name: str):
    shown = command(name, "--help")
    assert shown.returncode == 0
    assert f"python -m conversion.{name}" in shown.stdout
    assert "SRC" in shown.stdout


def broken_folders(mert: Path, tmp_path: Path) -> list[tuple[Path, str]]:
    """Folders that cannot be converted, and what is said of each."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(mert, tmp_path / name))

    (tmp_path / "empty").mkdir()
    (copy("no_weights") / "model.safetensors").unlink()
    (copy("no_config") / "config.json").unlink()
    (copy("broken_config") / "config.json").write_text('{"model_type": ')
    (copy("bert") / "config.json").write_text('{"model_type": "bert"}')
    os.truncate(copy("truncated") / "model.safetensors", 5000)
    values = json.loads((mert / "config.json").read_text())
    (copy("cqt") / "config.json").write_text(json.dumps(values | {"feature_extractor_cqt": True}))
    (tmp_path / "notes.txt").write_text("not a model")
    (copy("newer") / "conversion.json").write_text('{"kind": "mert", "format": 99}')
    for name in ("peft", "gguf", "original"):
        (tmp_path / name).mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text('{"base_model_name_or_path": "vicuna"}')
    (tmp_path / "peft" / "adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "gguf" / "vicuna.Q4_K_M.gguf").write_bytes(b"GGUF")
    (tmp_path / "original" / "checkpoint_5.pth").write_bytes(b"")
    (copy("gguf_config") / "model.safetensors").rename(tmp_path / "gguf_config" / "mert.gguf")
    (copy("pointer") / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (copy("config_pointer") / "config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    return [
        (tmp_path / "peft", "is a PEFT adapter (LoRA or the like) of vicuna, no model of its own; merge it"),
        (tmp_path / "gguf", "vicuna.Q4_K_M.gguf: is llama.cpp's GGUF, which is not read here"),
        (tmp_path / "gguf" / "vicuna.Q4_K_M.gguf", "is llama.cpp's GGUF, which is not read here"),
        (tmp_path / "gguf_config", "mert.gguf: is llama.cpp's GGUF"),
        (tmp_path / "original", "has checkpoint_5.pth: for an adapter give the file itself"),
        (tmp_path / "pointer", "model.safetensors: is a git-LFS pointer, not the file itself; run `git lfs pull`"),
        (tmp_path / "config_pointer", "config.json: is a git-LFS pointer"),
        (tmp_path / "nothing", "no such file or folder"),
        (tmp_path / "empty", "the folder is empty"),
        (tmp_path / "no_weights", "no weights; expected model.safetensors or pytorch_model.bin"),
        (tmp_path / "no_config", "no config.json"),
        (tmp_path / "broken_config", "config.json: not JSON"),
        (tmp_path / "bert", "model_type is 'bert', expected one of hubert, llama"),
        (tmp_path / "truncated", "model.safetensors: truncated or corrupt"),
        (tmp_path / "cqt", "feature_extractor_cqt"),
        (tmp_path / "notes.txt", "expected a folder, or an adapter's file"),
        (tmp_path / "newer", "in format 99, expected format 1"),
    ]


def test_bad_sources(mert: Path, tmp_path: Path):
    for source, message in broken_folders(mert, tmp_path):
        with pytest.raises(UserError) as caught:
            to_jax.convert(source, tmp_path / "out")
        assert str(source) in str(caught.value)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not [path.name for path in tmp_path.iterdir() if "out" in path.name]


def test_the_wrong_direction(mert: Path, tmp_path: Path):
    to_jax.convert(mert, tmp_path / "jax")
    with pytest.raises(UserError, match="is in JAX's layout already"):
        to_jax.convert(tmp_path / "jax", tmp_path / "out")
    with pytest.raises(UserError, match="is in PyTorch's layout already"):
        to_pytorch.convert(mert, tmp_path / "out")
    (tmp_path / "jax/conversion.json").write_text('{"kind": "mert", "format": 1, "prefix": ""}')
    with pytest.raises(UserError, match=r"conversion.json: lacks copies, parametrized"):
        to_pytorch.convert(tmp_path / "jax", tmp_path / "out")


def test_targets(mert: Path, tmp_path: Path):
    adapter = {"llama_proj.weight": np.zeros((4, 3), np.float32), "llama_proj.bias": np.zeros(4, np.float32)}
    save_file(adapter, tmp_path / "adapter.safetensors")
    to_jax.convert(tmp_path / "adapter.safetensors", tmp_path / "deep/in/here")
    with pytest.raises(UserError, match=r"ends in \.pth"):
        to_pytorch.convert(tmp_path / "deep/in/here", tmp_path / "folder")
    (tmp_path / "taken.pth").write_text("mine")
    with pytest.raises(UserError, match=r"taken.pth: is there already"):
        to_pytorch.convert(tmp_path / "deep/in/here", tmp_path / "taken.pth")
    assert (tmp_path / "taken.pth").read_text() == "mine"
    # An empty folder is no obstacle.
    (tmp_path / "empty").mkdir()
    to_jax.convert(mert, tmp_path / "empty")
    assert (tmp_path / "empty/conversion.json").is_file()
    with pytest.raises(UserError, match=r"all.safetensors: an adapter is written as a .pth"):
        to_pytorch.convert(tmp_path / "empty", tmp_path / "all.safetensors")


def test_nothing_is_left_of_a_target_that_failed(tmp_path: Path):
    for folder in (True, False):
        for error in (OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError()):
            expected = UserError if isinstance(error, OSError) else type(error)
            with pytest.raises(expected):
                fail(tmp_path / "out", folder, error)
            assert not list(tmp_path.iterdir())


def test_a_place_where_nothing_can_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"file/out: not written: .*Not a directory"):
        fail(tmp_path / "file/out", True, ValueError())


def fail(target: Path, folder: bool, error: BaseException) -> None:
    with new_target(target, folder=folder) as partial:
        (partial / "half" if folder else partial).write_text("written")
        raise error


def test_a_full_disk(mert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file size limit stands for the disk; it needs a process of its own."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "from conversion.to_jax import main; from mlingo_jax.cli import run_cli; run_cli(main)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, str(mert), str(tmp_path / "out")],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1
    assert process.stderr == f"error: {tmp_path / 'out'}: not written: [Errno 27] File too large\n"
    assert not list(tmp_path.iterdir())


def test_a_killed_conversion_leaves_no_target(tmp_path: Path):
    llm = tiny_llama(tmp_path / "llm")
    slow = (
        "import time, sys; from mlingo_jax.weights import tensors; from conversion.to_jax import main;"
        "read = tensors._read_safetensor;"
        "tensors._read_safetensor = lambda *a: (time.sleep(0.2), read(*a))[1];"
        "main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow, str(llm), str(tmp_path / "out")], cwd=Path(__file__).parents[1]
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.partial/model.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    to_jax.convert(llm, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llm", "out"]


def test_files_that_go_along(tmp_path: Path):
    (tmp_path / "source/original").mkdir(parents=True)
    (tmp_path / "target").mkdir()
    goes = [
        "config.json",
        "tokenizer.model",
        "merges.txt",
        "chat_template.jinja",
        "README.md",
        "LICENSE",
        "modeling_x.py",
    ]
    stays = ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "x_fairseq.pt", "tf_model.h5"]
    for name in [*goes, *stays, "conversion.json"]:
        (tmp_path / "source" / name).write_bytes(name.encode())
    carry(tmp_path / "source", tmp_path / "target")
    assert {path.name: path.read_bytes() for path in (tmp_path / "target").iterdir()} == {n: n.encode() for n in goes}

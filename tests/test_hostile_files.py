"""Files that claim what cannot be: refused by one line, before time or memory go into what they claim."""

import io
import json
import resource
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlingo_jax.errors import UserError
from mlingo_jax.models.llama_config import LlamaConfig
from mlingo_jax.models.mert import MertConfig
from mlingo_jax.weights.folders import identify
from mlingo_jax.weights.towers import open_tower
from tests.tiny import LLAMA, MERT, tiny_llama, tiny_mert

torch = pytest.importorskip("torch")
from mlingo_jax.weights.torch_files import read_torch  # noqa: E402


@pytest.fixture
def frugal() -> Iterator[None]:
    """Takes seconds, and hundreds of megabytes at most."""
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.monotonic() - begin < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


HUGE = [10**9, 10**200, -1, 0, True, "32", 1.5, 1e400, [32], {}, "x" * 100_000]
COUNTS = {
    "llama": [
        "num_hidden_layers",
        "hidden_size",
        "vocab_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
    ],
    "mert": ["num_hidden_layers", "hidden_size", "num_attention_heads", "conv_dim", "num_conv_pos_embeddings"],
}


@pytest.mark.usefixtures("frugal")
@pytest.mark.parametrize("value", HUGE, ids=range(len(HUGE)))
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in COUNTS.items() for name in names])
def test_a_size_that_no_model_has_is_refused_at_once_by_its_name(kind, name, value):
    read, values = (LlamaConfig.from_json, LLAMA) if kind == "llama" else (MertConfig.from_json, MERT)
    with pytest.raises(UserError, match=rf"config\.json: ({name}|conv_kernel) is ") as error:
        read({**values, name: value}, "config.json")
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e31, 10**400, -1.0, "1e-6"])
def test_a_number_that_is_none_is_refused(value):
    with pytest.raises(UserError, match=r"rms_norm_eps is .*; this model can only be built where it is a number"):
        LlamaConfig.from_json({**LLAMA, "rms_norm_eps": value}, "config.json")


@pytest.mark.usefixtures("frugal")
@pytest.mark.parametrize("layers", [4096, 4097, 10**9])
def test_more_layers_than_the_weights_have_are_refused_without_building_them(tmp_path, layers):
    folder = tiny_llama(tmp_path / "llm")
    (folder / "config.json").write_text(json.dumps({**LLAMA, "num_hidden_layers": layers}))
    with pytest.raises(UserError):
        open_tower(folder, "llm")


@pytest.mark.parametrize("value", [["llama"], {"a": 1}, 5, None, "x" * 10_000])
def test_a_model_type_that_is_none_is_refused(tmp_path, value):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": value}))
    with pytest.raises(UserError, match=r"config\.json: model_type is .*, expected one of ") as error:
        identify(tmp_path)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a": ' * 100_000, "[]", "\x00", '{"model_type": 1' + "0" * 5000 + "}"]
)
def test_json_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json: (not JSON|expected a JSON object)"):
        identify(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


def said(values: dict[str, Any], read: Any) -> str:
    """Why a config is refused; nothing if it is not."""
    try:
        read(values, "config.json")
    except UserError as error:
        return str(error)
    return ""


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_config_with_anything_in_it_is_read_or_refused_in_one_line(data):
    read, values = data.draw(st.sampled_from([(LlamaConfig.from_json, LLAMA), (MertConfig.from_json, MERT)]))
    names = st.sampled_from([*values, "layer_types", "rope_scaling", "sliding_window", "head_dim", "unknown"])
    changes = data.draw(st.dictionaries(names, JSON, min_size=1, max_size=3))
    assert "\n" not in said({**values, **changes}, read)


def save(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


@pytest.mark.usefixtures("frugal")
def test_a_tensor_of_a_few_bytes_repeated_is_refused(tmp_path):
    path = save(tmp_path / "a.pth", {"llama_proj.weight": torch.zeros(1).expand(40_000, 40_000)})
    assert path.stat().st_size < 2000
    with pytest.raises(UserError, match=r"a\.pth: llama_proj\.weight claims 6,400,000,000 bytes, and the file has 4 "):
        read_torch(path)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (40_000, 40_000)),
        lambda: torch.empty(40_000, 40_000, device="meta"),
        lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
    ],
    ids=["sparse", "meta", "quantised"],
)
@pytest.mark.usefixtures("frugal")
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_without_plain_numbers_is_refused(tmp_path, make):
    with pytest.raises(UserError, match=r"a\.pth: "):
        read_torch(save(tmp_path / "a.pth", {"w": make()}))


@pytest.mark.usefixtures("frugal")
def test_a_file_that_unpacks_to_more_than_it_is_is_refused(tmp_path):
    """A zip of zeros, and a few bytes that ask the unpickler for a buffer of any size."""
    whole = save(tmp_path / "whole.pth", {"w": torch.zeros(30_000_000)})
    with zipfile.ZipFile(whole) as read, zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as written:
        for entry in read.infolist():
            written.writestr(entry.filename, read.read(entry))
    assert (tmp_path / "packed.pth").stat().st_size < 1_000_000
    with pytest.raises(UserError, match=r"packed\.pth: claims to hold more than it has bytes"):
        read_torch(tmp_path / "packed.pth")
    file = io.BytesIO()
    torch.save({"w": torch.zeros(2)}, file)
    with zipfile.ZipFile(file) as read, zipfile.ZipFile(tmp_path / "buffer.pth", "w") as written:
        for entry in read.infolist():
            asking = b"\x80\x02}X\x01\x00\x00\x00wcbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x04\x85Rs."
            written.writestr(entry.filename, asking if entry.filename.endswith("data.pkl") else read.read(entry))
    with pytest.raises(UserError, match=r"buffer\.pth: corrupt, or holds more than tensors"):
        read_torch(tmp_path / "buffer.pth")


def test_views_and_shared_tensors_are_read_as_they_are(tmp_path):
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {"whole": whole, "turned": whole.T, "part": whole[1:3, ::2], "again": whole, "none": whole[:0]}
    read = read_torch(save(tmp_path / "a.pth", state))
    for name, tensor in state.items():
        assert (read[name].read() == tensor.numpy()).all()
        assert read[name].shape == tuple(tensor.shape)


@pytest.mark.usefixtures("frugal")
def test_an_encoder_of_huge_convolutions_is_refused_by_its_weights(tmp_path):
    folder = tiny_mert(tmp_path / "mert")
    (folder / "config.json").write_text(json.dumps({**MERT, "conv_dim": [1 << 24] * 7, "conv_kernel": [1 << 20] * 7}))
    with pytest.raises(UserError):
        open_tower(folder, "encoder")

"""A folder's weights: one file or shards with an index, safetensors or torch's, as Hugging Face lays them out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from mlingo_jax.errors import UserError
from mlingo_jax.files import read_json, write_json
from mlingo_jax.weights.tensors import Tensor, Tensors, read_safetensors, write_safetensors
from mlingo_jax.weights.torch_files import read_torch, write_torch

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
Form = Literal["safetensors", "bin"]
FORMS: tuple[Form, ...] = ("safetensors", "bin")


def read_checkpoint(folder: Path) -> dict[str, Tensor]:
    """The tensors of a Hugging Face or converted folder, of its safetensors rather than of its `.bin`.

    Raises:
        UserError: there are no weights, a shard is missing, truncated or corrupt, or two hold a tensor of one name.
    """
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        shard = read_weights(path)
        if twice := sorted(shard.keys() & tensors.keys()):
            raise UserError(f"{path}: holds tensors that an earlier shard holds as well: {', '.join(twice)}")
        tensors.update(shard)
    return tensors


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, safetensors or torch's by the end of its name. Raises `UserError` if it is broken."""
    return read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder that hold its weights.

    Raises:
        UserError: there is none, or the index is broken or names a file that is not there.
    """
    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _indexed_files(index)
        if (folder / name).is_file():
            return [folder / name]
    expected = f"expected {' or '.join(WEIGHT_FILES)}, or shards of one with an index"
    raise UserError(what_it_is(folder) or f"{folder}: no weights; {expected}")


def what_it_is(folder: Path) -> str | None:
    """Of a folder that is no model: the kinds of thing that are taken for one, and what to do instead; else None."""
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        return (
            f"{folder}: is a PEFT adapter (LoRA or the like) of {base}, no model of its own; merge it into that one "
            "(peft: merge_and_unload, then save_pretrained) and give the folder that this writes"
        )
    found = {suffix: sorted(folder.glob(f"*{suffix}")) for suffix in (".gguf", ".pth", ".pt")}
    if found[".gguf"]:
        return no_gguf(found[".gguf"][0])
    if files := [*found[".pth"], *found[".pt"]]:
        names = ", ".join(file.name for file in files[:5]) + (", …" if len(files) > 5 else "")
        return f"{folder}: is no model's folder, but has {names}: for an adapter give the file itself, as {files[-1]}"
    return None


def no_gguf(file: Path) -> str:
    """What to do about a file of llama.cpp's."""
    return (
        f"{file}: is llama.cpp's GGUF, which is not read here; give the model's Hugging Face folder (config.json, "
        "safetensors, tokenizer), and --config.llm.quantization or --quantization for small weights"
    )


def _indexed_files(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    names = weight_map.values() if isinstance(weight_map, dict) else [""]
    if not all(isinstance(name, str) and name and Path(name).name == name for name in names):
        raise UserError(
            f"{index}: its weight_map does not name a file of this folder for each tensor; download it again"
        )
    files = sorted({index.parent / name for name in names})
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(f"{index}: names files that are not there: {', '.join(missing)}; download them")
    return files


def write_checkpoint(
    folder: Path, tensors: Tensors, *, shard_bytes: int, title: str, form: Form = "safetensors"
) -> None:
    """Writes `model.safetensors`, or shards of at most `shard_bytes` (or of one larger tensor) with an index.

    In the form "bin" they are `pytorch_model.bin` and the like, each held in memory while it is written. Shows a
    progress bar named `title` where there is a terminal.
    """
    shards = list(_split(tensors, shard_bytes))
    whole = WEIGHT_FILES[FORMS.index(form)]
    stem, _, suffix = whole.partition(".")
    files = [f"{stem}-{i:05}-of-{len(shards):05}.{suffix}" for i in range(1, len(shards) + 1)]
    files = files if len(files) > 1 else [whole]
    size = sum(tensor.nbytes for tensor in tensors.values())
    with tqdm(total=size, unit="B", unit_scale=True, desc=title, disable=None) as progress:
        for file, shard in zip(files, shards, strict=True):
            if form == "safetensors":
                write_safetensors(folder / file, shard, progress.update)
            else:
                write_torch(folder / file, shard)
                progress.update(sum(tensor.nbytes for tensor in shard.values()))
    if len(files) > 1:
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_json(folder / f"{whole}.index.json", index)


def _split(tensors: Tensors, limit: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    filled = 0
    for name, tensor in tensors.items():
        if shard and filled + tensor.nbytes > limit:
            yield shard
            shard, filled = {}, 0
        shard[name] = tensor
        filled += tensor.nbytes
    yield shard

"""The frozen towers at rest: whatever the files look like, opening gives the tensors by Flax's names and layout.

The layouts: a Hugging Face folder (with or without a prefix before its names, in either spelling of weight norm), a
Vicuna delta over its base, a released MusiLingo folder that holds both towers, and what `conversion.to_jax` writes.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx

from conversion import llama, mert, released
from conversion.checkpoints import read_checkpoint, read_json
from conversion.delta import add_delta, is_delta
from conversion.folders import RECORD, Found, carry, find, identify
from conversion.keymap import Entry, Rule, check, entries, parameters, to_flax, to_torch
from conversion.tensors import Tensor, Tensors
from mlingo_jax.errors import UserError
from mlingo_jax.models.llama import Llama, LlamaConfig
from mlingo_jax.models.mert import Mert, MertConfig

TowerName = Literal["mert", "llama"]

# Two spellings of torch's weight norm, gain and direction: before its version 2 and since.
PARAMETRIZED = {
    ".parametrizations.weight.original0": ".weight_g",
    ".parametrizations.weight.original1": ".weight_v",
}


@dataclasses.dataclass(frozen=True)
class TowerKind:
    """What tells one tower from the other.

    Attributes:
        name: the kind, as in `conversion.json`.
        config: reads config.json.
        model: the network, made of a config.
        rules: its table of names and layouts.
        anchor: the end of a tensor's name that every such model has once; what stands before it is the prefix.
        inner: the prefix that the table's own names have there.
        prefixes: prefixes that transformers writes and reads itself; they are kept on the way back, others dropped.
        copies: tensors that some files repeat under another name, and the tensors they repeat (tied embeddings).
    """

    name: TowerName
    config: Callable[[Mapping[str, Any], str], MertConfig | LlamaConfig]
    model: Callable[..., nnx.Module]
    rules: tuple[Rule, ...]
    anchor: str
    inner: str
    prefixes: tuple[str, ...]
    copies: Mapping[str, str]


MERT = TowerKind(
    name="mert",
    config=MertConfig.from_json,
    model=Mert,
    rules=mert.RULES,
    anchor="feature_projection.projection.weight",
    inner="",
    prefixes=("", "hubert."),
    copies={},
)
LLAMA = TowerKind(
    name="llama",
    config=LlamaConfig.from_json,
    model=Llama,
    rules=llama.RULES,
    anchor="embed_tokens.weight",
    inner="model.",
    prefixes=("model.", ""),
    copies={"lm_head.weight": "model.embed_tokens.weight"},
)
KINDS: dict[TowerName, TowerKind] = {"mert": MERT, "llama": LLAMA}


@dataclasses.dataclass(frozen=True)
class Naming:
    """How a checkpoint's names differ from its table's.

    Attributes:
        prefix: stands before the anchor, where the table has `TowerKind.inner`.
        parametrized: weight norm is spelled `parametrizations.weight.original0`, not `weight_g`.
        copies: the repeated tensors it has.
    """

    prefix: str
    parametrized: bool
    copies: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class OpenTower:
    """A tower's config and weights, none of them read yet.

    Attributes:
        kind: which tower.
        source: where it was found, for messages.
        files: the folder of its config, tokenizer and preprocessor files; None where the layout has none.
        values: its config.json.
        config: the same, understood.
        model: the network in the abstract: shapes and axes, no arrays.
        entries: all its tensors, on both sides.
        tensors: the weights, by Flax's names and in Flax's layout.
        naming: how PyTorch's side of it spells the names.
    """

    kind: TowerKind
    source: Path
    files: Path | None
    values: Mapping[str, Any]
    config: MertConfig | LlamaConfig
    model: nnx.Module
    entries: list[Entry]
    tensors: dict[str, Tensor]
    naming: Naming

    def torch_tensors(self) -> dict[str, Tensor]:
        """The weights by PyTorch's names, spelled as they were found, and in PyTorch's layout."""
        tensors = to_torch(self.entries, self.tensors, str(self.source))
        for copy in self.naming.copies:
            tensors[copy] = tensors[self.kind.copies[copy]]
        return {_spell(name, self.naming, self.kind): tensor for name, tensor in tensors.items()}

    def bare(self) -> "OpenTower":
        """The same tower with no prefix of its own before PyTorch's names, as it stands inside a MusiLingo."""
        return dataclasses.replace(self, naming=dataclasses.replace(self.naming, prefix=self.kind.inner))

    def write_files(self, folder: Path) -> None:
        """Writes the files that go along with the weights: config.json, tokenizer, preprocessor."""
        if self.files is None:
            released.write_files(self.kind.name, self.values, folder)
        else:
            carry(self.files, folder)

    def config_hash(self) -> str:
        """SHA-256 of config.json's values, whatever their order."""
        return sha256(json.dumps(self.values, sort_keys=True).encode()).hexdigest()


def open_tower(source: Path, name: TowerName, base: str | Path | None = None) -> OpenTower:
    """Opens a tower in any of its layouts; `base` is the LLaMA folder under a Vicuna delta.

    Raises:
        UserError: the folder holds something else, a weight file is broken, the config asks for what is not built here,
            or tensors are missing, left over or of the wrong shape (all are listed).
    """
    kind, found = KINDS[name], identify(source)
    if found.kind not in (name, "musilingo") or found.layout == "run":
        raise UserError(f"{source}: holds {_describe(found)}, expected a {name} model")
    if found == Found("musilingo", "jax"):
        return open_tower(source / released.PARTS[name].folder, name)
    if found.layout == "jax":
        return _open_converted(source, kind)
    if found.kind == "musilingo":
        part = released.read_part(source, name)
        return _open_torch(kind, part.source, part.files, part.values, part.tensors, base)
    return _open_torch(kind, source, source, read_json(source / "config.json"), read_checkpoint(source), base)


def _describe(found: Found) -> str:
    return "a training run" if found.layout == "run" else f"a {found.kind} model"


def _open_converted(folder: Path, kind: TowerKind) -> OpenTower:
    record = read_json(folder / RECORD)
    if missing := {"prefix", "parametrized", "copies"} - record.keys():
        raise UserError(f"{folder / RECORD}: lacks {', '.join(sorted(missing))}; convert the model again")
    naming = Naming(record["prefix"], record["parametrized"], tuple(record["copies"]))
    values = read_json(folder / "config.json")
    config, model, table = _build(kind, values, folder / "config.json")
    tensors = read_checkpoint(folder)
    check({entry.flax: entry.flax_shape for entry in table}, tensors, str(folder))
    return OpenTower(kind, folder, folder, values, config, model, table, tensors, naming)


def _open_torch(
    kind: TowerKind,
    source: Path,
    files: Path | None,
    values: Mapping[str, Any],
    tensors: Tensors,
    base: str | Path | None,
) -> OpenTower:
    config, model, table = _build(kind, values, source / "config.json")
    naming, tensors = _canonical(kind, tensors, source)
    if base is not None:
        tensors = _merge(kind, tensors, source, find(base))
    elif kind is LLAMA and is_delta(tensors):
        raise UserError(
            f"{source}: its language model is a delta (its last norm's mean is 0): to be added to LLaMA's weights, and "
            "of no use alone; run python -m conversion.to_jax with --base LLAMA_FOLDER"
        )
    naming, tensors = _drop_copies(kind, naming, tensors, table)
    return OpenTower(kind, source, files, values, config, model, table, to_flax(table, tensors, str(source)), naming)


def _build(kind: TowerKind, values: Mapping[str, Any], source: Path) -> tuple[Any, nnx.Module, list[Entry]]:
    config = kind.config(values, str(source))
    model = nnx.eval_shape(lambda: kind.model(config, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    return config, model, entries(kind.rules, parameters(model))


def _canonical(kind: TowerKind, tensors: Tensors, source: Path) -> tuple[Naming, dict[str, Tensor]]:
    """The tensors by the table's names, and how they were spelled."""
    anchors = [name for name in tensors if name.endswith(kind.anchor)]
    if len(anchors) != 1:
        raise UserError(f"{source}: {len(anchors)} tensors named …{kind.anchor}, expected 1: no {kind.name} model")
    prefix = anchors[0].removesuffix(kind.anchor)
    parametrized = any(name.endswith(tuple(PARAMETRIZED)) for name in tensors)
    names = {name: _plain(name, prefix, kind) for name in tensors}
    if len(set(names.values())) < len(names):
        twice = [name for name in names if list(names.values()).count(names[name]) > 1]
        raise UserError(f"{source}: spells the same tensors twice: {', '.join(twice)}")
    kept = prefix if prefix in kind.prefixes else kind.inner
    return Naming(kept, parametrized), {names[name]: tensor for name, tensor in tensors.items()}


def _plain(name: str, prefix: str, kind: TowerKind) -> str:
    """A checkpoint's name -> the table's."""
    for spelled, plain in PARAMETRIZED.items():
        name = name.removesuffix(spelled) + plain if name.endswith(spelled) else name
    if prefix.endswith(kind.inner):  # The prefix goes round the whole model, its head included.
        return name.removeprefix(prefix.removesuffix(kind.inner))
    return kind.inner + name.removeprefix(prefix)


def _spell(name: str, naming: Naming, kind: TowerKind) -> str:
    """The table's name -> the checkpoint's."""
    if naming.parametrized:
        for spelled, plain in PARAMETRIZED.items():
            name = name.removesuffix(plain) + spelled if name.endswith(plain) else name
    return naming.prefix + name.removeprefix(kind.inner) if name.startswith(kind.inner) else name


def _merge(kind: TowerKind, delta: Tensors, source: Path, base: Path) -> dict[str, Tensor]:
    if kind is not LLAMA or not is_delta(delta):
        raise UserError(f"{source}: is not a delta (its last norm's mean is far from 0); convert it without --base")
    if identify(base) != Found("llama", "torch"):
        raise UserError(f"{base}: expected a LLaMA folder in Hugging Face's layout")
    _, tensors = _canonical(LLAMA, read_checkpoint(base), base)
    return add_delta(tensors, delta, str(base))


def _drop_copies(
    kind: TowerKind, naming: Naming, tensors: Tensors, table: list[Entry]
) -> tuple[Naming, dict[str, Tensor]]:
    known = {entry.torch for entry in table}
    copies = tuple(
        copy
        for copy, original in kind.copies.items()
        if copy in tensors and copy not in known and _same(tensors[copy], tensors[original])
    )
    kept = {name: tensor for name, tensor in tensors.items() if name not in copies}
    return dataclasses.replace(naming, copies=copies), kept


def _same(a: Tensor, b: Tensor) -> bool:
    bits = np.dtype(f"u{a.dtype.itemsize}")
    return (a.shape, a.dtype) == (b.shape, b.dtype) and np.array_equal(a.read().view(bits), b.read().view(bits))

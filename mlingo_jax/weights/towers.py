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

from mlingo_jax.errors import UserError
from mlingo_jax.files import read_json
from mlingo_jax.models.encoder import EncoderArchitecture
from mlingo_jax.models.llama import Llama
from mlingo_jax.models.llama_config import LlamaConfig
from mlingo_jax.models.mert import Mert
from mlingo_jax.models.mert_config import MertConfig
from mlingo_jax.weights import llama, mert, released
from mlingo_jax.weights.checkpoints import read_checkpoint
from mlingo_jax.weights.folders import MODEL_TYPES, RECORD, Found, TowerKindName, identify
from mlingo_jax.weights.keymap import Entry, Rule, check, entries, parameters, to_flax, to_torch
from mlingo_jax.weights.naming import Names, Naming, canonical, drop_copies, spell
from mlingo_jax.weights.tensors import Tensor, Tensors

Role = Literal["encoder", "llm"]
Merge = Callable[[Tensors, Path], dict[str, Tensor]]
# A model's last norm starts at 1 and its mean stays far from 0; that of a difference between models is near 0.
DELTA_BELOW = 0.05


@dataclasses.dataclass(frozen=True)
class TowerKind:
    """A kind of tower: what differs between kinds stands here, and in the modules it names.

    Attributes:
        name: the kind, as in `conversion.json`.
        role: what it is in a MusiLingo.
        architecture: reads config.json.
        model: the network, made of a config.
        rules: its table of names and layouts.
        names: how PyTorch's names may differ from the table's.
    """

    name: TowerKindName
    role: Role
    architecture: type[MertConfig] | type[LlamaConfig]
    model: Callable[..., nnx.Module]
    rules: tuple[Rule, ...]
    names: Names


MERT = TowerKind(
    name="mert",
    role="encoder",
    architecture=MertConfig,
    model=Mert,
    rules=mert.RULES,
    names=Names(anchor="feature_projection.projection.weight", inner="", prefixes=("", "hubert."), copies={}),
)
LLAMA = TowerKind(
    name="llama",
    role="llm",
    architecture=LlamaConfig,
    model=Llama,
    rules=llama.RULES,
    names=Names(
        anchor="embed_tokens.weight",
        inner="model.",
        prefixes=("model.", ""),
        copies={"lm_head.weight": "model.embed_tokens.weight"},
    ),
)
KINDS: dict[TowerKindName, TowerKind] = {"mert": MERT, "llama": LLAMA}
# In messages.
ROLES: Mapping[Role, str] = {"encoder": "an encoder", "llm": "a language model"}


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
    config: Any
    model: nnx.Module
    entries: list[Entry]
    tensors: dict[str, Tensor]
    naming: Naming

    def torch_tensors(self) -> dict[str, Tensor]:
        """The weights by PyTorch's names, spelled as they were found, and in PyTorch's layout."""
        tensors = to_torch(self.entries, self.tensors, str(self.source))
        return spell(tensors, self.naming, self.kind.names)

    def bare(self) -> "OpenTower":
        """The same tower with no prefix of its own before PyTorch's names, as it stands inside a MusiLingo."""
        return dataclasses.replace(self, naming=dataclasses.replace(self.naming, prefix=self.kind.names.inner))

    def config_hash(self) -> str:
        """SHA-256 of config.json's values, whatever their order."""
        return sha256(json.dumps(self.values, sort_keys=True).encode()).hexdigest()


def read_architecture(values: Mapping[str, Any], source: str, role: Role) -> Any:
    """The architecture that a tower's config.json describes, by its `model_type`; `source` is its name, for messages.

    Raises:
        UserError: the model is of no kind that is built here, or has another role.
    """
    return _kind(values, source, role).architecture.from_json(values, source)


def network(architecture: EncoderArchitecture | LlamaConfig) -> Callable[..., nnx.Module]:
    """The network of an architecture: called with it, a dtype and rngs, it is made."""
    return next(kind.model for kind in KINDS.values() if isinstance(architecture, kind.architecture))


def open_tower(source: Path, role: Role, merge: Merge | None = None) -> OpenTower:
    """Opens a tower in any of its layouts. Of which kind it is, its config.json says.

    `merge` makes weights of a language model's that are a delta: of PyTorch's tensors and the folder they are from.

    Raises:
        UserError: the folder holds something else, a weight file is broken, the config asks for what is not built here,
            or tensors are missing, left over or of the wrong shape (all are listed).
    """
    found = identify(source)
    if found == Found("musilingo", "jax"):
        return open_tower(source / released.PARTS[role].folder, role)
    if found == Found("musilingo", "torch"):
        part = released.read_part(source, role)
        kind = _kind(part.values, str(part.source), role)
        return _open_torch(kind, part.source, part.files, part.values, part.tensors, merge)
    kind = None if found.layout == "run" else next((k for k in KINDS.values() if k.name == found.kind), None)
    if kind is None or kind.role != role:
        raise UserError(f"{source}: holds {_describe(found)}, expected {ROLES[role]}")
    if found.layout == "jax":
        return _open_converted(source, kind)
    values = read_json(source / "config.json")
    # What is not built here is told by its name before its tensors are looked at.
    kind.architecture.from_json(values, str(source / "config.json"))
    return _open_torch(kind, source, source, values, read_checkpoint(source), merge)


def is_delta(tensors: Tensors) -> bool:
    """Whether a language model's weights are only a difference (Vicuna's first releases): its last norm shows it."""
    norm = tensors.get("model.norm.weight")
    return norm is not None and abs(float(norm.read().astype(np.float32).mean())) < DELTA_BELOW


def _kind(values: Mapping[str, Any], source: str, role: Role) -> TowerKind:
    """The kind of a tower with this config.json."""
    model_type = values.get("model_type")
    found = MODEL_TYPES.get(model_type) if isinstance(model_type, str) else None
    kind = next((kind for kind in KINDS.values() if kind.name == found), None)
    if kind is None or kind.role != role:
        known = ", ".join(name for name, kind in MODEL_TYPES.items() if kind in KINDS and KINDS[kind].role == role)
        found = str(model_type)[:80]
        raise UserError(f"{source}: model_type is {found!r}, expected that of {ROLES[role]}: one of {known}")
    return kind


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
    merge: Merge | None,
) -> OpenTower:
    config, model, table = _build(kind, values, source / "config.json")
    naming, tensors = canonical(tensors, kind.names, source)
    if merge is not None:
        tensors = merge(tensors, source)
    elif kind is LLAMA and is_delta(tensors):
        raise UserError(
            f"{source}: its language model is a delta (its last norm's mean is 0): to be added to LLaMA's weights, and "
            "of no use alone; run python -m conversion.to_jax with --base LLAMA_FOLDER"
        )
    naming, tensors = drop_copies(tensors, naming, kind.names, {entry.torch for entry in table})
    return OpenTower(kind, source, files, values, config, model, table, to_flax(table, tensors, str(source)), naming)


def _build(kind: TowerKind, values: Mapping[str, Any], source: Path) -> tuple[Any, nnx.Module, list[Entry]]:
    config = kind.architecture.from_json(values, str(source))
    model = nnx.eval_shape(lambda: kind.model(config, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    return config, model, entries(kind.rules, parameters(model))

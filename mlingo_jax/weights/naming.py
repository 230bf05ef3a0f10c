"""How a checkpoint's names may differ from its table's: a prefix, the spelling of weight norm, tensors stored twice."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from mlingo_jax.errors import UserError
from mlingo_jax.weights.tensors import Tensor, Tensors

# Two spellings of torch's weight norm, gain and direction: since its version 2 and before.
PARAMETRIZED = {
    ".parametrizations.weight.original0": ".weight_g",
    ".parametrizations.weight.original1": ".weight_v",
}


@dataclasses.dataclass(frozen=True)
class Names:
    """What is known of the names of one kind of model.

    Attributes:
        anchor: the end of a tensor's name that every such model has once; what stands before it is the prefix.
        inner: the prefix that the table's own names have there.
        prefixes: prefixes that transformers writes and reads itself; they are kept on the way back, others dropped.
        copies: tensors that some files repeat under another name, and the tensors they repeat (tied embeddings).
    """

    anchor: str
    inner: str
    prefixes: tuple[str, ...]
    copies: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Naming:
    """How one checkpoint's names differ from its table's.

    Attributes:
        prefix: stands before the anchor, where the table has `Names.inner`.
        parametrized: weight norm is spelled `parametrizations.weight.original0`, not `weight_g`.
        copies: the repeated tensors it has.
    """

    prefix: str
    parametrized: bool
    copies: tuple[str, ...] = ()


def canonical(tensors: Tensors, names: Names, source: Path) -> tuple[Naming, dict[str, Tensor]]:
    """The tensors by the table's names, and how they were spelled.

    Raises:
        UserError: it is another kind of model, or one tensor stands there in two spellings.
    """
    anchors = [name for name in tensors if name.endswith(names.anchor)]
    if len(anchors) != 1:
        raise UserError(f"{source}: {len(anchors)} tensors named …{names.anchor}, expected 1: another kind of model")
    prefix = anchors[0].removesuffix(names.anchor)
    plain = {name: _plain(name, prefix, names) for name in tensors}
    if len(set(plain.values())) < len(plain):
        twice = [name for name in plain if list(plain.values()).count(plain[name]) > 1]
        raise UserError(f"{source}: spells the same tensors twice: {', '.join(twice)}")
    naming = Naming(
        prefix=prefix if prefix in names.prefixes else names.inner,
        parametrized=any(name.endswith(tuple(PARAMETRIZED)) for name in tensors),
    )
    return naming, {plain[name]: tensor for name, tensor in tensors.items()}


def _plain(name: str, prefix: str, names: Names) -> str:
    """A checkpoint's name -> the table's."""
    for spelled, plain in PARAMETRIZED.items():
        name = name.removesuffix(spelled) + plain if name.endswith(spelled) else name
    if prefix.endswith(names.inner):  # What stands before `inner` goes round the whole model, its head included.
        return name.removeprefix(prefix.removesuffix(names.inner))
    return names.inner + name.removeprefix(prefix)


def drop_copies(
    tensors: Tensors, naming: Naming, names: Names, expected: Iterable[str]
) -> tuple[Naming, dict[str, Tensor]]:
    """Leaves out what only repeats another tensor bit by bit, and is not expected as a tensor of its own."""
    copies = tuple(
        copy
        for copy, original in names.copies.items()
        if copy in tensors and copy not in expected and _same(tensors[copy], tensors[original])
    )
    kept = {name: tensor for name, tensor in tensors.items() if name not in copies}
    return dataclasses.replace(naming, copies=copies), kept


def _same(a: Tensor, b: Tensor) -> bool:
    bits = np.dtype(f"u{a.dtype.itemsize}")
    return (a.shape, a.dtype) == (b.shape, b.dtype) and np.array_equal(a.read().view(bits), b.read().view(bits))


def spell(tensors: Tensors, naming: Naming, names: Names) -> dict[str, Tensor]:
    """The way back of `canonical` and `drop_copies`."""
    copies = {copy: tensors[names.copies[copy]] for copy in naming.copies}
    return {_spelled(name, naming, names): tensor for name, tensor in {**tensors, **copies}.items()}


def _spelled(name: str, naming: Naming, names: Names) -> str:
    """The table's name -> the checkpoint's."""
    if naming.parametrized:
        for spelled, plain in PARAMETRIZED.items():
            name = name.removesuffix(plain) + spelled if name.endswith(plain) else name
    return naming.prefix + name.removeprefix(names.inner) if name.startswith(names.inner) else name

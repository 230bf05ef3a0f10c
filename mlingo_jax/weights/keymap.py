"""The engine: tables of rules that say where a PyTorch checkpoint's tensors stand in a Flax model, and how they lie.

A table is data (`mlingo_jax/weights/mert.py`, `llama.py`, `adapter.py`) and is read in both directions. The Flax side
is the truth on shapes: each parameter names its axes by letters, so a pattern is enough to know the shape in PyTorch as
well.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from einops import rearrange
from flax import nnx

from mlingo_jax.errors import UserError
from mlingo_jax.weights.tensors import Shape, Tensor, Tensors
from mlingo_jax.wording import counted


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table, e.g. `Rule("layers.{l}.q_proj.weight", "layers.query.kernel", "(N H) D -> N D H")`.

    Attributes:
        torch: PyTorch's name. `{l}` is the slot on the leading axis L of a stacked Flax parameter.
        flax: the parameter's dotted path. `{i}`, here and in `torch`, is an index of a list of modules.
        pattern: in einops' language, PyTorch's axes -> Flax's: the parameter's own letters without L.
    """

    torch: str
    flax: str
    pattern: str


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter of an abstract model: its path, its axes' letters and its shape."""

    path: tuple[str | int, ...]
    axes: str
    shape: Shape

    @property
    def name(self) -> str:
        """The dotted path."""
        return ".".join(map(str, self.path))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor, on both sides: `torch` of `torch_shape` is slot `layer` (None: the whole) of `parameter`."""

    torch: str
    torch_shape: Shape
    parameter: Parameter
    layer: int | None
    pattern: str

    @property
    def flax(self) -> str:
        """The tensor's name in a converted folder: the parameter's, and a stacked one's with its slot: `layers.7.…`."""
        if self.layer is None:
            return self.parameter.name
        stack, _, rest = self.parameter.name.partition(".")
        return f"{stack}.{self.layer}.{rest}"

    @property
    def flax_shape(self) -> Shape:
        """The tensor's shape in Flax's layout, without L."""
        return self.parameter.shape if self.layer is None else self.parameter.shape[1:]

    def to_flax(self, array: np.ndarray) -> np.ndarray:
        """PyTorch's layout to Flax's; the dtype stays."""
        return rearrange(array, self.pattern, **self._sizes())

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Flax's layout to PyTorch's; the dtype stays."""
        left, right = self.pattern.split("->")
        return rearrange(array, f"{right} -> {left}", **self._sizes())

    def _sizes(self) -> dict[str, int]:
        return _axis_sizes(self.parameter)


def parameters(model: nnx.Module) -> list[Parameter]:
    """The parameters of a model made under `nnx.eval_shape` (or of a real one), in the order of its state."""
    flat: Any = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return [Parameter(tuple(path), p.get_metadata("axes"), p.get_value().shape) for path, p in flat]


def entries(rules: Iterable[Rule], params: Iterable[Parameter]) -> list[Entry]:
    """Every tensor of a model, once, by a table. Rules for parameters which this model has not are passed over.

    Raises:
        ValueError: the table is wrong: a parameter without a rule or with two, or a pattern that does not fit its axes.
    """
    rules = list(rules)
    found: list[Entry] = []
    for parameter in params:
        matches = [(rule, match) for rule in rules if (match := _flax_regex(rule).fullmatch(parameter.name))]
        if len(matches) != 1:
            raise ValueError(f"{parameter.name}: {len(matches)} rules, expected one")
        rule, match = matches[0]
        found.extend(_expand(rule, parameter, match.groupdict()))
    return found


def to_flax(table: Iterable[Entry], tensors: Tensors, source: str) -> dict[str, Tensor]:
    """A PyTorch checkpoint's tensors as Flax's, none of them read yet; `source` names the checkpoint in messages.

    Raises:
        UserError: listing every tensor that is missing, left over or of the wrong shape.
    """
    by_name = {entry.torch: entry for entry in table}
    check({name: entry.torch_shape for name, entry in by_name.items()}, tensors, source)
    return {by_name[n].flax: tensor.map(by_name[n].to_flax, by_name[n].flax_shape) for n, tensor in tensors.items()}


def to_torch(table: Iterable[Entry], tensors: Tensors, source: str) -> dict[str, Tensor]:
    """The way back of `to_flax`."""
    by_name = {entry.flax: entry for entry in table}
    check({name: entry.flax_shape for name, entry in by_name.items()}, tensors, source)
    return {by_name[n].torch: tensor.map(by_name[n].to_torch, by_name[n].torch_shape) for n, tensor in tensors.items()}


def check(expected: Mapping[str, Shape], found: Tensors, source: str) -> None:
    """Every expected tensor is there once, in its shape, and nothing else is.

    Raises:
        UserError: listing the tensors of which that is not so, those of like layers in one line.
    """
    problems = [("missing: ", name, f" {list(expected[name])}") for name in expected if name not in found]
    problems += [("left over: ", name, f" {list(found[name].shape)}") for name in found if name not in expected]
    problems += [
        ("wrong shape: ", name, f" is {list(found[name].shape)}, expected {list(shape)}")
        for name, shape in expected.items()
        if name in found and found[name].shape != shape
    ]
    if problems:
        lines = "\n  ".join(_by_layers(problems))
        raise UserError(f"{source}: {counted(len(problems), 'tensor')} not as config.json has them\n  {lines}")


def _by_layers(problems: Iterable[tuple[str, str, str]]) -> list[str]:
    """A line for each (what, name, shapes), or for all of them whose names differ in numbers alone."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for what, name, shapes in problems:
        alike.setdefault((what, re.sub(r"\b\d+\b", "*", name), shapes), []).append(name)
    return [
        f"{what}{names[0]}{shapes}" if len(names) == 1 else f"{what}{pattern}{shapes} ({len(names)} of them)"
        for (what, pattern, shapes), names in alike.items()
    ]


def _flax_regex(rule: Rule) -> re.Pattern[str]:
    return re.compile(re.escape(rule.flax).replace(r"\{i\}", r"(?P<i>\d+)"))


def _axis_sizes(parameter: Parameter) -> dict[str, int]:
    return {a: n for a, n in zip(parameter.axes, parameter.shape, strict=True) if a != "L"}


def _expand(rule: Rule, parameter: Parameter, index: Mapping[str, Any]) -> Iterator[Entry]:
    stacked = "{l}" in rule.torch
    left, right = rule.pattern.split("->")
    if parameter.axes != "L" * stacked + "".join(right.split()):
        raise ValueError(f"{rule}: the parameter's axes are {parameter.axes}")
    sizes = _axis_sizes(parameter)
    groups = re.findall(r"\([^)]*\)|\S+", left)
    shape = tuple(math.prod(sizes[a] for a in group.strip("()").split() if a != "1") for group in groups)
    for layer in range(parameter.shape[0]) if stacked else [None]:
        yield Entry(rule.torch.format(l=layer, **index), shape, parameter, layer, rule.pattern)

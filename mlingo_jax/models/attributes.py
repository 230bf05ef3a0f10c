"""Reading a model's config.json so that nothing in it is overlooked."""

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from types import UnionType
from typing import Any, NoReturn, TypeVar

from mlingo_jax.errors import UserError

Value = TypeVar("Value")

# No model that there is comes near to these. A file may claim anything, and what follows from it takes time and memory
# before its weights show that it is not so.
MOST = 1 << 24
MOST_LAYERS = 1 << 12
_MOST_NUMBER = 1e30
# What `mlingo_jax.models.layers` computes by these names of transformers'.
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2", "silu", "swish")
_SHOWN = 80


class Attributes:
    """The attributes of a config.json, read one by one, each with its check; `finish` refuses what nobody read.

    `source` is the file's name, for messages. An attribute that is null counts as absent, as it does in transformers;
    an absent one has the value that `when_absent` gives it. Whatever is not as asked for raises UserError.
    """

    def __init__(self, values: Mapping[str, Any], source: str, when_absent: Mapping[str, Any]):
        present = {name: value for name, value in values.items() if value is not None}
        self.values = {**when_absent, **present}
        self.source = source
        self.seen: set[str] = set()

    def get(self, name: str) -> Any:
        """The value as it stands; None if absent."""
        self.seen.add(name)
        return self.values.get(name)

    def only(self, name: str, *allowed: Value) -> Value:
        """One of the allowed values."""
        return self._take(name, lambda v: v in allowed, " or ".join(map(repr, allowed)))

    def flag(self, name: str) -> bool:
        """True or false."""
        return self._take(name, lambda v: isinstance(v, bool), "true or false")

    def number(self, name: str, *, least: float = 0.0) -> float:
        """A finite number, not below `least`."""
        expected = f"a number, at least {least}"
        return float(self._take(name, lambda v: _is_number(v, int | float, least, _MOST_NUMBER), expected))

    def count(self, name: str, *, least: int = 1, most: int = MOST) -> int:
        """An integer from `least` to `most`."""
        return self._take(name, lambda v: _is_number(v, int, least, most), f"an integer from {least} to {most}")

    def counts(self, name: str) -> tuple[int, ...]:
        """A list of positive integers, not empty, no longer than a model has layers."""

        def is_right(value: Any) -> bool:
            is_list = isinstance(value, list | tuple) and 0 < len(value) <= MOST_LAYERS
            return is_list and all(_is_number(n, int, 1, MOST) for n in value)

        return tuple(self._take(name, is_right, f"a list of integers from 1 to {MOST}"))

    def refuse(self, name: str, expected: str) -> NoReturn:
        """Raises UserError: this attribute should have been something else."""
        found = f"{name} is {_shown(self.values[name])}" if name in self.values else f"{name} is missing"
        raise UserError(f"{self.source}: {found}; this model can only be built where it is {expected}")

    def finish(self, harmless: Iterable[str]) -> None:
        """Refuses attributes that were not read and match none of the `harmless` names (`*` stands for anything)."""
        harmless = tuple(harmless)
        for name, value in self.values.items():
            if name not in self.seen and not any(fnmatchcase(name, pattern) for pattern in harmless):
                raise UserError(
                    f"{self.source}: {name} is {_shown(value)}, an attribute unknown here; "
                    "take it out of the file only if it does not change what the model computes"
                )

    def _take(self, name: str, is_right: Callable[[Any], bool], expected: str) -> Any:
        value = self.get(name)
        return value if name in self.values and is_right(value) else self.refuse(name, expected)


def _is_number(value: Any, kind: type | UnionType, least: int | float, most: int | float) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and least <= value <= most


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"

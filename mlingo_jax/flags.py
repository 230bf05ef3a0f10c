"""From the command line to a run's settings: `--config=NAME` and typed overrides `--config.optim.lr=1e-4`."""

import dataclasses
import json
import textwrap
import types
import typing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlingo_jax.differences import FORMER_NAMES
from mlingo_jax.errors import UserError
from mlingo_jax.recipes import load_config, recipe_names, summary
from mlingo_jax.settings import Config
from mlingo_jax.wording import nearest

HELP = ("--help", "-h", "--helpfull")
# Of the text of --help, in characters.
_WIDTH = 112


@dataclasses.dataclass(frozen=True)
class Field:
    """One setting of a config: its dotted name, where it lives, its type, value, and the metadata of `setting`."""

    name: str
    owner: Any
    attribute: str
    kind: Any
    metadata: Mapping[str, Any]

    @property
    def value(self) -> Any:
        return getattr(self.owner, self.attribute)


def fields(config: Any, prefix: str = "") -> Iterator[Field]:
    """All settings of a config, those of the dataclasses within it included, in the order of their definition."""
    kinds = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{prefix}{field.name}.")
        else:
            yield Field(f"{prefix}{field.name}", config, field.name, kinds[field.name], field.metadata)


def read_config(argv: Sequence[str]) -> Config:
    """The config that `--config=NAME` names, with the command line's overrides, checked.

    Args:
        argv: the command line without the program's name; `--config.a.b=v` and `--config.a.b v` are the same.

    Raises:
        UserError: no or an unknown config, an unknown field, a value of the wrong type or out of its range.
    """
    name, overrides = _parse(argv)
    config = load_config(name)
    known = {field.name: field for field in fields(config)}
    for given, text in overrides:
        key = ".".join(FORMER_NAMES.get(part, part) for part in given.split("."))
        if key != given and key in known:
            warnings.warn(f"--config.{given} is now called --config.{key}", stacklevel=2)
        if key not in known:
            raise UserError(f"--config.{key}: config {name} has no such field{nearest(key, known)}")
        field = known[key]
        setattr(field.owner, field.attribute, _value(field, text))
    check(config)
    return config


def check(config: Config) -> None:
    """Raises a `UserError` for the first setting whose value is of the wrong type or not legal."""
    for field in fields(config):
        value, rules = field.value, field.metadata
        where = f"config.{field.name} is {value!r}"
        if not _fits(value, field.kind):
            raise UserError(f"{where}: must be {_kind_name(field.kind)}")
        if rules.get("choices") and value not in rules["choices"]:
            raise UserError(f"{where}: must be one of {', '.join(rules['choices'])}")
        for bound, wrong in (("least", lambda a, b: a < b), ("most", lambda a, b: a > b)):
            limit = rules.get(bound)
            if limit is not None and value is not None and (value != value or wrong(value, limit)):
                raise UserError(f"{where}: must be at {bound} {limit}")


def to_json(config: Config) -> str:
    """The resolved config as JSON text."""
    return json.dumps(dataclasses.asdict(config), indent=2, ensure_ascii=False) + "\n"


def describe(argv: Sequence[str]) -> str:
    """The text of `--help`: the configs there are, and every field of the one that is named (base if none is)."""
    words = [word for word in argv if word not in HELP]
    name = _parse(words)[0] if words else "base"
    lines = [
        "usage: python -m mlingo_jax.train --config=NAME [--config.FIELD=VALUE ...]",
        "",
        "Trains the adapter between a frozen MERT and a frozen language model. Started again with the same workdir,",
        "a run resumes where its last checkpoint stands.",
        "",
        "NAME is a Python file, or one of:",
        *_columns({name: summary(name) for name in recipe_names()}),
        "",
        f"Fields of {name}, with their values there (* may differ when a run is resumed):",
    ]
    for field in fields(load_config(name)):
        star = "*" if field.metadata.get("free") else " "
        lines.append(f"{star} --config.{field.name}={_shown(field.value)}")
        lines += textwrap.wrap(field.metadata.get("meaning", ""), _WIDTH, initial_indent=" " * 8)
    return "\n".join(lines)


def _columns(meanings: Mapping[str, str]) -> list[str]:
    """Names, and beside each what it stands for."""
    indent = 4 + max(map(len, meanings))
    lines = []
    for name, meaning in meanings.items():
        wrapped = textwrap.wrap(meaning, _WIDTH, initial_indent=" " * indent, subsequent_indent=" " * indent)
        first, *rest = wrapped or [""]
        lines += [f"  {name}{first[2 + len(name) :]}", *rest]
    return lines


def _parse(argv: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    """The config's name and the overrides, in order."""
    names, overrides, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        flag, equals, text = word.partition("=")
        if flag != "--config" and not flag.startswith("--config."):
            raise UserError(f"{word}: not understood{nearest(flag, ('--config', *HELP))}; see --help")
        if not equals:
            if not words:
                raise UserError(f"{word}: needs a value; see --help")
            text = words.pop(0)
        if flag == "--config":
            names.append(text)
        else:
            overrides.append((flag.removeprefix("--config."), text))
    if not names:
        raise UserError(f"--config=NAME is needed; NAME is a file or one of {', '.join(recipe_names())}")
    return names[-1], overrides


def _value(field: Field, text: str) -> Any:
    kinds = typing.get_args(field.kind) if isinstance(field.kind, types.UnionType) else (field.kind,)
    if type(None) in kinds and text.lower() == "none":
        return None
    for kind in kinds:
        try:
            if kind is bool:
                return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
            if kind is int:
                return int(text.replace("_", ""))
            if kind is float:
                return float(text)
            if kind is str:
                return text
        except (ValueError, KeyError):
            continue
    raise UserError(f"--config.{field.name}={text}: must be {_kind_name(field.kind)}")


def _fits(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if isinstance(value, bool) and kind is not bool:
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def _kind_name(kind: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    if isinstance(kind, types.UnionType):
        return " or ".join("none" if k is type(None) else names[k] for k in typing.get_args(kind))
    return names.get(kind, "left alone: it cannot be set from the command line")


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | str) else str(value)

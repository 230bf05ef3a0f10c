"""Recipes: toml files that say what a language model is told, what it must reply, and what is held against it.

The project's own are in `recipes/`, readable and to be copied: `--recipe my_recipe.toml` takes a file of one's own.
"""

import dataclasses
import hashlib
import tomllib
import types
import typing
from collections.abc import Container, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from mlingo_jax.errors import UserError
from mlingo_jax.instruction.pairs import Use

BUILT_IN = ("short", "long", "both", "captions", "qa")
_CHECKS = "checks"
T = typing.TypeVar("T")
_FOLDER = resources.files("mlingo_jax.instruction") / "recipes"


@dataclasses.dataclass(frozen=True)
class Shot:
    """An example for the model: a source as it would be shown, and the reply that would be right."""

    source: str
    pairs: tuple[Mapping[str, str], ...] = ()
    answers: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Task:
    """One request about each clip.

    writes: "pairs" of questions and answers of the given `kinds` (name: what it asks about), `pairs` least and most of
    them; or "answers" to the given `questions`, all of one `kind`. part: which of MusicInstruct's two files they go to.
    uses: what the model is shown of a clip, see `prompts.describe`. attributes: the model lists what it adds to the
    tags. question_words, answer_words: least and most. temperature, max_tokens: of a request; attempts: requests until
    a reply can be used. length_deviations, near_duplicates: limits of the filters of these names, 0 for none.
    """

    name: str
    writes: Literal["pairs", "answers"]
    instruction: str
    answer_words: tuple[int, int]
    temperature: float
    max_tokens: int
    attempts: int
    part: Literal["short", "long"] = "long"
    uses: Use = "caption"
    kinds: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pairs: tuple[int, int] = (1, 10)
    question_words: tuple[int, int] = (1, 60)
    kind: str = ""
    questions: tuple[str, ...] = ()
    attributes: bool = False
    length_deviations: float = 0.0
    near_duplicates: float = 0.0
    examples: tuple[Shot, ...] = ()


@dataclasses.dataclass(frozen=True)
class Check:
    """What the judging model, or the one that sees the question alone, is told."""

    instruction: str
    temperature: float
    max_tokens: int
    attempts: int


@dataclasses.dataclass(frozen=True)
class Recipe:
    """name: the file's, without extension. digest: of all that it says, the checks included."""

    name: str
    summary: str
    tasks: tuple[Task, ...]
    judge: Check
    blind: Check
    digest: str
    warning: str = ""


def load_recipe(name: str, tasks: Sequence[str] = ()) -> Recipe:
    """A recipe of the project by its name, or anyone's by its path; of its tasks perhaps only some.

    Raises UserError, naming the file and the place in it, for whatever is wrong with it.
    """
    values, where = _read(name)
    _refuse_unknown(values, ("summary", "warning", "include", "tasks", "judge", "blind"), where)
    made = [_make(Task, task, f"{where}: tasks[{n}]") for n, task in enumerate(values.get("tasks", []))]
    included = [load_recipe(_beside(other, where)) for other in values.get("include", [])]
    made = [task for recipe in included for task in recipe.tasks] + made
    _require_sound(made, where)
    if unknown := set(tasks) - {task.name for task in made}:
        raise UserError(f"{where}: no task {sorted(unknown)[0]!r} in it, only {', '.join(t.name for t in made)}")
    chosen = tuple(task for task in made if not tasks or task.name in tasks)
    checks = tomllib.loads((_FOLDER / f"{_CHECKS}.toml").read_text(encoding="utf-8")) | values
    judge, blind = (_make(Check, checks[part], f"{where}: {part}") for part in ("judge", "blind"))
    digest = hashlib.sha256(repr((chosen, judge, blind)).encode()).hexdigest()[:16]
    warning = str(values.get("warning", ""))
    return Recipe(Path(where).stem, str(values.get("summary", "")), chosen, judge, blind, digest, warning)


def _read(name: str) -> tuple[dict[str, Any], str]:
    if name not in BUILT_IN and not Path(name).is_file():
        raise UserError(f"--recipe: expected {', '.join(BUILT_IN)} or a toml file, found {name!r}")
    try:
        place = _FOLDER / f"{name}.toml" if name in BUILT_IN else Path(name)
        return tomllib.loads(place.read_text(encoding="utf-8")), name if name not in BUILT_IN else f"{name}.toml"
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{name}: not a readable toml file ({error})") from error


def _beside(other: str, where: str) -> str:
    """An included recipe: the project's, or a file beside the including one."""
    return other if other in BUILT_IN else str(Path(where).parent / other)


def _make(kind: type[T], values: Any, where: str) -> T:
    """A dataclass of a toml table, every value checked against its field's type."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a table, found {values!r}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, kind))}
    _refuse_unknown(values, fields, where)
    for field in fields.values():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in values:
            raise UserError(f"{where}: {field.name} is missing")
    return kind(**{name: _value(hints[name], value, f"{where}: {name}") for name, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    if hint in (str, bool, int, float):
        if isinstance(value, bool) != (hint is bool) or not isinstance(value, (int, float) if hint is float else hint):
            raise UserError(f"{where}: expected a {hint.__name__}, found {value!r}")
        return str(value).strip() if hint is str else hint(value)
    if typing.get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise UserError(f"{where}: expected {' or '.join(get_args(hint))}, found {value!r}")
        return value
    if typing.get_origin(hint) is tuple:
        return _tuple(get_args(hint), value, where)
    if dataclasses.is_dataclass(hint):
        return _make(typing.cast(type, hint), value, where)
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise UserError(f"{where}: expected a table of texts, found {value!r}")
    return types.MappingProxyType(value)


def _tuple(of: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    expected = None if of[-1] is Ellipsis else len(of)
    if not isinstance(value, list) or (expected is not None and len(value) != expected):
        raise UserError(f"{where}: expected a list{'' if expected is None else f' of {expected}'}, found {value!r}")
    return tuple(_value(of[0], item, f"{where}[{n}]") for n, item in enumerate(value))


def _refuse_unknown(values: Mapping[str, Any], known: Container[str], where: str) -> None:
    unknown = [name for name in values if name not in known]
    if unknown:
        raise UserError(f"{where}: {unknown[0]!r} is nothing that a recipe has; is it misspelt?")


def _require_sound(tasks: Sequence[Task], where: str) -> None:
    if not tasks:
        raise UserError(f"{where}: no [[tasks]] in it")
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise UserError(f"{where}: two tasks of one name among {', '.join(names)}")
    for task in tasks:
        needed = "kinds" if task.writes == "pairs" else "questions"
        if not getattr(task, needed):
            raise UserError(f"{where}: the task {task.name} writes {task.writes}, so it needs {needed}")
        for name in ("pairs", "question_words", "answer_words"):
            least, most = getattr(task, name)
            if not 0 < least <= most:
                raise UserError(f"{where}: {task.name}: {name}: expected 0 < least <= most, found {least} and {most}")
        if task.attempts < 1 or task.max_tokens < 1:
            raise UserError(f"{where}: {task.name}: attempts and max_tokens must be at least 1")

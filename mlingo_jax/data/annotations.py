"""What the datasets' annotation files have in common: one question about one clip, and how files are read and checked.

Every error names the file, and the line or item in it.
"""

import csv
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlingo_jax.errors import UserError

CAPTION_QUESTION = "Please give a caption to the music."
"""The question to which a caption is the answer (the reference implementation's constant; its stage 1 has no prompt and
ignores it)."""

# JSON can spell what is not text: no tokenizer and no file takes it.
_SURROGATE = re.compile("[\ud800-\udfff]")
_SHOWN = 60
# A csv row's fields beyond its columns; too few of them are None.
_TOO_MUCH = "\0"


@dataclass(frozen=True)
class Annotation:
    """One question about one clip, with its answer.

    clip: the clip's id. names: what its audio file may be called, without folder and extension; or a path below the
    audio folder. source: where the text is from. seconds: the length its audio should have, if known.
    start: where it begins in the recording it is from, in s. rate: the sample rate of its audio where that is a bare
    array (.npy), if known.
    """

    clip: str
    names: tuple[str, ...]
    question: str
    answer: str
    source: str
    split: str
    seconds: float | None = None
    start: float = 0.0
    rate: int | None = None


def find_files(paths: Sequence[Path], names: Collection[str]) -> list[Path]:
    """The annotation files that were given: files as they are, of folders those that have one of `names` (globs).

    Raises UserError for what is missing, or for a folder that has none of them.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted({file for name in names for file in path.glob(name)})
            if not found:
                raise UserError(f"{path}: none of {', '.join(names)} in this folder; name the annotation files")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"{path}: there is no such annotation file")
    return files


def read_csv(path: Path, required: Collection[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """("file:line", {column: text}) of each row of a csv with a header; columns beyond those required are kept.

    Raises UserError if it is empty, not UTF-8, has not the columns, or has a row with another number of them.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey=_TOO_MUCH, strict=True)
            columns = reader.fieldnames or []
            if not columns:
                raise UserError(f"{path}: the file is empty")
            require(columns, required, str(path), "column")
            for row in reader:
                found = len(columns) + len(row.pop(_TOO_MUCH, ())) - list(row.values()).count(None)
                if found != len(columns):
                    raise UserError(
                        f"{path}:{reader.line_num}: expected {len(columns)} columns, found {found}; the file is cut "
                        "off or damaged here"
                    )
                yield f"{path}:{reader.line_num}", row
    except csv.Error as error:
        raise UserError(f"{path}: not valid csv, or cut off ({error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises UserError if it is empty, not UTF-8 or not JSON (cut off, for one)."""
    text = _read_text(path)
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON, or cut off ({error})") from error


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", object) of each line of a jsonl file; empty lines are skipped. Raises UserError as `read_json`."""
    try:
        with path.open("rb") as file:
            empty = True
            for number, line in enumerate(file, 1):
                if line.strip():
                    empty = False
                    yield f"{path}:{number}", _parse_line(line, f"{path}:{number}")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if empty:
        raise UserError(f"{path}: the file is empty")


def items(values: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file: item n", object) of a JSON list of objects. Raises UserError if it is not that, or empty."""
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}: expected a list of objects, found {_show(values)}; is it this dataset's file?")
    for number, value in enumerate(values):
        if not isinstance(value, dict):
            raise UserError(f"{where}: item {number}: expected a JSON object, found {_show(value)}")
        yield f"{where}: item {number}", value


def require(found: Collection[str], required: Collection[str], where: str, what: str = "field") -> None:
    """Raises UserError unless all required fields (or what else they are) are among those found."""
    missing = [name for name in required if name not in found]
    if missing:
        are = f"{what}s {', '.join(missing)} are" if len(missing) > 1 else f"{what} {missing[0]} is"
        raise UserError(
            f"{where}: the {are} missing; found {', '.join(map(str, found)) or 'none'}; is it this dataset's file?"
        )


def text(values: Mapping[str, Any], name: str, where: str, *, may_be_blank: bool = False) -> str:
    """A text that is there and, unless it may be, not blank. Raises UserError otherwise."""
    require(values, (name,), where)
    value = values[name]
    if not isinstance(value, str) or not (value.strip() or may_be_blank):
        raise UserError(f'{where}: expected a text in "{name}", found {_show(value)}')
    if _SURROGATE.search(value):
        raise UserError(f'{where}: half a surrogate pair (a \\u escape without its other half) in "{name}"')
    return value


def boolean(values: Mapping[str, Any], name: str, where: str) -> bool:
    """A boolean, given as one or as the text True or False. Raises UserError otherwise."""
    require(values, (name,), where)
    value = values[name]
    known = {True: True, False: False, "true": True, "false": False}
    key = value.strip().lower() if isinstance(value, str) else value
    if not isinstance(key, bool | str) or key not in known:
        raise UserError(f'{where}: expected True or False in "{name}", found {_show(value)}')
    return known[key]


def number(values: Mapping[str, Any], name: str, where: str) -> float | None:
    """A finite number, given as one or as text; None if it is absent, null or blank. Raises UserError otherwise."""
    value = values.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        result = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        result = math.nan
    if not math.isfinite(result):
        raise UserError(f'{where}: expected a number in "{name}", found {_show(value)}')
    return result


def rate(values: Mapping[str, Any], where: str) -> int | None:
    """The reference implementation's `sampling_rate` in Hz, if it is there.

    Raises UserError if it is no positive whole number.
    """
    value = number(values, "sampling_rate", where)
    if value is not None and (value <= 0 or value != int(value)):
        raise UserError(f'{where}: expected a positive whole number in "sampling_rate", found {_show(value)}')
    return None if value is None else int(value)


def _parse_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason} at byte {error.start} of the line)") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON, or cut off ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, found {_show(value)}")
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def _show(value: Any) -> str:
    shown = json.dumps(value, default=str)
    return shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."

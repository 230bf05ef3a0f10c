"""The code's imports against docs/architecture.md's table of rooms, from the ground up."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def rooms() -> list[list[str]]:
    """The paths of each row of the table, the ground floor first."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    table = re.search(r"^\| room \| holds \|\n\|---\|---\|\n((?:\|.*\n)+)", text, re.M)
    assert table, "docs/architecture.md has no table of rooms"
    return [re.findall(r"`([^`]+)`", row.split("|")[1]) for row in table[1].splitlines()]


def sources() -> list[str]:
    return [p.relative_to(ROOT).as_posix() for top in ("mlingo_jax", "conversion") for p in ROOT.glob(f"{top}/**/*.py")]


def file_of(module: str) -> str | None:
    """The file of a dotted name, or of what holds it; None for other packages."""
    path = ROOT / module.replace(".", "/")
    if module.split(".")[0] not in ("mlingo_jax", "conversion"):
        return None
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py").relative_to(ROOT).as_posix()
    if (path / "__init__.py").is_file():
        return (path / "__init__.py").relative_to(ROOT).as_posix()
    return file_of(module.rpartition(".")[0]) if "." in module else None


def imports(file: str) -> Iterator[str]:
    """The project's files that a file imports, wherever in it; those that are for a type checker's eyes as well."""
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            found = file_of(name)
            if found is not None and found != file:
                yield found


def floor(file: str, plan: list[list[str]]) -> int:
    """The row of a file: the first of those that name it, or a folder around it."""
    return next(
        (row for row, paths in enumerate(plan) if any(file == p or file.startswith(f"{p}/") for p in paths)), -1
    )


def test_every_file_has_a_room_and_every_room_is_there():
    plan = rooms()
    # The package's own face hands on names from the rooms.
    homeless = [file for file in sources() if floor(file, plan) < 0 and file != "mlingo_jax/__init__.py"]
    assert not homeless
    assert [path for row in plan for path in row if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("file", [file for file in sources() if file != "mlingo_jax/__init__.py"])
def test_imports_only_go_down(file):
    plan = rooms()
    above = [f"{file} -> {other}" for other in imports(file) if floor(other, plan) > floor(file, plan)]
    assert above == []


def test_no_files_import_each_other_in_a_circle():
    graph = {file: set(imports(file)) - {"mlingo_jax/__init__.py"} for file in sources()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_models_do_no_io():
    read = [
        f
        for f in sources()
        if f.startswith("mlingo_jax/models/") and re.search(r"\bopen\(|pathlib", (ROOT / f).read_text())
    ]
    assert read == []

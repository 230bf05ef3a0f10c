"""What the pages name is there: files of the code, tests that are cited, other pages and their sections."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
PATH = re.compile(r"\b(?:mlingo_jax|tests|configs|benchmarks|launch|docs)/[\w/.*{},-]*\w")
MODULE = re.compile(r"python -m ((?:mlingo_jax|conversion|benchmarks|tests)\.[\w.]+)")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def sections(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def is_there(path: str) -> bool:
    # Inside of the package recipes and launchers are known by these names, too.
    names = [path, f"{path}.py", path.removeprefix("mlingo_jax/")]
    return "NAME" in path or any(list(ROOT.glob(name)) for name in names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_names_is_there(page: Path):
    text = page.read_text(encoding="utf-8")
    files = [path for path in PATH.findall(text) if not is_there(path)]
    modules = [name for name in MODULE.findall(text) if not is_there(name.rstrip(".").replace(".", "/"))]
    links = []
    for target, anchor in LINK.findall(text):
        file = page.parent / target if target else page
        made = target.startswith("api/settings") or target == "index.md"
        if not made and (not file.exists() or (anchor and anchor not in sections(file))):
            links.append(f"{target}#{anchor}")
    assert (files, modules, links) == ([], [], [])

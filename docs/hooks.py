"""Pages of the site that are made of other files: README as the first page, CONTRIBUTING, CHANGELOG, the settings."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from mlingo_jax.flags import fields
from mlingo_jax.settings import Config, DemoConfig

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
SETTINGS = """# Settings

Settings of a training run and their defaults (those of `--config=base`). Each is a flag of
`python -m mlingo_jax.train`, as in `--config.optim.lr=1e-4`, and a field of `mlingo_jax.settings.Config` in a recipe.
Those marked \\* may differ when a run is resumed.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds these pages."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=_as_seen_from_docs(ROOT / source)))
    files.append(File.generated(config, "CITATION.cff", content=(ROOT / "CITATION.cff").read_text(encoding="utf-8")))
    files.append(File.generated(config, "api/settings.md", content=_settings()))
    return files


def _as_seen_from_docs(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    for before in ("](", 'src="', 'srcset="'):
        text = text.replace(f"{before}docs/", before)
    return text


def _settings() -> str:
    lines, section = [SETTINGS], None
    for field in (*(field for field in fields(Config()) if field.name != "demo"), *fields(DemoConfig(), "demo.")):
        if field.owner is not section:
            section = field.owner
            lines += ["", f"## {type(section).__name__}", "", _summary(section), ""]
            lines += ["| setting | default | |", "|---|---|---|"]
        star = " \\*" if field.metadata.get("free") else ""
        choices = ", ".join(f"`{choice}`" for choice in field.metadata.get("choices") or ())
        meaning = field.metadata["meaning"] + (f" ({choices})" if choices else "")
        lines.append(f"| `{field.name}`{star} | `{field.value!r}` | {meaning.replace('|', '&#124;')} |")
    return "\n".join(lines) + "\n"


def _summary(section: object) -> str:
    return (type(section).__doc__ or "").strip().splitlines()[0]

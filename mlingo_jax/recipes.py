"""Recipes: Python files whose `get_config()` gives the settings of a run; those of configs/ come with the package."""

import ast
import importlib.util
from pathlib import Path

import mlingo_jax
from mlingo_jax.errors import UserError
from mlingo_jax.settings import Config
from mlingo_jax.wording import nearest

_PACKAGE = Path(mlingo_jax.__file__).parent


def shipped(folder: str) -> Path:
    """A folder of the repository's top level: inside of an installed package, beside it in a checkout."""
    return next((path for path in (_PACKAGE / folder, _PACKAGE.parent / folder) if path.is_dir()), _PACKAGE / folder)


def recipe_names() -> list[str]:
    """The names that `find_recipe` knows: the package's recipes, and those in configs/ of the current folder."""
    return sorted({path.stem for folder in (shipped("configs"), Path("configs")) for path in _recipes(folder)})


def recipe(name: str) -> Config:
    """The settings of one of the package's own recipes, for others to begin with.

    Example:
        A file `mine.py`, run by `python -m mlingo_jax.train --config=mine.py`::

            def get_config():
                config = recipe("pretrain")
                config.llm.path = "weights/my-llama"
                return config

    Raises:
        UserError: there is no such recipe.
    """
    return _load(shipped("configs") / f"{name}.py", f"recipe {name}")


def load_config(name: str) -> Config:
    """The settings of a recipe: of a file, given by its path, or by name.

    A name stands for NAME.py in the current folder's configs/, if that is a recipe, else for the package's own.

    Raises:
        UserError: there is no such file, or it has no `get_config` that gives a `Config`.
    """
    return _load(find_recipe(name), f"--config={name}")


def find_recipe(name: str) -> Path:
    """The file of a recipe. Raises `UserError` if there is none of this name."""
    if name.endswith(".py"):
        return Path(name)
    own = Path("configs") / f"{name}.py"
    if own in _recipes(own.parent):
        return own
    names = recipe_names()
    if name not in names:
        raise UserError(f"--config={name}: no such config; there are {', '.join(names)}{nearest(name, names)}")
    return shipped("configs") / f"{name}.py"


def summary(name: str) -> str:
    """The first paragraph of a recipe's docstring; the file is not run."""
    text = ast.get_docstring(ast.parse(find_recipe(name).read_text(encoding="utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ")


def _recipes(folder: Path) -> list[Path]:
    # A folder of this name may be another project's: a file that defines no get_config is none of our recipes.
    return [path for path in sorted(folder.glob("*.py")) if b"def get_config" in path.read_bytes()]


def _load(path: Path, where: str) -> Config:
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"{where}: no such file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config() if hasattr(module, "get_config") else None
    if not isinstance(config, Config):
        raise UserError(f"{where}: has no get_config() that gives a mlingo_jax.settings.Config")
    return config

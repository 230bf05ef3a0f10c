"""Every config's settings as they were written down: a change to one, or to base, shows what else it changes.

    python -m tests.test_golden_configs

writes them down anew.
"""

from pathlib import Path

import pytest

from mlingo_jax.flags import to_json
from mlingo_jax.recipes import load_config, recipe_names

FOLDER = Path(__file__).parent / "golden_configs"


@pytest.mark.parametrize("name", recipe_names())
def test_a_config_is_what_was_written_down(name):
    written = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert to_json(load_config(name)) == written, "if it is meant: python -m tests.test_golden_configs"


def test_no_config_was_lost():
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == recipe_names()


def main() -> None:
    for path in FOLDER.glob("*.json"):
        path.unlink()
    for name in recipe_names():
        (FOLDER / f"{name}.json").write_text(to_json(load_config(name)), encoding="utf-8")


if __name__ == "__main__":
    main()

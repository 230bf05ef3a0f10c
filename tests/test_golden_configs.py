"""Every config's settings as they were written down: a change to one, or to base, shows what else it changes.

    python -m tests.test_golden_configs

writes them down anew.
"""

from pathlib import Path

import pytest

from mlingo_jax.training.config import config_names, load_config, to_json

FOLDER = Path(__file__).parent / "golden_configs"


@pytest.mark.parametrize("name", config_names())
def test_a_config_is_what_was_written_down(name):
    written = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert to_json(load_config(name)) == written, "if it is meant: python -m tests.test_golden_configs"


def test_no_config_was_lost():
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == config_names()


def main() -> None:
    for path in FOLDER.glob("*.json"):
        path.unlink()
    for name in config_names():
        (FOLDER / f"{name}.json").write_text(to_json(load_config(name)), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Fixtures that several rooms' tests share."""

import os
from pathlib import Path

# Half of the suite's time would go into optimising programs that run once. Subprocesses inherit it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import pytest
from hypothesis import settings

# The same examples in every run, however slow the machine.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=2, help="how often each kill test kills (default 2)")


@pytest.fixture(scope="session")
def kills(request: pytest.FixtureRequest) -> int:
    """How often a kill test kills what it tests, each time at another moment."""
    count = request.config.getoption("kills")
    assert isinstance(count, int)
    return count


@pytest.fixture(scope="session")
def golden() -> Path:
    """The numbers of the reference implementation, where they are at hand."""
    folder = Path(__file__).parents[1].parent / "shared" / "golden"
    if not folder.is_dir():
        pytest.skip("the reference implementation's numbers (../shared/golden) are not here")
    return folder


@pytest.fixture(scope="session")
def towers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a small encoder and a small language model, to be read."""
    # Not above: the package's types are checked from its first import after pytest is set up.
    from tests.tiny import tiny_llama, tiny_mert

    folder = tmp_path_factory.mktemp("towers")
    return tiny_mert(folder / "mert"), tiny_llama(folder / "llm")

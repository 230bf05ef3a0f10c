"""Fixtures that several rooms' tests share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden() -> Path:
    """The numbers of the original, where they are at hand."""
    folder = Path(__file__).parents[1].parent / "shared" / "golden"
    if not folder.is_dir():
        pytest.skip("the original's numbers (../shared/golden) are not here")
    return folder

"""What a metric needs and may not find: an optional package, or data that no package brings."""

import importlib
from types import ModuleType


class MissingMetric(Exception):
    """A metric that cannot be computed here. The message is one line: what is missing, and where it can be had."""


def require_package(name: str) -> ModuleType:
    """Imports a package of the extra `evaluate`, or of what a metric builds on.

    Raises:
        MissingMetric: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = (error.name or name).partition(".")[0]
        raise MissingMetric(f"needs {package}, which is not installed: pip install 'mlingo_jax[evaluate]'") from error

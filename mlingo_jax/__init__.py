"""MusiLingo in JAX: it answers questions about music.

A frozen MERT encoder, a trained linear adapter, and a frozen LLaMA.
"""

import os
from typing import TYPE_CHECKING

# Without PyTorch, transformers advises to install it as it is imported; only its tokenizers are used here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

if TYPE_CHECKING:
    from mlingo_jax.api import MusiLingo, Question, load

__all__ = ["MusiLingo", "Question", "load"]
__version__ = "0.1.0"


def __getattr__(name: str):
    # Lazy: the API loads JAX and Flax, which a command's --help and its mistakes need not wait for.
    if name in __all__:
        from mlingo_jax import api

        return getattr(api, name)
    raise AttributeError(f"module 'mlingo_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

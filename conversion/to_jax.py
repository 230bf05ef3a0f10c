"""The command `python -m conversion.to_jax`.

Where the current folder has a `conversion/` of its own, `mlingo-to-jax` is the same command.
"""

from mlingo_jax.conversion.to_jax import cli, convert, main

__all__ = ["cli", "convert", "main"]

if __name__ == "__main__":
    cli()

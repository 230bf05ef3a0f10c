"""The command `python -m conversion.to_pytorch`.

Where the current folder has a `conversion/` of its own, `mlingo-to-pytorch` is the same command.
"""

from mlingo_jax.conversion.to_pytorch import cli, convert, main

__all__ = ["cli", "convert", "main"]

if __name__ == "__main__":
    cli()

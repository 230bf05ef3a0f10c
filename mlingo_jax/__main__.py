"""Lists the commands: `python -m mlingo_jax`."""

import sys
from typing import NoReturn

from mlingo_jax.cli import VERSION, run_cli

COMMANDS = {
    "mlingo_jax.train": "trains the adapter between a frozen encoder and language model; --config=demo to begin",
    "mlingo_jax.caption": "answers questions about audio files",
    "mlingo_jax.evaluate": "scores answers, or a model, by the field's metrics",
    "mlingo_jax.prepare": "checks and builds datasets, and encodes them into a feature cache",
    "mlingo_jax.instruct": "has a language model write questions and answers about a collection",
    "mlingo_jax.plan": "says what a run will need on a machine you do not have",
    "conversion.to_jax": "converts PyTorch weights to JAX",
    "conversion.to_pytorch": "converts JAX weights and adapters to PyTorch",
}


def main() -> None:
    """The command."""
    words = sys.argv[1:]
    if "--version" in words:
        print(VERSION)
        return
    width = max(map(len, COMMANDS))
    print(f"{VERSION}: music-language models in JAX\n\nCommands, each with --help:\n")
    print("\n".join(f"  python -m {name:<{width}}  {meaning}" for name, meaning in COMMANDS.items()))
    print("\nIn Python: import mlingo_jax; help(mlingo_jax.load)")


def cli() -> NoReturn:
    """The console command."""
    run_cli(main)


if __name__ == "__main__":
    cli()

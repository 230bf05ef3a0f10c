"""Trains the adapter: `python -m mlingo_jax.train --config=NAME [--config.FIELD=VALUE ...]`; `--help` explains."""

import sys

from mlingo_jax.errors import UserError, run_door
from mlingo_jax.training.config import HELP, describe, read_config


def main() -> None:
    argv = sys.argv[1:]
    if any(word in HELP for word in argv):
        print(describe(argv))
        return
    config = read_config(argv)
    # Orbax tells of its own work through absl, at length.
    from absl import logging

    logging.set_verbosity(logging.FATAL)
    from mlingo_jax.training.loop import train

    try:
        train(config)
    except OSError as error:
        raise UserError(f"{config.workdir}: {error.strerror or error}") from error


if __name__ == "__main__":
    run_door(main)

"""Trains the adapter: `python -m mlingo_jax.train --config=NAME [--config.FIELD=VALUE ...]`; `--help` explains."""

import sys
from pathlib import Path
from typing import NoReturn

from absl import logging

from mlingo_jax.cli import VERSION, run_cli
from mlingo_jax.errors import UserError
from mlingo_jax.flags import HELP, describe, read_config
from mlingo_jax.settings import Config


def main() -> None:
    """The command."""
    argv = sys.argv[1:]
    if any(word in HELP for word in argv):
        print(describe(argv))
        return
    if "--version" in argv:
        print(VERSION)
        return
    config = read_config(argv)
    # Orbax reports its own work, and the tracebacks of its threads, through absl; failures reach us as exceptions.
    logging.set_verbosity(logging.FATAL)
    try:
        _run(config)
    except OSError as error:
        raise UserError(f"{error.filename or config.workdir}: {error.strerror or error}") from error


def _run(config: Config) -> None:
    # Imported late: --help and mistakes on the command line need none of the numerical libraries.
    from mlingo_jax import demo
    from mlingo_jax.processes import initialize, is_primary, run_on_primary
    from mlingo_jax.training.loop import train
    from mlingo_jax.training.run import check_alike

    initialize()
    check_alike(config)
    if config.data.datasets:
        from mlingo_jax.training.preflight import require_all

        require_all(config)
    if config.demo is not None:
        demo.prepare(config)
    if config.dry_run:
        from mlingo_jax.training.dry_run import dry_run

        if is_primary():
            print(dry_run(config))
        return
    train(config)
    if config.demo is not None:
        run_on_primary("the demo's report", lambda: demo.report(config, Path(config.workdir)))


def cli() -> NoReturn:
    """The console command."""
    run_cli(main)


if __name__ == "__main__":
    cli()

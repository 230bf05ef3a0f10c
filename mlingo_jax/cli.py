"""How every command ends: a user's mistake in one clear line, never in a traceback. Warnings take one line, too."""

import argparse
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from mlingo_jax import __version__
from mlingo_jax.errors import AudioWarning, Stopped, UserError
from mlingo_jax.wording import nearest

VERSION = f"mlingo_jax {__version__}"


class Parser(argparse.ArgumentParser):
    """Options of a command. A mistake in them is one line, and a misspelt one is told with the nearest there is."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, allow_abbrev=False, **options)
        self.add_argument("--version", action="version", version=VERSION, help=argparse.SUPPRESS)
        self._words: list[str] = []

    # Subcommands are parsed by this method, too. Its published type is a set of overloads.
    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        self._words = list(sys.argv[1:] if args is None else args)
        known, rest = super().parse_known_args(args, namespace)
        self._refuse_unknown(rest)
        return known, rest

    def error(self, message: str) -> NoReturn:
        # With subcommands the words are theirs to judge.
        if self._subparsers is None:
            words, self._words = self._words, []
            self._refuse_unknown(words)
        self.exit(2, f"error: {message} ({self.prog} --help)\n")

    def _refuse_unknown(self, words: Iterable[str]) -> None:
        """Ends at the first option that there is not; what begins with `--config.` is read by `mlingo_jax.flags`."""
        known = self._option_string_actions
        options = (word.partition("=")[0] for word in words if word.startswith("--") and word != "--")
        unknown = next((o for o in options if o not in known and not o.startswith("--config.")), None)
        if unknown:
            self._words = []
            self.error(f"{unknown}: no such option{nearest(unknown, known)}")


def run_cli(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command's `main` and exits: 0 or its return value, 1 with one line on stderr for a `UserError`.

    Stopped by a signal, it exits with 128 + its number (143 for SIGTERM), as if the signal itself had ended it: what
    started it sees that the work is not finished.
    """
    sys.unraisablehook = _interrupt_again
    warnings.showwarning = _show_warning
    # A run reads a file many times.
    warnings.filterwarnings("once", category=AudioWarning)
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        code = 128 + stopped.number
    except KeyboardInterrupt:
        print("stopped by the keyboard", file=sys.stderr)
        code = 130
    except Exception as error:
        print(_one_line(error) or traceback.format_exc().rstrip(), file=sys.stderr)
        code = 1
    if "jax" in sys.modules:
        # Late: it loads JAX, which a mistake on the command line need not wait for.
        from mlingo_jax.processes import shutdown

        shutdown(code)
    sys.exit(code)


def require_positive(arguments: argparse.Namespace, *names: str) -> None:
    """Raises `UserError` for the first of these options whose number, if it is given at all, is not above 0."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name}: expected more than 0, found {value:g}")


def _show_warning(message: Warning | str, *_: object) -> None:
    line = f"warning: {message}"
    if "tqdm" in sys.modules:
        # Above a bar, if one is shown.
        sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr)


def _one_line(error: Exception) -> str | None:
    """What to say of a file that the system refuses, or of another process's end; None for any other error."""
    if isinstance(error, OSError) and error.strerror:
        return f"error: {f'{error.filename}: ' if error.filename else ''}{error.strerror}"
    if "jax" not in sys.modules:
        return None
    from mlingo_jax.processes import peer_failure

    return peer_failure(error)


def _interrupt_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Python drops a Ctrl-C that comes in the middle of a destructor or of a garbage collector's callback."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        # A moment later: here it would be dropped again.
        main = threading.main_thread().ident
        threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)

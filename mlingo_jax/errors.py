"""A user's mistake ends in one clear line, never in a traceback."""

import signal
import sys
import threading
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Something the user can mend. The message names thing, file, expected and found, and what to do."""


def run_door(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command's `main` and exits: 0 or its return value, 1 with one line on stderr for a `UserError`."""
    sys.unraisablehook = _interrupt_again
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("stopped by the keyboard", file=sys.stderr)
        code = 130
    sys.exit(code)


def _interrupt_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Python drops a Ctrl-C that comes in the middle of a destructor or of a garbage collector's callback."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        # A moment later: here it would be dropped again.
        main = threading.main_thread().ident
        threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)

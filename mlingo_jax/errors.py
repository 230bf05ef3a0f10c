"""A user's mistake ends in one clear line, never in a traceback."""

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Something the user can mend. The message names thing, file, expected and found, and what to do."""


def run_door(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command's `main` and exits: 0 or its return value, 1 with one line on stderr for a `UserError`."""
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("stopped by the keyboard", file=sys.stderr)
        code = 130
    sys.exit(code)

"""The one exception for bad input: a command line prints its single line and exits with status 2."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """A value given by the user is unusable; the message is one line: which value, what is allowed, what to do."""


def run(main: Callable[[], None]) -> None:
    """Runs a module's `main`; bad input is one line on stderr and exit status 2."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

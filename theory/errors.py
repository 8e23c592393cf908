"""How is bad input reported? One exception with one line, which a command line prints and exits with status 2."""

import sys
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches


class InputError(ValueError):
    """A value given by the user is unusable; the message is one line: which value, what is allowed, what to do."""


def require(record: object, kind: str, checks: Mapping[str, tuple[bool, str]]) -> None:
    """Raise InputError for the first field of the record that is not valid.

    kind: what the record is, as the user knows it ("hardware").
    checks: for each field, if it is valid, and which values are allowed.
    """
    for name, (valid, allowed) in checks.items():
        if not valid:
            raise InputError(f"{kind}.{name} is {shown(getattr(record, name))}: give {allowed}")


def require_kind(value: object, kind: type, name: str, hint: str) -> None:
    """Raise InputError unless the argument called `name` is a `kind`; hint: where one comes from."""
    if not isinstance(value, kind):
        raise InputError(f"{name} is {shown(value)}: give a {kind.__name__}, {hint}")


def shown(value: object, most: int = 80) -> str:
    """A value as it stands in a message: in one line, at most so many letters, whatever a file holds."""
    text = " ".join(map(str.strip, repr(value).splitlines()))
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The known name that is nearest to the given one, as the end of a message; empty if none is near."""
    nearest = get_close_matches(given, known, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def run(main: Callable[[], None]) -> None:
    """Run a module's `main`; bad input is one line on stderr and exit status 2."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

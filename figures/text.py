"""How is text made to fit? Wrapped between words to the terminal's width, or cut after the first sentence."""

import re
import shutil
from collections.abc import Iterable, Iterator
from textwrap import wrap


def columns() -> int:
    """Width of the terminal, or what COLUMNS says; 80 where the output goes to a file."""
    return shutil.get_terminal_size(fallback=(80, 24)).columns


def wrapped(text: str, width: int, indent: str = "", first: str | None = None) -> list[str]:
    """Lines of at most `width` columns, but for longer words, which stay whole.

    indent: what each line starts with.
    first: what the first line starts with instead.
    """
    return wrap(
        text,
        width,
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def listed(items: Iterable[str], width: int, indent: str) -> Iterator[str]:
    """The lines of a list with a dash before each item."""
    for item in items:
        yield from wrapped(item, width, f"{indent}  ", first=f"{indent}- ")


def first_sentence(text: str) -> str:
    """The text up to the first full stop, question or exclamation mark before a space and the next sentence.

    A sentence begins with a capital letter, a bracket, or a symbol and what it is ("c is").
    """
    return re.split(r"(?<=[.?!])\s+(?=[A-Z(]|\S+ is )", text, maxsplit=1)[0]

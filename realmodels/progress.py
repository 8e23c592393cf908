"""How far is something that takes long, and how much time is left? On a terminal a bar says so, elsewhere nothing."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Says what is being done, and how much of the work was done since the last call.
Advance = Callable[[str, float], None]


@contextmanager
def progress(work: float) -> Iterator[Advance]:
    """A bar on stderr for the length of a `with` block; work: all of it, in any unit."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda step, done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left")
    with Progress(
        *columns, TimeRemainingColumn(elapsed_when_finished=False), console=Console(stderr=True)
    ) as bar:
        task = bar.add_task("", total=work)
        yield lambda step, done: bar.update(task, description=step, advance=done)

"""The command line: `python paper_repro.py --figure 3` computes an exhibit, draws it and judges it."""

# ruff: noqa: E402 (our own packages are imported after the check that an import finds them and nobody else's)

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
PROGRAM = "paper_repro.py"
INTERRUPTED = "interrupted: finished units are kept, the same command continues from there"
PLAN_INTERRUPTED = "interrupted: a plan that is not finished is not kept, the same command starts again"
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PACKAGES = ("theory", "synthetic", "realmodels", "figures")


def _nothing(*_: object) -> None:
    """What a signal does that comes too late. Unlike SIG_IGN, Python accepts it while a signal is on its way."""


def _ignore(numbers: Iterable[int]) -> None:
    for each in numbers:
        signal.signal(each, _nothing)


def _interrupted(argv: Sequence[str]) -> str:
    return PLAN_INTERRUPTED if argv[:1] == ["plan"] else INTERRUPTED


def _stopped_early(*_: object) -> None:
    _ignore(INTERRUPTS)
    os.write(2, f"{PROGRAM}: error: {_interrupted(sys.argv[1:])}\n".encode())
    os._exit(130)


if __name__ == "__main__":  # imports take seconds, in which Ctrl-C would give a traceback
    for number in INTERRUPTS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stopped_early)


def _foreign() -> str | None:
    """What to do if an import finds somebody else's package, as ours have common names; None if all are ours."""
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is None:
            return f"the package {name} is missing beside {HERE / PROGRAM}: get the whole repository"
        found = Path(spec.origin or next(iter(spec.submodule_search_locations or ()))).resolve()
        if HERE / name not in (found, found.parent):
            return (
                f"`import {name}` finds {found}, which is not this project's {HERE / name}: take its folder off"
                " PYTHONPATH, or uninstall it"
            )
    return None


if foreign := _foreign():
    print(f"{PROGRAM}: error: {foreign}", file=sys.stderr)
    sys.exit(2)

from figures.catalogue import (
    DATA,
    DECIDES_NOTHING,
    EXHIBITS,
    EXPERIMENT_OPTIONS,
    NO_RESULT,
    OPTIONS_OF_ONE,
    Exhibit,
    find,
)
from figures.files import disk_full, is_disk_full, keep_file
from figures.ledger import catalogue, ledger
from figures.options import HARDWARE_OPTIONS, PLAN, flag, hardware_of, parser
from figures.output import (
    COMMITTED,
    NoResultError,
    Steady,
    check_places,
    committed_result,
    computed_result,
    label,
    output_folder,
    pictures,
    write,
)
from figures.shown import counts, outcome, p_value, units
from figures.text import columns
from theory.claims import CLAIMS, Claim
from theory.errors import InputError
from theory.evidence import Result

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from figures.report import Section

REPORT = "report.html"


def main(
    argv: Sequence[str] | None = None,
    exhibits: Sequence[Exhibit] = EXHIBITS,
    data: Traversable = DATA,
    claims: Sequence[Claim] = CLAIMS,
    tests: Path = HERE / "tests",
) -> int:
    """Run the command line `argv` (default: the process's own) and return its exit status.

    0: done, whatever the verdicts. 1: the ledger has a broken link. 2: bad usage, input or disk, with one line on
    stderr. 130: interrupted. `exhibits` is the catalogue, `data` the folder of committed results, `claims` the
    statements and `tests` the folder of the tests that check them.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        with _interruptible():
            return _main(argv, exhibits, data, claims, tests)
    except InputError as error:
        return _fail(str(error), 2)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if not is_disk_full(error):
            raise
        return _fail(disk_full(error), 2)
    except KeyboardInterrupt:
        return _fail(_interrupted(argv), 130)


def _main(
    argv: Sequence[str], exhibits: Sequence[Exhibit], data: Traversable, claims: Sequence[Claim], tests: Path
) -> int:
    if argv[:1] == [PLAN]:
        from figures.plan import command

        return command(argv[1:], PROGRAM)
    options = parser(PROGRAM, REPORT).parse_args(argv)
    if options.json and not (options.list or options.claims):
        raise InputError("--json is for --list and --claims: a run writes its JSON into --out; leave it out")
    if options.list or options.claims:
        shown = ledger(claims, exhibits, data, tests) if options.claims else catalogue(exhibits, data)
        print(
            json.dumps(shown.as_json(), indent=1) if options.json else shown.as_text(columns()),
            flush=True,
        )
        return 1 if shown.broken else 0
    chosen = _chosen(options, exhibits)
    return (
        _forget(chosen, options.out)
        if options.forget
        else _reproduce_all(chosen, exhibits, data, options, argv)
    )


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP interrupt as Ctrl-C does, but where they are ignored, as below nohup."""
    before: dict[int, Any] = {}
    hook = sys.unraisablehook

    def interrupt(*_: object) -> None:
        """Once: what is answered must not be interrupted."""
        _ignore(before)
        raise KeyboardInterrupt

    def again(ignored: Any) -> None:
        """An interrupt in a place that ignores exceptions, as the callback of a weak reference, comes once more."""
        if isinstance(ignored.exc_value, KeyboardInterrupt):
            signal.signal(signal.SIGINT, interrupt)
            threading.Timer(0.01, signal.raise_signal, [signal.SIGINT]).start()
        else:
            hook(ignored)

    if threading.current_thread() is threading.main_thread():
        sys.unraisablehook = again
        for number in INTERRUPTS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for each, handler in before.items():
            if handler is _stopped_early:  # of the program only its end is left, where Python resets handlers
                _ignore([each])
                signal.signal(each, signal.SIG_IGN)
            else:
                signal.signal(each, handler)
        sys.unraisablehook = hook


def _chosen(options: argparse.Namespace, exhibits: Sequence[Exhibit]) -> Sequence[Exhibit]:
    """The exhibits to show; InputError for options that do not go with the choice, or with this machine."""
    if options.forget and (options.from_data or options.report):
        raise InputError("--forget deletes and runs nothing: leave out --from-data and --report")
    names = (*EXPERIMENT_OPTIONS, *HARDWARE_OPTIONS, "preset", "workers", "cluster")
    for name in names if options.from_data else ():
        if getattr(options, name) is not None:
            raise InputError(f"--from-data runs nothing: leave out {flag(name)}, or leave out --from-data")
    if options.device == "cuda":
        import torch  # only here: it takes seconds

        if not torch.cuda.is_available():
            raise InputError("--device cuda: torch finds no CUDA device here; use --device cpu")
    if not options.all:
        name = f"table-{options.table}" if options.figure is None else f"figure-{options.figure}"
        return [find(name, exhibits)]
    for name in (*OPTIONS_OF_ONE, *HARDWARE_OPTIONS):
        if getattr(options, name) is not None:
            raise InputError(f"--all: {flag(name)} means something else to each exhibit; leave it out")
    if options.device == "auto":
        raise InputError("--all: --device auto is for exhibits that load one model; use cpu or cuda")
    return exhibits


def _forget(chosen: Sequence[Exhibit], out: Path) -> int:
    from figures.cache import forget

    for exhibit in chosen:
        records, size = forget(out, exhibit.name)
        print(f"{exhibit.option}: {records} finished units deleted, {size / 1e6:.1f} MB")
    return 0


def _reproduce_all(
    chosen: Sequence[Exhibit],
    exhibits: Sequence[Exhibit],
    data: Traversable,
    options: argparse.Namespace,
    argv: Sequence[str],
) -> int:
    """Reproduce one exhibit after the other, and put all of them on a page if that is asked for."""
    from rich.console import Console

    from figures.report import Section, page

    console = Console(file=Steady(sys.stdout), markup=False, highlight=False)  # type: ignore[arg-type]
    out = output_folder(options.out)
    check_places(out, *([REPORT] if options.report else []))
    sections, status = [], 0
    for exhibit in chosen:
        left_out = _needs(exhibit) if options.all and not options.from_data else ""
        try:
            if not left_out:
                sections.append(_reproduce(exhibit, data, options, out, argv, console))
        except NoResultError:
            if not options.all:
                raise
            left_out = f"{NO_RESULT}; run {exhibit.option}"
        except InputError as error:
            if not options.all:
                raise
            status = _fail(f"{exhibit.option}: {error}", 2)
            sections.append(Section(exhibit, None, error=str(error)))
        if left_out:
            console.print(f"{exhibit.option} is left out: {left_out}", soft_wrap=True)
            sections.append(Section(exhibit, None, error=f"left out: {left_out}"))
    if options.report:
        from figures.answers import answers

        keep_file(out / REPORT, page(sections, answers(exhibits, data)).encode(), "the report")
        console.print(str(out / REPORT), soft_wrap=True)
    return status


def _needs(exhibit: Exhibit) -> str:
    """Which model the exhibit lacks, in words; "" if it lacks none."""
    if not exhibit.needs:
        return ""
    from realmodels.load import MADE

    if MADE[exhibit.needs].is_dir():
        return ""
    return f"it needs the model {exhibit.needs}, which `make {exhibit.needs}` makes with a GPU"


def _reproduce(
    exhibit: Exhibit,
    data: Traversable,
    options: argparse.Namespace,
    out: Path,
    argv: Sequence[str],
    console: "Console",
) -> "Section":
    """Get the result, computed or committed, write everything of it and show its findings."""
    from figures.report import Section
    from figures.results import origin

    brief = options.all and options.report
    if options.from_data:
        found = computed_result(exhibit, out) if options.report else None
        result, name = (found, found.preset) if found else (committed_result(exhibit, data), COMMITTED)
    else:
        from figures.run import run, understood

        given = {each: getattr(options, each) for each in EXPERIMENT_OPTIONS}
        given["hardware"], line = hardware_of(options)
        if line:
            console.print(f"{line}; what is not named is as in {exhibit.option}", soft_wrap=True)
        if options.all:  # these two mean the same to every exhibit that knows them
            known = understood(exhibit)
            given = {
                each: given[each] for each in given if each not in ("device", "first_seed") or each in known
            }
        given = {each: value for each, value in given.items() if value is not None}
        preset = options.preset or "default"
        name = label(preset, given)
        check_places(out, f"{exhibit.name}*.{name}.*")
        result = run(
            exhibit,
            preset,
            given,
            out=out,
            command=[PROGRAM, *argv],
            console=console,
            workers=options.workers,
            cluster=options.cluster,
            brief=brief,
            data=data,
        )
    formats = dict.fromkeys(("png", *options.format)) if options.report else options.format
    try:
        origin(result)  # which the page tells
        drawn = pictures(result, exhibit, formats)
        written = write(result, exhibit, drawn, options.format, out, name)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        if not options.from_data or isinstance(error, InputError):
            raise
        raise InputError(
            f"the stored result ({name}) lacks what the drawing needs ({type(error).__name__}: {error}); remove it, or"
            f" run {exhibit.option} again"
        ) from error
    if brief:
        console.print(f"{exhibit.option}: {counts(result)}; {written[0].name}", soft_wrap=True)
    else:
        console.print(_findings(result, exhibit))
        if result.preset == "quick":
            console.print(f"{DECIDES_NOTHING}; verdicts need --preset full")
        for path in written:
            console.print(str(path), soft_wrap=True)
    return Section(exhibit, result, drawn, committed=name == COMMITTED, file=written[0].name)


def _findings(result: Result, exhibit: Exhibit) -> "Table":
    from rich.table import Table

    names = ("claim [whose]", "estimate [interval]", "n", "p", "rule", "verdict")
    table = Table(*names, title=exhibit.title, show_lines=True)
    for family in dict.fromkeys(finding.family for finding in result.findings):
        table.add_row(f"Family: {family}", style="bold")
        for finding in (each for each in result.findings if each.family == family):
            table.add_row(
                f"{finding.claim} [{finding.origin}]",
                finding.measured,
                units(finding),
                p_value(finding),
                finding.rule,
                outcome(finding),
            )
    return table


def _fail(message: str, status: int) -> int:
    if sys.stderr is not None:  # else `print` would take the output
        with suppress(OSError):  # a full disk, say
            print(f"{PROGRAM}: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())

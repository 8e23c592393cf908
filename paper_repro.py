"""The command line: `python paper_repro.py --figure 3` runs an exhibit, caches, draws and judges it.

Every unit of work is written to the cache as soon as it is finished, so a run that was stopped, however
roughly, continues where it was when the same command is given again. The cache lies in the output folder, and
is keyed on the exhibit, the unit's config and the source code that computes it.
"""

import argparse
import csv
import errno
import hashlib
import importlib.util
import inspect
import io
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.resources.abc import Traversable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import joblib
from joblib.memory import CacheWarning
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from figures.catalogue import DATA, EXHIBITS, PRESETS, Exhibit, committed, find
from figures.report import Section, page
from theory.claims import CLAIMS, Claim, marked_tests
from theory.derivations import KINDS, Step
from theory.errors import InputError
from theory.evidence import Finding, Result
from theory.strict_json import plain

Item = TypeVar("Item")

PROGRAM = "paper_repro.py"
TESTS = Path(__file__).parent / "tests"
FORMATS = ("png", "pdf", "svg")
REPORT = "report.html"
OPTIONS_OF_ONE = ("model", "text", "seeds", "tasks")
EXPERIMENT_OPTIONS = (*OPTIONS_OF_ONE, "device")
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "scipy",
    "matplotlib",
    "joblib",
    "lm-eval",
)
# EFBIG: a limit on the size of files is, for the user, the same as a full disk.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_LOOKS = 0.1


def main(
    argv: Sequence[str] | None = None,
    exhibits: Sequence[Exhibit] = EXHIBITS,
    data: Traversable = DATA,
    claims: Sequence[Claim] = CLAIMS,
    tests: Path = TESTS,
) -> int:
    """Run the command line `argv` (default: the process's own) and return its exit status.

    0: done, whatever the verdicts. 1: the ledger has a broken link. 2: bad usage, input or disk, with one line on
    stderr. 130: interrupted. `exhibits` is the catalogue, `data` the folder of committed results, `claims` the
    statements and `tests` the folder of the tests that check them.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    console = Console(markup=False, highlight=False)
    try:
        options = _parser().parse_args(argv)
        if options.list:
            console.print(_catalogue(exhibits, data))
            return 0
        if options.claims:
            return _show_ledger(claims, exhibits, data, tests, console)
        chosen = _chosen(options, exhibits)
        out = _output_folder(options.out)
        sections, status = [], 0
        for exhibit in chosen:
            try:
                sections.append(_reproduce(exhibit, data, options, out, argv, console))
            except InputError as error:
                if not options.all:
                    raise
                status = _fail(f"{exhibit.option}: {error}", 2)
                sections.append(Section(exhibit, None, error=str(error)))
        if options.report:
            _replace(out / REPORT, page(sections).encode())
            console.print(str(out / REPORT), soft_wrap=True)
        return status
    except InputError as error:
        return _fail(str(error), 2)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        return _fail(_disk_full(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted: finished units are kept, the same command continues from there", 130)


def _chosen(options: argparse.Namespace, exhibits: Sequence[Exhibit]) -> Sequence[Exhibit]:
    """The exhibits to show; InputError for options that do not go with the choice, or with this machine."""
    for name in (*EXPERIMENT_OPTIONS, "preset", "workers", "cluster") if options.from_data else ():
        if getattr(options, name) is not None:
            raise InputError(f"--from-data runs nothing: leave out --{name}, or leave out --from-data")
    if options.device == "cuda":
        import torch  # only here: it takes seconds

        if not torch.cuda.is_available():
            raise InputError("--device cuda: torch finds no CUDA device here; use --device cpu")
    if not options.all:
        name = f"table-{options.table}" if options.figure is None else f"figure-{options.figure}"
        return [find(name, exhibits)]
    for name in OPTIONS_OF_ONE:
        if getattr(options, name) is not None:
            raise InputError(f"--all: --{name} means something else to each exhibit; leave it out")
    if options.device == "auto":
        raise InputError("--all: --device auto is for exhibits that load one model; use cpu or cuda")
    return exhibits


def _reproduce(
    exhibit: Exhibit,
    data: Traversable,
    options: argparse.Namespace,
    out: Path,
    argv: Sequence[str],
    console: Console,
) -> Section:
    """Get the result, computed or committed, write everything of it and show its findings."""
    result = (
        _committed_result(exhibit, data) if options.from_data else _run(exhibit, options, out, argv, console)
    )
    formats = dict.fromkeys(("png", *options.format)) if options.report else options.format
    pictures = _pictures(result, exhibit, formats)
    written = _write(result, exhibit, out, {name: pictures[name] for name in options.format})
    console.print(_findings(result, exhibit))
    for path in written:
        console.print(str(path), soft_wrap=True)
    return Section(exhibit, result, pictures.get("png", b""))


def _fail(message: str, status: int) -> int:
    print(f"{PROGRAM}: error: {' '.join(message.split())}", file=sys.stderr)
    return status


def _disk_full(error: OSError) -> str:
    return f"{error.strerror}: finished units are kept; free space (or choose another --out) and run it again"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise InputError(f"{message}; see --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM, description="Reproduce an exhibit: numbers, picture, verdicts.", allow_abbrev=False
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--figure", metavar="NAME", help="a figure: a number of the paper, or a name of our own"
    )
    what.add_argument("--table", metavar="NAME", help="a table")
    what.add_argument("--all", action="store_true", help="every exhibit in turn, whatever becomes of another")
    what.add_argument(
        "--list", action="store_true", help="every exhibit, how long it takes, its last verdicts"
    )
    what.add_argument(
        "--claims", action="store_true", help="every statement: derivation, tests, exhibits, verdicts"
    )
    parser.add_argument("--model", help="tiny-olmoe, a folder or a hub id")
    parser.add_argument("--preset", choices=PRESETS, help="how much to compute (default: default)")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda", "auto"),
        help="where to compute (default: cpu); auto: one model over all GPUs and CPU memory",
    )
    parser.add_argument("--seeds", type=_count, metavar="N", help="independent noise draws or trainings")
    parser.add_argument("--text", metavar="FILE", help="evaluate on this UTF-8 text")
    parser.add_argument(
        "--tasks",
        metavar="NAMES",
        help="measure accuracy on these tasks of lm-eval, too: names with commas between, or paper for its eight",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("results"), help="default: results/")
    parser.add_argument(
        "--workers", type=_count, metavar="N", help="processes (default: one per core; 1 on cuda and auto)"
    )
    parser.add_argument(
        "--cluster",
        type=_address,
        metavar="ADDRESS",
        help="a Dask scheduler whose workers see the same --out",
    )
    parser.add_argument("--from-data", action="store_true", help="draw the committed result, run nothing")
    parser.add_argument(
        "--format", type=_formats, metavar="LIST", default=("png", "pdf"), help="of png,pdf,svg"
    )
    parser.add_argument("--report", action="store_true", help=f"all that is shown as one page, {REPORT}")
    return parser


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not allowed: give a whole number of at least 1")
    return int(text)


def _address(text: str) -> str:
    if not re.search(r":\d+$", text):  # without a port, Dask's client hangs for a minute
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: give HOST:PORT")
    return text


def _formats(text: str) -> tuple[str, ...]:
    formats = tuple(dict.fromkeys(text.split(",")))
    for name in formats:
        if name not in FORMATS:
            raise argparse.ArgumentTypeError(
                f"{name!r} is not allowed: give one or more of {','.join(FORMATS)}"
            )
    return formats


def _output_folder(out: Path) -> Path:
    """The folder, made if needed and known to be writable; absolute, as a worker may run elsewhere."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            return out.resolve()
    except OSError as error:
        raise InputError(
            f"--out {out}: cannot be written ({error.strerror}); give a folder that can"
        ) from None


# Running


def _run(
    exhibit: Exhibit, options: argparse.Namespace, out: Path, argv: Sequence[str], console: Console
) -> Result:
    started = time.monotonic()
    experiment = import_module(exhibit.experiment)
    used = inspect.signature(experiment.grid).parameters
    if options.all and "device" not in used:
        options = argparse.Namespace(**vars(options) | {"device": None})
    given = {name: value for name in EXPERIMENT_OPTIONS if (value := getattr(options, name)) is not None}
    for name in given:
        if name not in used:
            raise InputError(f"--{name}: {exhibit.option} does not use it; leave it out")
    if options.device == "auto" and "model" not in used:
        raise InputError(f"--device auto: {exhibit.option} loads no model; use cpu or cuda")
    preset = options.preset or "default"
    configs = experiment.grid(preset, **{**exhibit.defaults, **given})
    with _backend(options.cluster):
        records, computed, cached = _compute(exhibit, experiment, configs, out, options, console)
    result: Result = experiment.summarise(configs, records)
    fields = [asdict(config) for config in configs]
    return replace(
        result,
        exhibit=exhibit.name,
        preset=preset,
        provenance=result.provenance
        | {
            "command": shlex.join([PROGRAM, *argv]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "git": _git(),
            "versions": _versions(),
            "device": _device_name(options.device),
            "seeds": sorted({entry["seed"] for entry in fields if "seed" in entry}),
            # What all units have in common: the model, its weights' hash, the text's hash, ...
            "shared": {
                name: value
                for name, value in fields[0].items()
                if all(name in entry and entry[name] == value for entry in fields)
            },
            "wall_seconds": round(time.monotonic() - started, 1),
            "units": {"computed": computed, "from_cache": cached},
        },
    )


def _default_workers(options: argparse.Namespace) -> int:
    if options.cluster:
        return -1  # all that the cluster has
    return 1 if options.device in ("cuda", "auto") else joblib.cpu_count()


def _backend(cluster: str | None) -> joblib.parallel_config:
    if cluster is None:
        return joblib.parallel_config(backend="loky", inner_max_num_threads=1)
    if importlib.util.find_spec("distributed") is None:
        raise InputError(
            "--cluster: the package distributed is missing; install the extra: pip install '.[cluster]'"
        )
    try:
        return joblib.parallel_config(backend="dask", scheduler_host=cluster)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--cluster {cluster}: no Dask scheduler there ({error}); give its address"
        ) from None


def _compute(
    exhibit: Exhibit,
    experiment: ModuleType,
    configs: Sequence[Any],
    out: Path,
    options: argparse.Namespace,
    console: Console,
) -> tuple[list[dict[str, Any]], int, int]:
    """The records in the order of the configs, and how many units were computed and found in the cache."""
    unit = joblib.Memory(out / ".cache", verbose=0).cache(_unit, ignore=["measure", "config"])
    code = _code_hash(exhibit.experiment)
    keys = [_key(config) for config in configs]
    calls = {
        key: (exhibit.name, key, code, experiment.measure, config)
        for key, config in zip(keys, configs, strict=True)
    }
    # Read here what is there, so that a finished exhibit starts no worker.
    found = {key: unit(*call) for key, call in calls.items() if unit.check_call_in_cache(*call)}
    missing = [call for key, call in calls.items() if key not in found]
    parent = None if options.cluster else os.getpid()
    workers = options.workers or _default_workers(options)
    fresh = joblib.Parallel(n_jobs=workers, batch_size=1, max_nbytes=None, return_as="generator_unordered")(
        joblib.delayed(_compute_unit)(unit, call, parent) for call in missing
    )
    with warnings.catch_warnings():
        # A worker that has grown by 300 MB, as one with a model does, is replaced, and loses nothing.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
        found.update(_with_progress(fresh, exhibit.name, len(calls), len(found), console))
    return [json.loads(found[key]) for key in keys], len(missing), len(calls) - len(missing)


def _unit(exhibit: str, key: str, code: str, measure: Callable[[Any], Any], config: Any) -> str:
    """One unit of work, as JSON; joblib.Memory keys its cache on the three strings."""
    return json.dumps(plain(measure(config), f"{exhibit}: record"))


def _compute_unit(unit: Callable[..., str], call: tuple[Any, ...], parent: int | None) -> tuple[str, str]:
    """In a worker: the unit's key and record, once the record is on disk."""
    if parent not in (None, os.getpid()):
        _end_with(parent)
    if "torch" in sys.modules:  # imported together with the experiment, if it uses it at all
        sys.modules["torch"].set_num_threads(1)
    with warnings.catch_warnings():
        # joblib.Memory only warns when it cannot write; a run that goes on then would lose its work.
        warnings.simplefilter("error", CacheWarning)
        try:
            return call[1], unit(*call)
        except CacheWarning as warning:
            cause = warning.__context__
            if isinstance(cause, OSError) and cause.errno in DISK_FULL:
                raise InputError(_disk_full(cause)) from None
            raise InputError(
                f"the cache cannot be written ({cause}); make it writable, run it again"
            ) from None


@cache
def _end_with(parent: int) -> None:
    """This worker ends when its parent does: else it would go on computing, beside the run that continues.

    Ctrl-C reaches the workers, too: the parent alone answers it, and ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _key(config: Any) -> str:
    fields = plain(asdict(config), type(config).__name__)
    return json.dumps([type(config).__name__, fields], sort_keys=True)


def _code_hash(module: str) -> str:
    """Hash of the source that computes a unit: theory/ and the experiment's own package."""
    digest = hashlib.sha256()
    for package in ("theory", module.partition(".")[0]):
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None  # it was imported
        origin = Path(spec.origin)
        sources = sorted(origin.parent.rglob("*.py")) if spec.submodule_search_locations else [origin]
        for source in sources:
            digest.update(str(source.relative_to(origin.parent)).encode() + b"\0")
            digest.update(hashlib.sha256(source.read_bytes()).digest())
    return digest.hexdigest()


def _with_progress(
    items: Iterable[Item], name: str, total: int, done: int, console: Console
) -> Iterator[Item]:
    if console.is_terminal:
        columns = (
            TextColumn(name),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(name, total=total, completed=done)
            for item in items:
                progress.advance(task)
                yield item
        return
    console.print(f"{name}: {total} units, {done} of them from the cache")
    started = printed = time.monotonic()
    for item in items:
        done += 1
        now = time.monotonic()
        if done == total or now - printed > SECONDS_BETWEEN_LINES:
            console.print(f"{name}: {done} of {total} units, {now - started:.0f} s")
            printed = now
        yield item


# Provenance


def _git() -> dict[str, Any] | None:
    """Commit, and whether the tree differs from it; None if this is an installed copy and not a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    here = Path(__file__).resolve()
    try:
        git("ls-files", "--error-unmatch", here.name)  # else an environment inside someone's own repository
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _device_name(device: str | None) -> str:
    if device in ("cuda", "auto"):
        import torch

        if count := torch.cuda.device_count():
            name = torch.cuda.get_device_name()
            return name if device == "cuda" else f"{count} x {name}"
    processor = platform.processor() or platform.machine()
    cpuinfo = Path(
        "/proc/cpuinfo"
    )  # where Linux says the model; `platform` knows only the architecture there
    if cpuinfo.is_file():
        names = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if "model name" in line
        ]
        processor = names[0] if names else processor
    return f"{processor}, {joblib.cpu_count()} cores"


# Output


def _committed_result(exhibit: Exhibit, data: Traversable) -> Result:
    result = committed(exhibit, data)
    if result is None:
        raise InputError(
            f"--from-data: no result of {exhibit.option} is committed yet; run it without --from-data"
        )
    return result


def _pictures(result: Result, exhibit: Exhibit, formats: Iterable[str]) -> dict[str, bytes]:
    """The exhibit's figure, drawn once, in each of the formats."""
    import matplotlib  # here, so that --list and --help start at once

    matplotlib.use("Agg")
    # The same result gives the same bytes: neither dates nor random ids. Text in a PDF stays text (type 42).
    style: Any = {
        "svg.hashsalt": exhibit.name,
        "pdf.fonttype": 42,
        "savefig.dpi": 200,
        "savefig.bbox": "tight",
    }
    undated = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    with matplotlib.rc_context(style):
        figure = import_module(exhibit.drawing).draw(result)
        pictures = {}
        for name in formats:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=name, metadata=undated[name])
            pictures[name] = buffer.getvalue()
    return pictures


def _write(result: Result, exhibit: Exhibit, out: Path, pictures: Mapping[str, bytes]) -> list[Path]:
    drawing = import_module(exhibit.drawing)
    rows = (
        drawing.table(result) if hasattr(drawing, "table") else [_row(finding) for finding in result.findings]
    )
    contents = {"json": result.to_json().encode(), "csv": _csv(rows), **pictures}
    paths = {out / f"{exhibit.name}.{suffix}": content for suffix, content in contents.items()}
    for path, content in paths.items():
        _replace(path, content)
    return list(paths)


def _replace(path: Path, content: bytes) -> None:
    """Write the file whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue().encode()


def _row(finding: Finding) -> dict[str, Any]:
    low, high = finding.interval or (None, None)
    row = asdict(finding)
    del row["interval"]
    return row | {"low": low, "high": high}


def _findings(result: Result, exhibit: Exhibit) -> Table:
    table = Table(
        "claim", "estimate [interval]", "n", "rule", "verdict", title=exhibit.title, show_lines=True
    )
    for finding in result.findings:
        table.add_row(finding.claim, finding.measured, str(finding.n), finding.rule, finding.verdict)
    return table


def _catalogue(exhibits: Sequence[Exhibit], data: Traversable) -> Table:
    table = Table(Column("exhibit", no_wrap=True), "shows", "time", "last verdicts", show_lines=True)
    for exhibit in exhibits:
        times = "\n".join(f"{preset}: {exhibit.times[preset]}" for preset in PRESETS)
        table.add_row(exhibit.option, exhibit.title, times, "\n".join(_verdicts(exhibit, data)))
    return table


def _verdicts(exhibit: Exhibit, data: Traversable) -> list[str]:
    """How many findings of the committed result have which verdict."""
    result = committed(exhibit, data)
    verdicts = [finding.verdict for finding in result.findings] if result else []
    return [f"{verdicts.count(name)} {name}" for name in sorted(set(verdicts))] or ["no result yet"]


# The ledger


def _show_ledger(
    claims: Sequence[Claim],
    exhibits: Sequence[Exhibit],
    data: Traversable,
    tests: Path,
    console: Console,
) -> int:
    """Checks every derivation, prints the ledger and what is broken in it; 1 if anything is, else 0."""
    if not (tests / "theory").is_dir():  # a folder `tests` beside an installed copy is someone else's
        raise InputError(
            "--claims: an installed copy has no tests to show; run it in a checkout of the repository"
        )
    started = time.monotonic()
    derivations = {claim.id: claim.steps() for claim in claims}
    failures = {step: step.failure() for steps in derivations.values() for step in steps}
    seconds = time.monotonic() - started
    tested = marked_tests(tests)
    shown = {exhibit.name: exhibit for exhibit in exhibits}
    broken = [f"tests name the claim {name}, which does not exist" for name in tested.keys() - {*derivations}]
    table = Table("claim", "statement", "origin", "derivation", "tests", "exhibits", show_lines=True)
    for claim in claims:
        steps = derivations[claim.id]
        missing = [
            *(["no derivation"] if not steps else []),
            *(["no test"] if claim.id not in tested else []),
            *(["no exhibit"] if not claim.exhibits else []),
            *(f"{name} is not in the catalogue" for name in claim.exhibits if name not in shown),
            *(f"step fails: {step.equation} ({failures[step]})" for step in steps if failures[step]),
        ]
        broken += [f"{claim.id}: {each}" for each in missing]
        verdicts = [
            f"{name}: {', '.join(_verdicts(shown[name], data)) if name in shown else 'missing'}"
            for name in claim.exhibits
        ]
        table.add_row(
            claim.id,
            claim.statement,
            claim.origin,
            "\n".join(_counts(steps, failures)),
            str(len(tested.get(claim.id, ()))),
            "\n".join(verdicts),
        )
    console.print(table)
    console.print(f"{len(failures)} steps in {seconds:.0f} s: {', '.join(_counts(list(failures), failures))}")
    for line in sorted(broken):
        console.print(f"broken: {line}", soft_wrap=True)
    return 1 if broken else 0


def _counts(steps: Sequence[Step], failures: Mapping[Step, str | None]) -> list[str]:
    """For each kind of step how many there are and how many of them pass; of cited ones, their hypotheses."""
    counts = []
    for kind in KINDS:
        outcomes = [failures[step] is None for step in steps if step.kind == kind]
        if outcomes:
            what = "hypotheses checked of" if kind == "cited" else "of"
            counts.append(f"{kind}: {sum(outcomes)} {what} {len(outcomes)}")
    return counts


if __name__ == "__main__":
    # By its name: functions of `__main__` would have another cache than those of the console script.
    sys.exit(import_module("paper_repro").main())

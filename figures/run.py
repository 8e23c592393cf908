"""How an exhibit is computed: units of work, a cache that survives every kind of stop, and workers.

Every unit of work is written to the cache [cache.py] as soon as it is finished, so a run that was stopped, however
roughly, continues where it was when the same command is given again. Two runs in one output folder share units.
"""

import atexit
import hashlib
import importlib.util
import inspect
import itertools
import json
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, replace
from functools import cache, partial
from importlib import import_module
from importlib.resources.abc import Traversable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeVar

import joblib
from filelock import FileLock, Timeout
from joblib.externals.loky import BrokenProcessPool
from joblib.externals.loky.backend import resource_tracker
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from figures.cache import DECIDING, FOLDER, Unit, earlier_layout, tidy
from figures.catalogue import DATA, Exhibit, committed
from figures.files import OF_PLACES, remove_leftovers
from figures.options import flag
from figures.provenance import judging, processor, provenance, versions
from theory.errors import InputError
from theory.evidence import Result
from theory.kept import keeping
from theory.strict_json import plain

Item = TypeVar("Item")
Call = tuple[Unit, Callable[[Any], Any], Any]  # a unit, what measures it, and its config
Outcome = tuple[str, tuple[Any, bool] | None, int]  # what _compute_unit returns
Outcomes = Generator[Outcome, None, None]

# After workers were killed, the process that tracks their semaphores warns of those that it removes.
OF_THE_TRACKER = "ignore:resource_tracker:UserWarning"
TOO_LITTLE = "finished units are kept; if memory is short, free some or use fewer --workers, and run it again"
PROGRESS_SECONDS = 10.0  # between two lines of progress where there is no terminal
PARENT_POLL_SECONDS = 0.1  # between two looks of a worker at its parent
_held: list[FileLock] = []  # of this process, which is a worker, for as long as it lives


class Killed(Exception):  # noqa: N818 (it is caught here)
    """On a cluster: units, by their keys, whose process was killed however often they were tried."""


def understood(exhibit: Exhibit) -> frozenset[str]:
    """Names of the options that the exhibit's experiment takes."""
    return frozenset(inspect.signature(import_module(exhibit.experiment).grid).parameters) - {"preset"}


def run(
    exhibit: Exhibit,
    preset: str,
    options: Mapping[str, Any],
    *,
    out: Path,
    command: Sequence[str],
    console: Console,
    workers: int | None = None,
    cluster: str | None = None,
    brief: bool = False,
    data: Traversable = DATA,
) -> Result:
    """Compute the exhibit's units that the cache lacks, and summarise all of them.

    options: those of catalogue.EXPERIMENT_OPTIONS that the user gave.
    out: folder of the cache.
    command: the program and the arguments, for the provenance.
    workers: number of processes, of the cluster if there is one; None leaves it to the device, or to the cluster.
    cluster: address of a Dask scheduler; None computes here.
    brief: True leaves out the lines of progress where there is no terminal.
    data: folder of committed results.
    """
    started, began = time.monotonic(), judging(exhibit)
    experiment = import_module(exhibit.experiment)
    used = understood(exhibit)
    for name in options:
        if name not in used:
            fixed = name == "hardware" and (
                hasattr(experiment, "Hardware") or hasattr(getattr(experiment, "Config", None), "hardware")
            )
            why = "fixes the hardware by its rules" if fixed else "does not use it"
            given = "--hardware, or a field of it" if name == "hardware" else flag(name)
            raise InputError(f"{given}: {exhibit.option} {why}; leave it out")
    device = options.get("device")
    if device == "auto" and "model" not in used:
        raise InputError(f"--device auto: {exhibit.option} loads no model; use cpu or cuda")
    decided_by = {
        "exhibit": exhibit.name,
        "code": code_hash(exhibit.experiment),
        "versions": versions(DECIDING),
        "processor": processor(device),
    }
    tidy(out, exhibit.name)
    keep = _Keeper(Unit(out / FOLDER, decided_by))
    with keeping(keep):
        configs = experiment.grid(preset, **{**exhibit.defaults, **options})
    calls = _calls(decided_by, experiment.measure, configs, out)
    if line := earlier_layout(out):
        console.print(line, soft_wrap=True)
    with _backend(cluster, workers, exhibit.experiment, device) as outcomes:
        records, computed = _compute(
            calls, exhibit.name, damaged=keep.replaced, outcomes=outcomes, console=console, brief=brief
        )
    result: Result = experiment.summarise(configs, [records[_key(config)] for config in configs])
    origin = provenance(
        command,
        [asdict(config) for config in configs],
        hardware=_hardware(configs),
        began=began,
        device=device,
        wall_seconds=time.monotonic() - started,
        computed=computed,
        from_cache=len(calls) - computed,
    )
    result = replace(result, exhibit=exhibit.name, preset=preset, provenance=result.provenance | origin)
    if hasattr(experiment, "joined"):
        result = experiment.joined(result, committed(exhibit, data))
    return result


def _hardware(configs: Sequence[Any]) -> list[dict[str, Any]]:
    """All hardware that the units are on, each once."""
    found = dict.fromkeys(each for config in configs for each in getattr(config, "hardware", ()))
    return [asdict(each) for each in found]


@contextmanager
def _backend(
    cluster: str | None, workers: int | None, experiment: str, device: str | None
) -> Iterator[Callable[[Mapping[str, Call], bool], Outcomes]]:
    """What makes outcomes of calls; True lets it wait for other runs. Processes here do it, or a cluster."""
    if cluster is None:
        known = os.environ.get("PYTHONWARNINGS", "").split(",")
        quiet = ",".join(filter(None, dict.fromkeys([*known, OF_THE_TRACKER])))
        # A safe path: else workers import a file called socket.py from the current folder.
        with _environment(PYTHONSAFEPATH="1", PYTHONWARNINGS=quiet):
            _start_tracker()
            cards = _cards(device)
            own = os.getpid(), cards, _places() if cards else None
            with joblib.parallel_config(
                backend="loky", inner_max_num_threads=1, initializer=_start_worker, initargs=own
            ):
                yield partial(_here, workers or (1 if device in ("cuda", "auto") else joblib.cpu_count()))
        return
    if importlib.util.find_spec("distributed") is None:
        raise InputError(
            "--cluster: the package distributed is missing; install the extra: pip install '.[cluster]'"
        )
    from figures.cluster import on_cluster

    yield partial(on_cluster, cluster, _compute_unit, experiment=experiment, device=device, limit=workers)


def _here(workers: int, calls: Mapping[str, Call], wait: bool) -> Outcomes:
    outcomes: Outcomes = joblib.Parallel(
        n_jobs=workers, batch_size=1, max_nbytes=None, return_as="generator_unordered"
    )(joblib.delayed(_compute_unit)(key, call, wait) for key, call in calls.items())
    return outcomes


def _start_tracker() -> None:
    """Start the process that removes the semaphores of workers; it outlives a signal to the whole process group.

    Whatever a tracker that was killed itself has left is removed here.
    """
    remove_leftovers()
    if threading.current_thread() is not threading.main_thread():
        return  # where signals cannot be set
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which it inherits; it ignores others by itself
    try:
        resource_tracker.ensure_running()
    finally:
        signal.signal(signal.SIGHUP, before)


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """These environment variables for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


class _Keeper:
    """Keeps what a unit shares with others [Unit.part]; replaced: how many damaged results it replaced."""

    def __init__(self, unit: Unit) -> None:
        self._unit, self.replaced = unit, 0

    def __call__(self, name: str, decided_by: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        record, damaged = self._unit.part(name, decided_by, compute)
        self.replaced += damaged
        return record


def _calls(
    decided_by: Mapping[str, Any], measure: Callable[[Any], Any], configs: Sequence[Any], out: Path
) -> dict[str, Call]:
    """Each unit once, by its config as JSON."""
    return {
        (key := _key(config)): (
            Unit(out / FOLDER, {**decided_by, "config": json.loads(key)}),
            measure,
            config,
        )
        for config in configs
    }


def _compute(
    calls: Mapping[str, Call],
    name: str,
    *,
    damaged: int,
    outcomes: Callable[[Mapping[str, Call], bool], Outcomes],
    console: Console,
    brief: bool,
) -> tuple[dict[str, Any], int]:
    """The records by key, and how many of the units had to be computed here.

    damaged: how many intermediate results were replaced so far.
    """
    # Read here what is there, so that a finished exhibit starts no worker.
    found = {key: record for key, (unit, *_) in calls.items() if (record := unit.read()) is not None}
    damaged += sum(unit.damaged for key, (unit, *_) in calls.items() if key not in found)

    def finished(keys: Iterable[str], wait: bool) -> Iterator[bool]:
        """Whether each unit that is done now was computed here; those that other runs compute are left out."""
        nonlocal damaged
        with closing(outcomes({key: calls[key] for key in keys}, wait)) as work:
            for key, done, replaced in work:
                damaged += replaced
                if done is not None:
                    found[key] = done[0]
                    yield done[1]

    def all_finished() -> Iterator[bool]:
        killed = dict[str, None]()  # units whose process was killed: each is tried once more, alone
        wait, unexplained = False, 0
        while left := [key for key in calls if key not in found and key not in killed]:
            try:
                yield from finished(left, wait)
                wait = True
            except BrokenProcessPool:
                abandoned = [key for key in left if calls[key][0].abandoned]
                killed |= dict.fromkeys(abandoned)
                unexplained += not abandoned
                if unexplained > 1:
                    raise InputError(
                        f"{name}: workers were killed before they computed; {TOO_LITTLE}"
                    ) from None
            except Killed as error:
                named = "; ".join(_told(calls, key) for key in error.args)
                raise InputError(
                    f"{name}: every process of the unit {named} was killed; {TOO_LITTLE}"
                ) from None
        twice = []
        for key in killed:
            try:
                yield from finished([key], wait=True)
            except BrokenProcessPool:
                twice.append(_told(calls, key))
        if twice:
            raise InputError(
                f"{name}: the process of the unit {'; '.join(twice)} was killed twice; {TOO_LITTLE}"
            )

    with warnings.catch_warnings():
        # A worker that has grown by 300 MB, as one with a model does, is replaced, and loses nothing.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
        computed = sum(_with_progress(all_finished(), name, len(calls), len(found), console, brief))
    if damaged:
        console.print(f"{name}: {damaged} damaged records were computed again", soft_wrap=True)
    return found, computed


def _told(calls: Mapping[str, Call], key: str) -> str:
    """The unit's config in short: what other units have otherwise."""
    configs = [json.loads(each)[1] for each in calls]
    own = json.loads(key)[1]
    return ", ".join(
        f"{name} {value}" for name, value in own.items() if any(each.get(name) != value for each in configs)
    )


def _compute_unit(key: str, call: Call, wait: bool) -> Outcome:
    """In a worker: the unit's key, its record once that is on disk [Unit.once], and how many damaged parts it replaced.

    What units share, such as scores and calibrations, is kept on disk, too.
    """
    unit, measure, config = call
    keep = _Keeper(unit)
    if "torch" in sys.modules:  # imported together with the experiment, if it uses it at all
        sys.modules["torch"].set_num_threads(1)
    with keeping(keep):
        return key, unit.once(lambda: measure(config), wait), keep.replaced


def _cards(device: str | None) -> list[str]:
    """The GPUs that workers share out among them, as CUDA_VISIBLE_DEVICES names them."""
    if device != "cuda":
        return []
    count = sys.modules["torch"].cuda.device_count()  # it was imported with the experiment
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


@cache
def _places() -> Path:
    """The folder in which each worker locks the file of its place."""
    folder = Path(mkdtemp(prefix=f"{OF_PLACES}{os.getpid()}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _start_worker(parent: int, cards: Sequence[str], places: Path | None) -> None:
    """Make this worker end with its parent, and give it a GPU of its own, as long as there are enough."""
    _end_with(parent)
    if places is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = cards[_first_free(places) % len(cards)]


def _first_free(places: Path) -> int:
    """The first place that no other worker has; it is this one's as long as this process lives."""
    for place in itertools.count():
        lock = FileLock(places / str(place), timeout=0)
        with suppress(Timeout):
            lock.acquire()
            _held.append(lock)
            return place
    raise AssertionError("unreachable")


def _end_with(parent: int) -> None:
    """This worker ends when its parent does: else it would go on computing, beside the run that continues.

    Signals to the whole process group reach the workers, too: the parent alone answers them, and ends the workers.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _key(config: Any) -> str:
    fields = plain(asdict(config), type(config).__name__)
    return json.dumps([type(config).__name__, fields], sort_keys=True)


def code_hash(module: str) -> str:
    """Hash of the source that computes a unit: theory/ and the experiment's own package, not figures/."""
    packages = ("theory", module.partition(".")[0])
    return hashlib.sha256("".join(map(_package_hash, packages)).encode()).hexdigest()


@cache  # of what this process has imported: a worker may outlive a change of the source
def _package_hash(package: str) -> str:
    digest = hashlib.sha256()
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None  # it was imported
    origin = Path(spec.origin)
    sources = sorted(origin.parent.rglob("*.py")) if spec.submodule_search_locations else [origin]
    for source in sources:
        digest.update(str(source.relative_to(origin.parent)).encode() + b"\0")
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    return digest.hexdigest()


def _with_progress(
    items: Iterable[Item], name: str, total: int, done: int, console: Console, brief: bool
) -> Iterator[Item]:
    """The items; how many there are by now is shown meanwhile, on a terminal as a bar."""
    if console.is_terminal:
        columns = (
            TextColumn(name),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=brief) as progress:
            task = progress.add_task(name, total=total, completed=done)
            for item in items:
                progress.advance(task)
                yield item
        return
    if brief:
        yield from items
        return
    console.print(f"{name}: {total} units, {done} of them from the cache")
    started = printed = time.monotonic()
    for item in items:
        done += 1
        now = time.monotonic()
        if done == total or now - printed > PROGRESS_SECONDS:
            console.print(f"{name}: {done} of {total} units, {now - started:.0f} s")
            printed = now
        yield item

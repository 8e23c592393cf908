"""Faults against the command line, seeded: kills, damage, full disks, signals, hostile folders, texts and options.

Whatever happens, numbers are those of an undisturbed run, no finished unit is computed again, nothing that was found
is executed, and a failure is one line with its status. A fault is a function of a random generator and an empty folder
that raises AssertionError. This process imports everything once; each command line runs in a fork of it.

Usage: python tests/faults/faults.py [COUNT] [--seed N] [--kind NAME] [--json FILE]
"""

import argparse
import contextlib
import gc
import io
import itertools
import json
import math
import os
import pickle
import random
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "TOY_LOG": os.devnull}
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "end_to_end"), str(ROOT / "tests" / "realmodels")]
# Workers are processes of their own, and have to find the toy exhibit, too.
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:3])

import toy_exhibit  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

import figures.run  # noqa: E402, F401  (imported here, once)
import paper_repro  # noqa: E402
from figures.files import SHARED_MEMORY  # noqa: E402
from theory.errors import InputError  # noqa: E402
from theory.evidence import Result  # noqa: E402

Fault = Callable[[random.Random, Path], None]

SECONDS = 60  # a command line that takes longer hangs
AFTER_SECONDS = 2  # within which its workers end
UNITS = 6
RUN = ("--figure", "pi", "--seeds", str(UNITS), "--workers", "1", "--format", "png")
NAME = f"figure-pi.default.seeds-{UNITS}.json"
toy_exhibit.draw = lambda result: Figure(figsize=(0.2, 0.2))  # pictures are not what fails here
# By name: the fault, and how many of a hundred faults are of the kind.
KINDS: dict[str, tuple[Fault, int]] = {}


def kind(share: int) -> Callable[[Fault], Fault]:
    def register(fault: Fault) -> Fault:
        KINDS[fault.__name__.replace("_", " ")] = (fault, share)
        return fault

    return register


# ------------------------------------------------------------------------------------- a command line in a fork


class Started:
    """Something that runs in a fork of this process, with files for its output.

    status: the exit status, minus the number of the signal that ended it, once `finish` was called.
    """

    def __init__(
        self,
        call: Callable[[], int],
        folder: Path,
        *,
        stdout: int | None = None,
        limit: int | None = None,
        **environment: str,
    ) -> None:
        self._stdout = tempfile.TemporaryFile(dir=folder.parent)  # noqa: SIM115
        self._stderr, writer = os.pipe()  # which ends with the last process that may write
        sys.stdout.flush()
        # The program answers from its first line to its last: signals wait until then, and after that.
        signal.pthread_sigmask(signal.SIG_BLOCK, paper_repro.INTERRUPTS)
        self.process = os.fork()
        if self.process == 0:
            status = 70
            try:
                os.setsid()
                os.dup2(self._stdout.fileno() if stdout is None else stdout, 1)
                os.dup2(writer, 2)
                os.close(writer)
                os.environ |= environment
                if limit is not None:
                    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                for number in paper_repro.INTERRUPTS:
                    signal.signal(number, paper_repro._stopped_early)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, paper_repro.INTERRUPTS)
                status = call()
                signal.pthread_sigmask(signal.SIG_BLOCK, paper_repro.INTERRUPTS)
                sys.stdout.flush()
                sys.stderr.flush()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, paper_repro.INTERRUPTS)
        os.close(writer)

    def signal(self, number: int) -> None:
        """To the whole group, as a terminal sends it; or to the process alone, if it has just been forked."""
        try:
            os.killpg(self.process, number)
        except ProcessLookupError:
            os.kill(self.process, number)

    def finish(self) -> "Started":
        pidfd = os.pidfd_open(self.process)
        try:
            hangs = not select.select([pidfd], [], [], SECONDS)[0]
        finally:
            os.close(pidfd)
        if hangs:
            os.killpg(self.process, signal.SIGKILL)
        self.status = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        self.err, ended = self._errors()
        self._stdout.seek(0)
        self.out = self._stdout.read().decode(errors="surrogateescape")
        self._stdout.close()
        assert not hangs, f"it hangs: {self.out[-300:]} {self.err[-300:]}"
        assert ended, "its workers outlive it"
        return self

    def _errors(self) -> tuple[str, bool]:
        """What is on stderr, and whether nobody can write there any more."""
        found, read = b"", b"?"
        while read and select.select([self._stderr], [], [], AFTER_SECONDS)[0]:
            read = os.read(self._stderr, 2**16)
            found += read
        os.close(self._stderr)
        return found.decode(errors="surrogateescape"), not read

    def expect(self, *statuses: int) -> "Started":
        """The status is one of these, and what is on stderr goes with it: nothing, or one line."""
        assert self.status in statuses, f"status {self.status}: {self.err[-2000:]}"
        if self.status in (0, -signal.SIGKILL):
            assert self.err == "", self.err[-2000:]
        else:
            expect_one_line(self.err)
        return self


def expect_one_line(errors: str) -> None:
    assert errors.startswith("paper_repro.py: error: "), errors[-2000:]
    assert errors.count("\n") == 1 and errors.endswith("\n"), errors[-2000:]
    assert "Traceback" not in errors


def start(out: Path, *options: str, line: Sequence[str] = RUN, **settings: Any) -> Started:
    command = [*line, "--out", str(out), *options]
    settings.setdefault("TOY_LOG", str(out.parent / "log"))
    return Started(lambda: paper_repro.main(command, toy_exhibit.EXHIBITS), out, **settings)


def run(out: Path, *options: str, **settings: Any) -> Started:
    return start(out, *options, **settings).finish()


def executed(out: Path) -> list[int]:
    log = out.parent / "log"
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def records(out: Path) -> dict[int, Path]:
    """The records that are whole, by seed."""
    found = {}
    for file in (out / ".cache" / "units").rglob("*.json"):
        content = json.loads(file.read_text())
        found[content["record"]["seed"]] = file
    return found


def numbers(out: Path) -> Any:
    return Result.from_json((out / NAME).read_text()).data


@lru_cache(maxsize=1)
def undisturbed() -> tuple[Any, dict[str, bytes]]:
    """Numbers and files of a run in this process; what it imports and makes once, forks of this process have."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        for options in (["--list"], [*RUN, "--report"], RUN):
            out = Path(folder) / str(len(options))
            assert paper_repro.main([*options, "--out", str(out)], toy_exhibit.EXHIBITS) == 0
        files = {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}
        return numbers(out), files


@lru_cache(maxsize=1)
def duration() -> float:
    """Seconds that a run takes here and now."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        run(Path(folder) / "out", TOY_PAUSE="0.005").expect(0)
        return time.monotonic() - began


def some_moment(rng: random.Random) -> None:
    """Wait until any moment of a run, or shortly after."""
    moment = rng.uniform(0, 1.2)
    time.sleep(moment * duration())


def finished(out: Path) -> Path:
    """The folder after an undisturbed run."""
    for name, content in undisturbed()[1].items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    return out


def expect_numbers(out: Path) -> None:
    assert numbers(out) == undisturbed()[0]


def expect_clean(out: Path, *others: str) -> None:
    """Nothing is left but results, records, and files of other suffixes that are named."""
    files = [path.relative_to(out) for path in out.rglob("*") if not path.is_dir()]
    strange = [str(file) for file in files if file.suffix not in (".json", ".csv", ".png", *others)]
    assert not strange, strange


def expect_continued(out: Path, **environment: str) -> None:
    """The next run computes what is missing, and that alone; numbers are right, and nothing is left over."""
    before, noted = set(records(out)), len(executed(out))
    run(out, **environment).expect(0)
    assert sorted([*before, *executed(out)[noted:]]) == list(range(UNITS))
    expect_numbers(out)
    expect_clean(out)


@contextmanager
def bait(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """A file that must stay as it is, and a pickle that would change it."""
    precious = folder / "precious"
    precious.write_text("mine")

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.system, (f"echo executed >> {precious}",))

    yield precious, pickle.dumps(Bomb())
    assert precious.read_text() == "mine", "what was found was executed, or followed"


# --------------------------------------------------------------------------------------- kills, signals, disks


@kind(14)
def kill_by_moment(rng: random.Random, folder: Path) -> None:
    """Killed once to three times, anywhere: each later run computes what is missing, and that alone."""
    out = folder / "out"
    for _ in range(rng.randint(1, 3)):
        before, noted = set(records(out)), len(executed(out))
        started = start(out, TOY_PAUSE="0.005", TOY_LARGE=str(rng.randrange(UNITS)))
        some_moment(rng)
        started.signal(signal.SIGKILL)
        started.finish().expect(0, -signal.SIGKILL)
        assert not before & set(executed(out)[noted:]), "a finished unit was computed again"
        assert before <= set(records(out)), "a finished unit was lost"
    expect_continued(out)


@kind(10)
def signal_by_moment(rng: random.Random, folder: Path) -> None:
    """One signal, or several at once, as of an impatient user."""
    out = folder / "out"
    started = start(out, TOY_PAUSE="0.005")
    some_moment(rng)
    for _ in range(rng.choice([1, 1, 4])):
        started.signal(rng.choice(paper_repro.INTERRUPTS))
        time.sleep(rng.uniform(0, 0.003))
    started.finish().expect(0, 130)
    expect_continued(out)


@kind(8)
def disk_by_size(rng: random.Random, folder: Path) -> None:
    """No file may be larger than this: one line, nothing lost, and no half of a file."""
    out = folder / "out"
    large = str(rng.randrange(UNITS))
    limited = run(out, limit=int(10 ** rng.uniform(0, 5.5)), TOY_LARGE=large).expect(0, 2)
    assert limited.status == 0 or "too large" in limited.err or "cannot be written" in limited.err
    expect_clean(out, ".lock")
    (folder / "log").unlink(missing_ok=True)  # its last line may have been cut, too
    expect_continued(out, TOY_LARGE=large)


@kind(5)
def two_runs_at_once(rng: random.Random, folder: Path) -> None:
    out = folder / "out"
    first = start(out, TOY_PAUSE="0.01")
    time.sleep(rng.uniform(0, 0.1))
    second = start(out, TOY_PAUSE="0.01")
    if rng.random() < 0.5:
        time.sleep(rng.uniform(0, 0.15))
        first.signal(signal.SIGKILL)
    first.finish().expect(0, -signal.SIGKILL)
    second.finish().expect(0)
    repeated = len(executed(out)) - UNITS
    assert 0 <= repeated <= (first.status != 0), f"{repeated} units were computed again"
    expect_numbers(out)
    run(out).expect(0)
    expect_clean(out)


@kind(3)
def output_that_ends(rng: random.Random, folder: Path) -> None:
    """A pipe that nobody reads, or a full device: results are written all the same."""
    out = folder / "out"
    if rng.random() < 0.5:
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open("/dev/full", os.O_WRONLY)
    try:
        run(out, stdout=writer).expect(0)
    finally:
        os.close(writer)
    expect_numbers(out)


@kind(1)
def killed_with_workers(rng: random.Random, folder: Path) -> None:
    """Killed alone, while real workers start or compute; or with all of its processes: the next run cleans up."""
    out = folder / "out"
    started = start(out, "--workers", "2", TOY_PAUSE="0.2")
    while not (out / ".cache").is_dir():
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 2))
    if rng.random() < 0.5:
        os.kill(started.process, signal.SIGKILL)
    else:
        started.signal(signal.SIGKILL)
    started.finish().expect(0, -signal.SIGKILL)
    expect_continued(out)
    number = re.compile(rf"[-_]{started.process}[-_]")  # not a part of another process's
    left = [path.name for path in SHARED_MEMORY.glob("*") if number.search(path.name)]
    assert not left, left


@kind(1)
def worker_killed(rng: random.Random, folder: Path) -> None:
    """Real workers; one kills itself in the middle of a unit, once or always."""
    out, seed, kills = folder / "out", str(rng.randrange(UNITS)), rng.choice(["1", "9"])
    ended = run(out, "--workers", "2", TOY_KILLED=seed, TOY_KILLS=kills).expect(0, 2)
    assert ended.status == (0 if kills == "1" else 2), f"status {ended.status} after {kills} kills"
    assert executed(out).count(int(seed)) == 2, f"{seed} in {executed(out)}"
    run(out).expect(0)
    assert executed(out).count(int(seed)) == (2 if kills == "1" else 3)
    # The other worker is ended, too, and what it was computing is computed again.
    assert len(executed(out)) <= UNITS + (2 if kills == "1" else 3), f"{seed} {kills} in {executed(out)}"
    expect_numbers(out)
    expect_clean(out)


# ------------------------------------------------------------------------------------------- damage in the cache


def damaged(rng: random.Random, content: bytes, explosive: bytes) -> bytes:
    """Other bytes, by one of the ways in which files break."""
    place, bits = rng.randrange(len(content)), rng.randrange(1, 256)
    other: bytes = rng.choice(
        [
            content[:place],
            content[:place] + bytes([content[place] ^ bits]) + content[place + 1 :],
            content[:place] + content[place + 1 :],
            content[:place] + rng.randbytes(3) + content[place:],
            content + content,
            content + b"\0",
            b"",
            rng.randbytes(len(content)),
            explosive,
            b"[" * 10**5,
            b"1e999",
            content.replace(b'"pi": ', b'"pi": 1', 1),
            content.replace(b'"pi": 3', b'"pi": 1e999', 1),
            content.replace(b'"pi": 3', b'"pi": NaN, "x": 3', 1),
            content.replace(b'"throws": 1000', b'"throws": 999', 1),
        ]
    )
    return other


@kind(14)
def damage_by_byte(rng: random.Random, folder: Path) -> None:
    """Damaged records are computed again, and no others; how many is said in one line."""
    out = finished(folder / "out")
    files, broken = records(out), 0
    with bait(folder) as (_, explosive):
        chosen = rng.sample(sorted(files), rng.randint(1, 3))
        for seed in chosen:
            content = files[seed].read_bytes()
            other = damaged(rng, content, explosive)
            if len(chosen) == 1 and rng.random() < 0.2:
                other = files[(seed + 1) % UNITS].read_bytes()  # a whole record, but not its own
            files[seed].write_bytes(other)
            broken += not same(other, content)
        noted = len(executed(out))
        again = run(out).expect(0)
        assert len(executed(out)) - noted == broken, "another number of units than damaged ones was computed"
        assert set(executed(out)[noted:]) <= set(chosen)
        assert not broken or f"{broken} damaged records were computed again" in again.out
        expect_numbers(out)
        expect_clean(out)


def same(one: bytes, two: bytes) -> bool:
    """True if both say the same: white space, say, may differ."""
    try:
        return bool(json.loads(one) == json.loads(two))
    except (ValueError, RecursionError):
        return False


def hostile(rng: random.Random, place: Path, precious: Path, explosive: bytes) -> None:
    """Put something else into this place."""
    if place.is_symlink() or place.is_file():
        place.unlink()
    elif place.is_dir():
        shutil.rmtree(place)
    if not place.parent.is_dir():
        return  # something else is there already
    how = rng.choice(["link", "loop", "nowhere", "fifo", "folder", "pickle", "device"])
    if how == "fifo":
        os.mkfifo(place)
    elif how == "folder":
        place.mkdir()
    elif how == "pickle":
        place.write_bytes(explosive)
    else:
        targets = {
            "link": precious,
            "loop": place,
            "nowhere": precious.parent / "nowhere",
            "device": Path("/dev/zero"),
        }
        place.symlink_to(targets[how])


@kind(10)
def hostile_cache(rng: random.Random, folder: Path) -> None:
    """Links, FIFOs, folders and pickles in the places of records, locks, results and folders."""
    out = finished(folder / "out")
    with bait(folder) as (precious, explosive):
        files = sorted(records(out).values())
        places = [*files, *(file.with_suffix(".lock") for file in files), files[0].parent, out / NAME]
        for place in rng.sample(places, rng.randint(1, 4)):
            hostile(rng, place, precious, explosive)
        if run(out).expect(0, 2).status == 0:
            expect_numbers(out)
        shutil.rmtree(out / ".cache")
        if (out / NAME).is_dir():
            (out / NAME).rmdir()
        run(out).expect(0)
        expect_numbers(out)


@kind(5)
def damaged_result(rng: random.Random, folder: Path) -> None:
    """A result that lies in --out, shown again."""
    out = finished(folder / "out")
    show = ["--figure", "pi", "--from-data", "--report", "--format", "png"]
    content, shown = (out / NAME).read_bytes(), out / "figure-pi.default.json"
    with bait(folder) as (precious, explosive):
        if rng.random() < 0.2:
            hostile(rng, shown, precious, explosive)
        else:
            shown.write_bytes(damaged(rng, content, explosive))
        run(out, line=show).expect(0, 2)


# ------------------------------------------------------------------------------------------------------------- options

WORDS = (
    "pi", "lost", "3", "quick", "full", "huge", "cpu", "cuda", "0", "1", "2", "-1", "9" * 40, "", " ", ".", "~",
    "~nobody", "/dev/null", "png", "png,pdf", "x" * 300, os.fsdecode(b"\xff"), "a\nb", "\u202e", "'\"",
)  # fmt: skip
OPTIONS = (
    ("--figure", True), ("--table", True), ("--all", False), ("--list", False), ("--claims", False),
    ("--json", False), ("--model", True), ("--preset", True), ("--device", True), ("--seeds", True),
    ("--first-seed", True), ("--text", True), ("--tasks", True), ("--forget", False), ("--workers", True),
    ("--cluster", True), ("--from-data", False), ("--format", True), ("--report", False), ("--nonsense", True),
    ("--version", False), ("--help", False), ("--hardware", True), ("--c", True), ("--noise", True),
    ("--w-max", True), ("--tile", True), ("--bits", True), ("--dac-bits", True), ("--kappa", True),
    ("--calibration", True),
)  # fmt: skip


@kind(7)
def command_line_by_grammar(rng: random.Random, folder: Path) -> None:
    """Any options with any values: status 0 and nothing on stderr, or 2 and one line."""
    words: list[str] = []
    if rng.random() < 0.7:
        words += ["--figure", "pi", "--preset", "quick", "--workers", "1", "--format", "png"]
    for name, takes in rng.choices(OPTIONS, k=rng.randint(0, 4)):
        value = rng.choice(WORDS)
        words += [] if name in ("--claims", "--seeds") and not takes else [name]
        words += [value] if takes and rng.random() < 0.9 else []
    if "--cluster" in words:  # a cluster has tests of its own
        words.remove("--cluster")
    seeds = [value for name, value in itertools.pairwise(words) if name == "--seeds"]
    if any(len(value) > 3 for value in seeds):
        words += ["--preset", "huge"]  # as many units would not end

    def use() -> int:
        os.chdir(folder)
        try:
            return paper_repro.main([*words, "--out", str(folder / "out")], toy_exhibit.EXHIBITS[:1])
        except SystemExit as end:  # --help and --version
            return int(end.code or 0)

    ended = Started(use, folder, TOY_LOG=str(folder / "log")).finish()
    try:
        ended.expect(0, 2)
    except AssertionError as error:
        raise AssertionError(f"{words}: {error}") from None


# ------------------------------------------------------------------------------------------ models and texts of others

# Imported last: forks of a large process are slow.


@lru_cache(maxsize=1)
def checkpoint() -> dict[str, bytes]:
    """The files of a small model, which was loaded once."""
    import torch
    from small_models import save, small_network

    import realmodels

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        save(small_network().to(torch.bfloat16), Path(folder))
        realmodels.load(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def nasty(rng: random.Random) -> Any:
    """A value that a config should not have."""
    return rng.choice(
        [0, -1, 1, 2, 3, 7, 64, 10**3, 10**6, 10**9, 10**30, 0.5, -1e9, 1e308, math.nan, math.inf]
        if rng.random() < 0.5
        else [None, True, False, "", "x", "../x", "/dev/zero", "a/b", [], {}, [0], [[1, 2]], {"a": 1}]
    )


def changed_config(rng: random.Random, folder: Path, names: Sequence[str]) -> None:
    file = folder / rng.choice(names)
    content = json.loads(file.read_text())
    extra = ["transformers_weights", "attn_implementation", "auto_map", "quantization_config", "torch_dtype"]
    for _ in range(rng.randint(1, 2)):
        content[rng.choice([*content, *extra])] = nasty(rng)
    file.write_text(json.dumps(content))


@kind(14)
def hostile_model(rng: random.Random, folder: Path) -> None:
    """A folder that somebody else made: refused in one line, or loaded and used, in bounded time and memory."""
    import realmodels

    copy = folder / "model"
    copy.mkdir()
    for name, content in checkpoint().items():
        (copy / name).write_bytes(content)
    files = sorted(copy.iterdir())
    with bait(folder) as (precious, explosive):
        (copy / "evil.py").write_text(f"open({str(precious)!r}, 'w')")
        how = rng.random()
        if how < 0.55:
            changed_config(rng, copy, ["config.json"])
        elif how < 0.7:
            changed_config(rng, copy, ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
        elif how < 0.85:
            file = rng.choice(files)
            file.write_bytes(damaged(rng, file.read_bytes(), explosive))
        else:
            hostile(rng, rng.choice(files), precious, explosive)

        def use() -> int:
            """Status 2 and one line, as the command line would have it."""
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + 2**20  # KiB
            try:
                model = realmodels.load(copy)
                loss = realmodels.evaluate(model, ["Some words to be read, and some more of them." * 20]).loss
                assert loss == loss
            except InputError as error:
                print(f"paper_repro.py: error: {error}", file=sys.stderr)
                return 2
            finally:
                assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < most, "it took much memory"
            return 0

        Started(use, copy).finish().expect(0, 2)


@kind(6)
def hostile_text(rng: random.Random, folder: Path) -> None:
    """Text that somebody else wrote: read, or refused in one line."""
    from realmodels.text import read_text

    file = folder / rng.choice(["text", "evaluation", "x" * 250, os.fsdecode(b"\xff\xfe"), "-"])
    content = "A paragraph of words.\n\nAnother one, naïve.\n".encode(
        rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"])
    )
    with bait(folder) as (precious, explosive):
        if rng.random() < 0.4:
            hostile(rng, file, precious, explosive)
        else:
            file.write_bytes(damaged(rng, content, explosive) if rng.random() < 0.7 else content)

        def use() -> int:
            try:
                (text,) = read_text(file)
                assert text.strip() and not text.startswith("\ufeff")
            except InputError as error:
                print(f"paper_repro.py: error: {error}", file=sys.stderr)
                return 2
            return 0

        Started(use, folder).finish().expect(0, 2)


@kind(3)
def hostile_hardware(rng: random.Random, folder: Path) -> None:
    """A file of hardware that somebody else wrote: read, or refused in one line."""
    file = folder / rng.choice(["mine.json", "mine.toml", os.fsdecode(b"\xff.json"), "-.toml"])
    json_text = '{"programming": "hermes", "c": 1.5, "dac_bits": null, "kappa": 3, "tile_size": 64}'
    content = json_text if file.suffix == ".json" else 'programming = "hermes"\nc = 1.5\ndac_bits = "none"\n'
    with bait(folder) as (precious, explosive):
        if rng.random() < 0.4:
            hostile(rng, file, precious, explosive)
        else:
            file.write_bytes(damaged(rng, content.encode(), explosive))

        def use() -> int:
            from theory.hardware_files import load_hardware

            try:
                load_hardware(file)
            except InputError as error:
                print(f"paper_repro.py: error: {error}", file=sys.stderr)
                return 2
            return 0

        Started(use, folder).finish().expect(0, 2)


@lru_cache(maxsize=1)
def chip() -> bytes:
    """The chip of a small model."""
    from small_models import TEXTS, small_model

    from realmodels import deploy, save_chip, scores
    from theory.hardware import Hardware
    from theory.placement import place

    model = small_model()
    deploy(model, place(scores(model), 0.5), Hardware(tile_size=16), TEXTS)
    with tempfile.TemporaryDirectory() as folder:
        save_chip(model, Path(folder) / "chip")
        return (Path(folder) / "chip").read_bytes()


@kind(4)
def hostile_chip(rng: random.Random, folder: Path) -> None:
    """A chip that is no longer what was saved is refused in one line, and the model stays digital."""
    file = folder / "chip"
    with bait(folder) as (precious, explosive):
        content = chip()
        if rng.random() < 0.4:
            hostile(rng, file, precious, explosive)
        else:
            file.write_bytes(damaged(rng, content, explosive))

        def use() -> int:
            from small_models import small_model

            from realmodels import load_chip

            model = small_model()
            try:
                load_chip(model, file)
            except InputError as error:
                assert model.deployment is None
                print(f"paper_repro.py: error: {error}", file=sys.stderr)
                return 2
            assert file.read_bytes() == content
            return 0

        Started(use, folder).finish().expect(0, 2)


@kind(3)
def damaged_placement(rng: random.Random, folder: Path) -> None:
    """A placement's file is read as it was written, or refused."""
    import torch

    from theory.placement import Placement, place

    placement = place(torch.rand(2, 6, generator=torch.Generator().manual_seed(rng.randrange(10**6))), 0.25)
    content = placement.to_json().encode()
    other = damaged(rng, content, b"\x80\x04.")
    with contextlib.suppress(InputError):
        read = Placement.from_json(other.decode(errors="replace"))
        assert Placement.from_json(read.to_json()) == read
    model = SimpleNamespace(name="small", weights_hash="h")
    placement.save(folder / "saved", model, score="maxnn")
    (folder / "saved").write_bytes(damaged(rng, (folder / "saved").read_bytes(), b"\x80\x04."))
    with contextlib.suppress(InputError):
        assert len(Placement.load(folder / "saved", model).digital_experts) == 2


# ------------------------------------------------------------------------------------------------ all of them


def schedule(count: int, only: str | None) -> list[str]:
    """Kinds in the proportions of their shares, each at least once."""
    kinds = {name: share for name, (_, share) in KINDS.items() if only in (None, name)}
    total = sum(kinds.values())
    return [name for name, share in kinds.items() for _ in range(max(1, -(-count * share // total)))]


def attempt(name: str, number: int, seed: int) -> str | None:
    """Try one fault; what failed."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        inner = Path(folder) / "fault"
        inner.mkdir()
        try:
            KINDS[name][0](random.Random(f"{seed} {name} {number}"), inner)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            return f"{type(error).__name__}: {error} [line {last.lineno}]"
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int, nargs="?", default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=list(KINDS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    undisturbed()
    duration()
    gc.freeze()  # else collections in forks would copy all that was imported
    table: dict[str, dict[str, Any]] = {}
    for name in schedule(options.count, options.kind):
        row = table.setdefault(name, {"tried": 0, "failed": [], "seconds": 0.0})
        began = time.monotonic()
        if failure := attempt(name, row["tried"], options.seed):
            row["failed"].append(f"{name} {row['tried']} (seed {options.seed}): {failure}")
        row["tried"] += 1
        row["seconds"] += time.monotonic() - began
    failures = [failure for row in table.values() for failure in row["failed"]]
    for name, row in table.items():
        print(f"{name:26} tried {row['tried']:5}  failed {len(row['failed']):3}  {row['seconds']:7.1f} s")
    print(*failures, sep="\n", end="\n" if failures else "", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(table))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""Units on a real Dask cluster: the same results, workers that differ, and everything that may be lost or hang."""

import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import test_command_line
from distributed import Client
from test_command_line import HERE, executed, expect_one_line, finish, result, run, start, stored

import figures.cluster
from figures.cluster import _unit
from figures.run import Call, Outcome

log = test_command_line.log  # a fixture
ROOT = HERE.parents[1]
LAST = "finished units are kept, the same command continues from there\n"


class Cluster:
    """A scheduler and workers, each a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.workers = folder, list[subprocess.Popen[str]]()
        about = folder / "scheduler.json"
        # It has none of our code.
        self.scheduler = self._start("scheduler", "--port", "0", "--scheduler-file", str(about))
        until(lambda: about.exists() and about.read_text().endswith("}"))
        self.address: str = json.loads(about.read_text())["address"].removeprefix("tcp://")

    def worker(self, *options: str, **environment: str) -> None:
        """Start a worker, by default of one thread."""
        paths = os.pathsep.join([str(HERE), str(ROOT)])
        given = [
            self.address,
            "--nthreads",
            "1",
            "--no-nanny",
            "--local-directory",
            str(self.folder),
            *options,
        ]
        self.workers.append(self._start("worker", *given, **({"PYTHONPATH": paths} | environment)))

    def wait_for(self, workers: int) -> None:
        """Until so many are there."""
        with Client(self.address, set_as_default=False) as client:
            until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == workers)

    def _start(self, what: str, *options: str, **environment: str) -> subprocess.Popen[str]:
        module = f"distributed.cli.dask_{what}"
        return subprocess.Popen(
            [sys.executable, "-m", module, "--host", "127.0.0.1", "--no-dashboard", *options],
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment,
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def stop(self) -> None:
        for process in (*self.workers, self.scheduler):
            end(process)


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def cluster(tmp_path: Path, log: Path) -> Iterator[Cluster]:
    (tmp_path / "dask").mkdir()
    cluster = Cluster(tmp_path / "dask")
    yield cluster
    cluster.stop()


def quick_and_slow(cases: Iterable[Callable[..., Any]], *slow: Callable[..., Any]) -> list[Any]:
    """Parameters of a test; the slow ones are much as the others."""
    return [
        pytest.param(case, id=case.__name__, marks=[pytest.mark.slow] if case in slow else [])
        for case in cases
    ]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """To have it over with; workers tell of themselves twice a second."""
    monkeypatch.setattr(figures.cluster, "SILENCE_SECONDS", 3.0)


@contextmanager
def meanwhile(true: Callable[[], bool], act: Callable[[], Any]) -> Iterator[None]:
    """While a run goes on here: as soon as it is true, act."""

    def wait_and_act() -> None:
        until(true)
        act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def left(out: Path) -> list[str]:
    """What the run has left beside its records."""
    return [path.name for path in (out / ".cache").rglob("*") if path.is_file() and path.suffix != ".json"]


def on(cluster: Cluster, out: Path, *options: str) -> int:
    return run(out, "--cluster", cluster.address, *options)


def test_a_cluster_computes_the_same(tmp_path: Path, log: Path, cluster: Cluster) -> None:
    """Workers of one thread and of several; nothing is computed here."""
    for threads in ("1", "4"):
        cluster.worker("--nthreads", threads, TOY_PAUSE="0.1")
    options = ("--seeds", "12", "--cluster", cluster.address)
    assert finish(start(tmp_path / "there", *options, TOY_LOG="/nowhere")) == ""
    assert sorted(executed(log)) == stored(tmp_path / "there") == list(range(12))
    assert run(tmp_path / "here", "--seeds", "12", "--workers", "1") == 0
    there, here = (result(tmp_path / out, "quick.seeds-12") for out in ("there", "here"))
    assert (there.data, there.findings) == (here.data, here.findings)
    assert there.provenance["units"] == {"computed": 12, "from_cache": 0}
    assert not left(tmp_path / "there")
    cluster.stop()  # what is finished needs no cluster
    assert run(tmp_path / "there", *options) == 0


@pytest.mark.slow
def test_runs_share_a_cluster_and_no_two_units_share_a_process(
    tmp_path: Path, log: Path, cluster: Cluster
) -> None:
    cluster.worker("--nthreads", "4", TOY_PAUSE="0.3")
    one = start(tmp_path, "--cluster", cluster.address, "--seeds", "4")
    began = time.monotonic()
    assert on(cluster, tmp_path, "--seeds", "4") == 0
    assert finish(one) == ""
    assert sorted(executed(log)) == list(range(4))
    assert time.monotonic() - began > 4 * 0.3


def test_workers_limit_the_units_at_once(tmp_path: Path, log: Path, cluster: Cluster) -> None:
    for _ in range(2):
        cluster.worker(TOY_PAUSE="0.5")
    running = list[int]()

    def look() -> bool:
        running.append(len(list((tmp_path / ".cache").rglob("*.lock"))))
        return len(stored(tmp_path)) == 6

    with meanwhile(look, lambda: None):
        assert on(cluster, tmp_path, "--workers", "1") == 0
    assert max(running) == 1


@pytest.fixture
def no_schedulers() -> Iterator[dict[str, str]]:
    """Addresses at which there is something else, or nothing."""
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        socket.create_server(("127.0.0.1", 0)) as talking,
        socket.create_server(("127.0.0.1", 0)) as closed,
        ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as http,
    ):
        threading.Thread(target=http.serve_forever, daemon=True).start()

        def talk() -> None:
            with suppress(OSError):
                while True:
                    with talking.accept()[0] as connection:
                        connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        threading.Thread(target=talk, daemon=True).start()
        ports = {"silent": silent, "talking": talking, "closed": closed}
        addresses = {name: f"127.0.0.1:{port.getsockname()[1]}" for name, port in ports.items()}
        closed.close()
        yield addresses | {
            "http": f"127.0.0.1:{http.server_port}",
            "nowhere": "no.such.host.invalid:8786",
            "too large": "127.0.0.1:99999",
            "another scheme": "foo://127.0.0.1:8786",
        }
        http.shutdown()
        talking.shutdown(socket.SHUT_RDWR)


NOBODY = {
    "silent": "no answer for 1 s",
    "http": "no answer for 1 s",
    "talking": "something else answers",
    "closed": "Connect call failed",
    "nowhere": "Name or service not known",
    "too large": "",
    "another scheme": "unknown address scheme 'foo'",
}


def test_what_is_no_scheduler(
    tmp_path: Path,
    log: Path,
    no_schedulers: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(figures.cluster, "CONNECT_SECONDS", 1.0)
    for name, address in no_schedulers.items():
        assert run(tmp_path, "--cluster", address) == 2
        errors = capsys.readouterr().err
        expect_one_line(errors, f"--cluster {address}: no Dask scheduler there (", NOBODY[name])
        assert errors.endswith("); give its address\n")
    assert not executed(log)


def test_a_cluster_without_workers(
    tmp_path: Path, log: Path, cluster: Cluster, soon: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert on(cluster, tmp_path) == 2
    expect_one_line(
        capsys.readouterr().err, f"--cluster {cluster.address}: no worker there for 3 s; start", LAST
    )
    assert not executed(log) and not left(tmp_path)


def other_code(folder: Path) -> dict[str, str]:
    for package in ("theory", "figures"):
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("data", "__pycache__")
        )
    with (folder / "theory" / "damage.py").open("a") as file:
        file.write("# edited\n")
    (folder / "figures" / "data").mkdir()
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(HERE)])}


def other_figures(folder: Path) -> dict[str, str]:
    environment = other_code(folder)
    shutil.copy(ROOT / "theory" / "damage.py", folder / "theory")
    with (folder / "figures" / "cache.py").open("a") as file:
        file.write("# edited\n")
    return environment


def other_version(folder: Path) -> dict[str, str]:
    (folder / "scipy-0.1.dist-info").mkdir(parents=True)
    (folder / "scipy-0.1.dist-info" / "METADATA").write_text("Name: scipy\nVersion: 0.1\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(HERE), str(ROOT)])}


def no_code(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT)}


def hidden_folder(folder: Path) -> dict[str, str]:
    """A worker for which the cache of any run is not there."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "def hook(event, args):\n"
        "    if event == 'open' and '/.cache/' in str(args[0]): raise FileNotFoundError(2, 'No such file')\n"
        "sys.addaudithook(hook)\n"
    )
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(HERE), str(ROOT)])}


def read_only_folder(folder: Path) -> dict[str, str]:
    environment = hidden_folder(folder)
    file = folder / "sitecustomize.py"
    file.write_text(
        file.read_text()
        .replace("'/.cache/' in", "args[2] & 3 and '/.cache' in")
        .replace("FileNotFoundError(2, 'No such file')", "OSError(30, 'Read-only file system')")
    )
    return environment


def other_processor(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)]), "ATEN_CPU_CAPABILITY": "default"}


DIFFERENT: dict[Callable[[Path], dict[str, str]], str] = {
    other_code: "differs in its code (",
    other_figures: "differs in the code of figures (",
    other_version: "differs in scipy (0.1, here ",
    no_code: "cannot import this project (ModuleNotFoundError: No module named 'toy_exhibit'); install it there",
    hidden_folder: "does not see this --out (No such file: ",
    read_only_folder: "does not see this --out (Read-only file system: ",
    other_processor: "differs in processor (DEFAULT, here ",
}


@pytest.fixture(scope="module")
def equal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of one worker that is as it has to be, and never gets a unit."""
    cluster = Cluster(tmp_path_factory.mktemp("equal"))
    cluster.worker()
    yield cluster
    cluster.stop()


@pytest.mark.parametrize(
    "different", quick_and_slow(DIFFERENT, other_figures, read_only_folder, other_processor)
)
def test_a_worker_that_differs_is_named_before_units_are_sent(
    different: Callable[[Path], dict[str, str]],
    tmp_path: Path,
    log: Path,
    equal: Cluster,
    capsys: pytest.CaptureFixture[str],
) -> None:
    equal.worker(**different(tmp_path / "code"))
    equal.wait_for(2)
    assert on(equal, tmp_path / "out") == 2
    told = f"--cluster {equal.address}: the worker tcp://127.0.0.1:"
    expect_one_line(capsys.readouterr().err, told, DIFFERENT[different])
    assert not left(tmp_path / "out") and not stored(tmp_path / "out")
    end(equal.workers.pop())
    equal.wait_for(1)


@pytest.mark.slow
def test_a_worker_that_joins_later_is_checked(
    tmp_path: Path, log: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.worker(TOY_PAUSE="1")
    late = other_version(tmp_path / "code")
    with meanwhile(lambda: bool(stored(tmp_path)), lambda: cluster.worker(**late)):
        assert on(cluster, tmp_path, "--seeds", "100") == 2
    expect_one_line(capsys.readouterr().err, "the worker tcp://", "differs in scipy (0.1, here ")
    assert 0 < len(stored(tmp_path)) < 100


def kill(cluster: Cluster) -> None:
    cluster.scheduler.kill()


def stop(cluster: Cluster) -> None:
    cluster.scheduler.send_signal(signal.SIGSTOP)


def kill_workers(cluster: Cluster) -> None:
    for worker in cluster.workers:
        worker.kill()


def stop_workers(cluster: Cluster) -> None:
    for worker in cluster.workers:
        worker.send_signal(signal.SIGSTOP)


def stop_one(cluster: Cluster) -> None:
    cluster.workers[0].send_signal(signal.SIGSTOP)


LOST: dict[Callable[[Cluster], None], str] = {
    kill: "the scheduler is gone; ",
    stop: "the scheduler is gone; ",
    kill_workers: "no worker there for 3 s; start ",
    stop_workers: " has said nothing for 3 s; ",
    stop_one: " has said nothing for 3 s; ",
}


@pytest.mark.parametrize("lose", quick_and_slow(LOST, stop, stop_workers, stop_one))
def test_what_is_lost_is_told_and_finished_units_are_kept(
    lose: Callable[[Cluster], None],
    tmp_path: Path,
    log: Path,
    cluster: Cluster,
    soon: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(2):
        cluster.worker(TOY_PAUSE="0.5")
    cluster.wait_for(2)
    began = list[float]()

    def act() -> None:
        began.append(time.monotonic())
        lose(cluster)

    with meanwhile(lambda: bool(stored(tmp_path)), act):
        assert on(cluster, tmp_path, "--seeds", "12") == 2
    assert time.monotonic() - began[0] < 15
    errors = capsys.readouterr().err
    print(errors)
    expect_one_line(errors, f"--cluster {cluster.address}: ", LOST[lose], LAST)
    kept, noted = stored(tmp_path), len(executed(log))
    if lose is stop_one:  # the other one has done the rest
        assert len(kept) >= 11
    cluster.stop()
    assert run(tmp_path, "--seeds", "12", "--workers", "1") == 0
    assert sorted([*executed(log)[noted:], *kept]) == list(range(12))


def test_another_worker_takes_over(tmp_path: Path, log: Path, cluster: Cluster) -> None:
    for _ in range(2):
        cluster.worker(TOY_KILLED="3", TOY_KILLS="1")
    cluster.wait_for(2)
    assert on(cluster, tmp_path) == 0
    assert stored(tmp_path) == list(range(6)) and executed(log).count(3) == 2


@pytest.mark.slow
def test_a_worker_comes_back_and_is_checked_again(tmp_path: Path, log: Path, cluster: Cluster) -> None:
    cluster.worker("--nthreads", "1", "--nanny", TOY_KILLED="3", TOY_KILLS="1")
    assert on(cluster, tmp_path) == 0
    assert stored(tmp_path) == list(range(6)) and executed(log).count(3) == 2


def test_a_unit_that_kills_every_process_is_named(
    tmp_path: Path,
    log: Path,
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(figures.cluster, "TRIES", 2)
    for _ in range(3):
        cluster.worker(TOY_KILLED="3", TOY_KILLS="9")
    cluster.wait_for(3)
    assert on(cluster, tmp_path) == 2
    expect_one_line(
        capsys.readouterr().err, "every process of the unit seed 3 was killed", "finished units are kept"
    )
    assert stored(tmp_path) == [0, 1, 2, 4, 5] and executed(log).count(3) == 2


def test_bad_input_found_by_a_worker_of_the_cluster(
    tmp_path: Path,
    log: Path,
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line, also if there is no time to take leave."""
    monkeypatch.setattr(figures.cluster, "CLOSE_SECONDS", 0.0)
    cluster.worker(TOY_BAD="3")
    assert on(cluster, tmp_path) == 2
    assert capsys.readouterr().err == "paper_repro.py: error: seed 3: bad input; give a good one\n"
    gc.collect()
    assert stored(tmp_path) == [0, 1, 2]


def test_an_unexpected_exception_of_a_worker_keeps_its_traceback(
    tmp_path: Path, log: Path, cluster: Cluster
) -> None:
    cluster.worker(TOY_PAUSE="not a number")
    with pytest.raises(ValueError, match="could not convert string to float") as caught:
        on(cluster, tmp_path)
    assert "toy_exhibit.py" in str(caught.traceback[-1].path)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL]
)
def test_the_end_of_the_run_loses_nothing(
    number: signal.Signals, tmp_path: Path, log: Path, cluster: Cluster
) -> None:
    """What a worker has begun it finishes and keeps; what waits is never begun."""
    for _ in range(2):
        cluster.worker(TOY_PAUSE="1")
    cluster.wait_for(2)
    process = start(tmp_path, "--seeds", "40", "--cluster", cluster.address)
    until(lambda: len(executed(log)) >= 4)
    os.killpg(process.pid, number)
    if number == signal.SIGKILL:
        finish(process, -number)
    else:
        expect_one_line(finish(process, 130), "interrupted", "kept")
    until(lambda: stored(tmp_path) == sorted(executed(log)))
    time.sleep(1)
    assert stored(tmp_path) == sorted(executed(log)) and len(stored(tmp_path)) < 8
    assert not left(tmp_path)


def test_a_process_computes_only_for_runs_that_have_checked_it() -> None:
    assert _unit("unknown", lambda *_: pytest.fail("computed")) is None


def test_one_unit_at_a_time_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures.cluster, "_admitted", {"run"})
    inside, most = 0, 0

    def compute_unit(key: str, call: Call, wait: bool) -> Outcome:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.02)
        inside -= 1
        return key, None, 0

    threads = [
        threading.Thread(target=_unit, args=("run", compute_unit, "key", None, False)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1

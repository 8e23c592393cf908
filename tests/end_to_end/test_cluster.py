"""Units on a real Dask cluster: the same results, workers that differ, and everything that may be lost or hang."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_command_line import HERE, executed, expect_one_line, finish, log, result, run, start, stored

assert log  # a fixture

ROOT = HERE.parents[1]
SOON = "import figures.cluster; figures.cluster.SILENCE_SECONDS = 4; "  # to have it over with
LAST = "finished units are kept, the same command continues from there\n"


class Cluster:
    """A scheduler and workers, each a process of its own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder, self.environment, self.started = folder, environment, list[subprocess.Popen[str]]()
        about = folder / "scheduler.json"
        # It has none of our code.
        self.scheduler = self._start("scheduler", "--port", "0", "--scheduler-file", str(about))
        until(lambda: about.exists() and about.read_text().endswith("}"))
        self.address: str = json.loads(about.read_text())["address"].removeprefix("tcp://")

    def worker(self, *options: str, code: Path = ROOT, **environment: str) -> subprocess.Popen[str]:
        paths = os.pathsep.join([str(HERE), str(code)])
        options = (
            self.address,
            "--no-nanny",
            "--local-directory",
            str(self.folder),
            *(options or ("--nthreads", "1")),
        )
        return self._start("worker", *options, **({"PYTHONPATH": paths} | self.environment | environment))

    def _start(self, what: str, *options: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                f"distributed.cli.dask_{what}",
                "--host",
                "127.0.0.1",
                "--no-dashboard",
                *options,
            ],
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment,
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.started.append(process)
        return process

    def stop(self) -> None:
        for process in self.started:
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


def left(out: Path) -> list[str]:
    """What the run has left beside its records."""
    return [path.name for path in (out / ".cache").rglob("*") if path.is_file() and path.suffix != ".json"]


def test_a_cluster_computes_the_same(tmp_path: Path, log: Path, cluster: Cluster) -> None:
    """Workers of one thread and of several, more of them than --workers allows, and none that computes here."""
    workers = [cluster.worker("--nthreads", threads, TOY_PAUSE="0.2") for threads in ("1", "4")]
    options = ("--seeds", "12", "--cluster", cluster.address)
    assert finish(start(tmp_path / "there", *options, TOY_LOG="/nowhere")) == ""
    assert finish(start(tmp_path / "here", "--seeds", "12", "--workers", "1")) == ""
    there, here = (result(tmp_path / out, "quick.seeds-12") for out in ("there", "here"))
    assert (there.data, there.findings) == (here.data, here.findings)
    assert there.provenance["units"] == {"computed": 12, "from_cache": 0}
    assert sorted(executed(log)) == sorted([*range(12), *range(12)])
    assert not left(tmp_path / "there")
    for worker in workers:  # what is finished needs no worker, and no scheduler
        worker.kill()
    cluster.scheduler.kill()
    assert finish(start(tmp_path / "there", *options)) == ""

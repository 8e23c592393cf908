"""How do the workers of a Dask cluster compute units? One at a time each, once they are known to compute as we do here.

Every worker is checked before it gets units, also one that joins later: it has this code and these versions, and sees
the same output folder. It writes each record to the cache itself, so what it has finished outlives this process.
Every wait here ends: a scheduler, or all workers, that say nothing for SILENCE_SECONDS count as lost.
"""

import asyncio
import logging
import pickle
import secrets
import tempfile
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from figures.cache import DECIDING
from figures.files import passing, unwritable
from figures.provenance import processor, versions
from figures.run import Call, Killed, Outcome, Outcomes, code_hash
from theory.errors import InputError

if TYPE_CHECKING:
    from distributed import Client, Future

ComputeUnit = Callable[[str, Call, bool], Outcome]

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 20.0
CLOSE_SECONDS = 2.0
POLL_SECONDS = 1.0
TRIES = 3  # machines of a cluster come and go: a unit whose process is gone is tried elsewhere
OUT = "--out"
KEPT = "finished units are kept, the same command continues from there"

# In a worker: the runs whose check this process has answered.
_admitted = set[str]()
# In a worker: units share models and torch's settings, so no two are computed at once.
_alone = threading.Lock()


class _Call:
    """Unpickling it is calling the function: so the scheduler, which unpickles tasks, needs no code of ours."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> Any:
        return self.parts


def on_cluster(
    address: str,
    compute_unit: ComputeUnit,
    calls: Mapping[str, Call],
    wait: bool,
    *,
    experiment: str,
    device: str | None,
    limit: int | None,
) -> Outcomes:
    """What `compute_unit` returns for each of the calls, as workers finish them.

    address: that of the scheduler.
    wait: True to wait for units that other runs compute.
    experiment: the module that the units belong to.
    device: value of --device.
    limit: how many units may be computed at once; None leaves it to the number of workers.

    InputError if there is no such cluster, or no more, or if a worker differs; Killed in the end, if processes of a
    unit were gone TRIES times.
    """
    with _quiet(), asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(lambda *_: None)
        crew = _Crew(address, compute_unit, calls, wait, (experiment, device), limit)
        try:
            runner.run(crew.connect())
            while crew.waiting or crew.units:
                yield from runner.run(crew.step())
        finally:
            runner.run(crew.close())
    if crew.given_up:
        raise Killed(*crew.given_up)


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing but our own line reaches the terminal meanwhile."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class _Crew:
    """The workers, what each of them is doing, and what is left to do."""

    def __init__(
        self,
        address: str,
        compute_unit: ComputeUnit,
        calls: Mapping[str, Call],
        wait: bool,
        decided_by: tuple[str, str | None],
        limit: int | None,
    ) -> None:
        self.address, self.calls, self.compute_unit, self.wait = address, calls, compute_unit, wait
        self.decided_by = decided_by  # experiment and device
        self.limit = limit or len(calls)
        self.client: Client | None = None
        self.token = secrets.token_hex(8)  # of this run
        self.nonce = passing(next(iter(calls.values()))[0].path.parent)
        self.waiting = deque(calls)
        self.given_up: list[str] = []
        self.losses = Counter[str]()  # how often a unit's process was gone
        self.states: Mapping[str, Mapping[str, Any]] = {}  # of each worker, as the scheduler knows it
        self.heard: dict[str, float] = {}  # when each worker was heard of
        self.checked = set[str]()
        # By worker: its unit, or None if that is its check.
        self.tasks: dict[str, tuple[str | None, asyncio.Task[Any]]] = {}
        self.looked = -POLL_SECONDS
        self.began = self.heard_any = time.monotonic()

    @property
    def units(self) -> list[str]:
        """Those that are being computed."""
        return [key for key, _ in self.tasks.values() if key is not None]

    def error(self, what: str) -> InputError:
        return InputError(f"--cluster {self.address}: {what}")

    async def connect(self) -> None:
        from distributed import Client

        try:
            # The client's own does not end the wait for a port that says nothing.
            async with asyncio.timeout(CONNECT_SECONDS):
                await _greeted(self.address)
                self.client = Client(self.address, asynchronous=True, set_as_default=False)
                await self.client
        except TimeoutError:
            raise self._nobody(f"no answer for {CONNECT_SECONDS:g} s") from None
        except Exception as error:
            raise self._nobody(str(error) or type(error).__name__) from None
        self.here = _facts(self.token, self._written(), *self.decided_by)

    def _nobody(self, reason: str) -> InputError:
        return self.error(f"no Dask scheduler there ({reason}); give its address")

    def _written(self) -> Path:
        """The nonce, which shows that a worker sees the same folder; deleted as soon as no worker has to look at it."""
        try:
            self.nonce.parent.mkdir(parents=True, exist_ok=True)
            self.nonce.write_text(self.token)
        except OSError as error:
            raise unwritable(self.nonce, error, "the cache") from None
        return self.nonce

    async def close(self) -> None:
        self.nonce.unlink(missing_ok=True)
        for _, task in self.tasks.values():
            task.cancel()
        if self.client is not None:
            with suppress(Exception):
                await asyncio.wait_for(self.client.close(), CLOSE_SECONDS)
            self.client.status = "closed"  # else it would say, in the end, that it was not

    async def step(self) -> list[Outcome]:
        """Give work to idle workers, and wait a moment; the units that are finished."""
        if time.monotonic() - self.looked >= POLL_SECONDS:
            await self._look()
        self._assign()
        self._expect()
        await asyncio.wait(
            [task for _, task in self.tasks.values()] or [asyncio.ensure_future(asyncio.sleep(POLL_SECONDS))],
            timeout=POLL_SECONDS,
            return_when="FIRST_COMPLETED",
        )
        done = [worker for worker, (_, task) in self.tasks.items() if task.done()]
        return [outcome for worker in done if (outcome := self._settle(worker))]

    async def _look(self) -> None:
        """Which workers are there, and were heard of? Those that are gone have lost their units."""
        assert self.client is not None
        try:
            if self.client.status != "running" or self.client.scheduler is None:
                raise OSError
            answer = await asyncio.wait_for(self.client.scheduler.identity(), SILENCE_SECONDS)
        except (OSError, TimeoutError):
            raise self.error(f"the scheduler is gone; {KEPT}") from None
        before, self.states, self.looked = self.states, answer["workers"], time.monotonic()
        for worker, state in self.states.items():
            if worker not in before or before[worker]["last_seen"] != state["last_seen"]:
                self.heard[worker] = self.looked
                if worker in self.tasks or state["status"] == "running":  # else it is paused, short of memory
                    self.heard_any = self.looked
        self.checked &= self.states.keys()
        for worker in self.tasks.keys() - self.states.keys():
            self.tasks[worker][1].cancel()

    def _assign(self) -> None:
        idle = [
            worker
            for worker, state in self.states.items()
            if worker not in self.tasks and state["status"] == "running"
        ]
        for worker in idle:
            if worker not in self.checked:
                self._submit(worker, None, _Call(_facts, self.token, self._written(), *self.decided_by))
        if any(key is None for key, _ in self.tasks.values()):
            if time.monotonic() - self.began < SILENCE_SECONDS:
                return  # so that a worker that differs stops the run before the others begin
        else:
            self.nonce.unlink(missing_ok=True)
        for worker in idle:
            if worker in self.checked and self.waiting and len(self.units) < self.limit:
                key = self.waiting.popleft()
                call = _Call(_unit, self.token, self.compute_unit, key, self.calls[key], self.wait)
                self._submit(worker, key, call)

    def _submit(self, worker: str, key: str | None, call: _Call) -> None:
        assert self.client is not None
        future = self.client.submit(pickle.loads, pickle.dumps(call), workers=[worker], pure=False)
        self.tasks[worker] = key, asyncio.ensure_future(_outcome(self.client, future))

    def _expect(self) -> None:
        """InputError if nothing is to be expected any more."""
        now = time.monotonic()
        silent = [worker for worker in self.tasks if now - self.heard[worker] > SILENCE_SECONDS]
        if silent and len(silent) == len(self.tasks):
            raise self.error(f"the worker {silent[0]} has said nothing for {SILENCE_SECONDS:g} s; {KEPT}")
        if now - self.heard_any > SILENCE_SECONDS:
            raise self.error(
                f"no worker there for {SILENCE_SECONDS:g} s; start one for each core: dask worker {self.address}"
                f" --nworkers -1 --nthreads 1; {KEPT}"
            )

    def _settle(self, worker: str) -> Outcome | None:
        """The unit that the worker has finished; None if that was a check, or if the unit was lost."""
        key, task = self.tasks.pop(worker)
        answer = None if task.cancelled() else task.result()
        if answer is None:  # its process is gone, or is not the one that was checked
            self.checked.discard(worker)
            if key is not None:
                self.losses[key] += 1
                (self.waiting if self.losses[key] < TRIES else self.given_up).append(key)
        elif key is None:
            self._compare(worker, answer)
            self.checked.add(worker)
        elif isinstance(answer, Exception):
            raise answer
        else:
            outcome: Outcome = answer
            return outcome
        return None

    def _compare(self, worker: str, facts: Mapping[str, str] | Exception) -> None:
        """InputError if the worker would not compute what this process does."""
        who = f"the worker {worker}"
        if isinstance(facts, Exception):
            raise self.error(
                f"{who} cannot import this project ({type(facts).__name__}: {facts}); install it there"
            )
        if facts[OUT] != self.here[OUT]:
            raise self.error(
                f"{who} does not see this --out ({facts[OUT]}: {self.nonce.parent}); share it, writable"
            )
        for name, own in self.here.items():
            if own and facts[name] and facts[name] != own:
                raise self.error(f"{who} differs in {name} ({facts[name]}, here {own}); make both the same")


async def _greeted(address: str) -> None:
    """OSError if what is there does not greet as a scheduler does: it says what it knows, before it is asked."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    if "://" in host:
        return  # encrypted
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        if b"pickle-protocol" not in await reader.read(2**16):
            raise OSError("something else answers")
    finally:
        writer.close()


async def _outcome(client: "Client", future: "Future[Any]") -> Any:
    """What came of it, also an exception; None if its process, or the scheduler, is gone."""
    from distributed import KilledWorker

    if isinstance(error := await future.exception(), KilledWorker):
        return None
    if error is not None:
        return error.with_traceback(await future.traceback())
    with suppress(OSError):
        # Not by way of the future: those that are fetched at the same time all wait for a worker that hangs.
        if future.status == "finished" and client.scheduler is not None:
            answer = await client.scheduler.gather(keys=[future.key])
            return answer.get("data", {}).get(future.key)
    return None


def _unit(token: str, compute_unit: ComputeUnit, *call: Any) -> Outcome | None:
    """In a worker: a unit, when its turn comes; None if this process was not checked for the run."""
    if token not in _admitted:
        return None
    with _alone:
        return compute_unit(*call)


def _facts(token: str, nonce: Path, experiment: str, device: str | None) -> dict[str, str]:
    """In a worker, and here: what decides a record. A fact that is empty decides nothing."""
    import_module(experiment)
    try:
        with tempfile.TemporaryFile(dir=nonce.parent):
            seen = nonce.read_text()
    except OSError as error:
        seen = str(error.strerror)
    _admitted.add(token)
    return {
        OUT: seen,
        "its code": code_hash(experiment)[:12],
        "the code of figures": code_hash("figures")[:12],
        "processor": processor(device),
        **dict.fromkeys((*DECIDING, "distributed"), "missing"),
        **versions((*DECIDING, "distributed")),
    }

"""Where trials run: processes or threads of this machine, a Dask cluster, or any `concurrent.futures.Executor`.

What we need of an Executor is its interface and this:

- Where its workers are other processes, what is submitted goes there and back by pickle: our functions, the database's
  URL, and an objective given in Python. `tuner` must be installed there, and the database be reachable under its URL.
- It is used as it is and stays open: who made it shuts it down. Its workers keep to one BLAS thread from then on.
- A run is stopped through the database, so cancelling is not needed, nor are events that reach the workers.
- SIGTERM is its own matter: only our own processes give their trials back when it reaches them.
- A worker's death is the executor's matter. One that breaks by it (as `ProcessPoolExecutor` does) ends the run, which
  goes on with a new one; one that runs the task again (as Dask does) is welcome to: a task is "run one more trial", and
  the ledger hands the lost trial out again.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from threadpoolctl import threadpool_limits

from tuner.errors import DefinitionError, MissingDependencyError, TunerError
from tuner.termination import (
    WorkerLostError,
    end_in_order,
    interruptions_held,
    raise_held,
    run_task,
    wait_for,
)

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "CHECK_SECONDS",
    "GOES_ON",
    "Losses",
    "OpenPool",
    "Pool",
    "Where",
    "WorkerLostError",
    "ended_first",
    "find_executor",
    "one_thread",
    "result_of",
    "submit",
    "submit_greeting",
]

_log = logging.getLogger(__name__)

Where: TypeAlias = str | Executor
"""`processes`, `threads`, `dask://HOST:PORT`, or an Executor of the user's own."""

CONNECT_SECONDS = 10.0
"""How long Dask's scheduler may take to answer."""

EMPTY_SECONDS = 120.0
"""How long a Dask cluster may be without any worker."""

LEAVE_SECONDS = 20.0
"""How long a stopped run waits for trials on workers that live on without it."""

CHECK_SECONDS = 5.0
"""How often, while there is no news, a pool is asked whether any can come."""

LOST_IN_A_ROW = 10
"""So often in a row workers may die without a single trial's end."""

FAILED_STARTS = 3
"""So often, before any worker ever started, workers may die while they start: one may have been killed by chance."""

CANNOT_START = (
    "worker processes cannot start. A script that runs studies must begin its work under "
    "`if __name__ == '__main__':`, as every process imports it"
)

GOES_ON = "(finished trials are kept; the same run goes on from there)"


@dataclass(frozen=True, slots=True)
class Pool:
    """An executor that is open.

    `patience` is how long, in seconds, a stopped run waits for its running trials: None for workers that end with it.
    `check` is called now and then while there is no news; it raises TunerError where none can come any more.
    """

    executor: Executor
    is_renewable: bool
    """Whether another can take its place once it is broken."""
    patience: float | None = None
    check: Callable[[], None] = lambda: None
    hurry: Callable[[], None] = lambda: None
    """Let the workers give their trials back within seconds, if need be within an epoch, and end."""
    leave: Callable[[], bool] = lambda: False
    """Do not wait for the workers any more, whatever they do. True where that has ended them."""
    run_on_all: Callable[[Callable[[], None]], None] = lambda task: None
    """Run a task at once in every worker process that lives on other machines; picklable, and quick."""


OpenPool: TypeAlias = Callable[[int], AbstractContextManager[Pool]]
"""Opens a pool for so many trials at once."""


def find_executor(where: Where, *, is_gentle: bool = False) -> OpenPool:
    """What opens the executor that `where` names.

    Args:
        where: its name, or itself.
        is_gentle: where one of our processes dies and breaks their pool, let the others give their trials back, as
            nobody else can. Otherwise they end at once, and whoever runs them takes their trials back.

    Raises:
        DefinitionError: there is none of this name.
        MissingDependencyError: it is Dask, which is not installed.
        TunerError: this is a worker process, which imports the script that began it: a script without its guard.
    """
    if isinstance(where, Executor):
        return functools.partial(_foreign, where)
    if where == "processes":
        if getattr(
            multiprocessing.current_process(), "_inheriting", False
        ):  # as `multiprocessing.spawn` asks itself
            raise TunerError(CANNOT_START)
        return functools.partial(_processes, is_gentle=is_gentle)
    if where == "threads":
        return _threads
    if isinstance(where, str) and where.startswith("dask:"):
        return functools.partial(_dask, _scheduler(where))
    raise DefinitionError(
        f"executor must be processes, threads, dask://HOST:PORT or an Executor in Python; got {where!r}"
    )


def submit(
    pool: Pool, running: dict[Future[Any], str], name: str, task: Callable[..., Any], *arguments: object
) -> Future[Any]:
    """Submit a task and note it in `running`, with no Ctrl-C in between: a task nobody knows of is not waited for."""
    raise_held()  # processes that were told to end with this one take no task any more
    try:
        with _sigint_held():
            future = pool.executor.submit(task, *arguments)
            running[future] = name
    except BrokenExecutor:
        raise
    except RuntimeError as error:  # it was shut down
        raise TunerError(f"the executor takes no work: {error} {GOES_ON}") from None
    raise_held()
    return future


def submit_greeting(pool: Pool) -> Future[None]:
    """Submit the first task of a pool: that it comes back shows that workers start and find us."""
    return submit(pool, {}, "greeting", _greet)


def _greet() -> None:
    """Nothing: to have come here is enough."""


def ended_first(
    pool: Pool, futures: Collection[Future[Any]], patience: float = CHECK_SECONDS
) -> set[Future[Any]]:
    """Wait for news; the tasks that have ended, possibly none. A pool without news is asked whether it is well.

    Raises:
        TunerError: it is not.
    """
    done = wait_for(futures, min(patience, CHECK_SECONDS), FIRST_COMPLETED)
    if not done:
        pool.check()
    return done


def result_of(future: Future[Any]) -> Any:
    """What a task returned.

    Raises:
        TunerError: it failed, or could not be brought to a worker.
        BrokenExecutor: the executor is of no use any more.
        WorkerLostError: its worker died.
    """
    try:
        return future.result()
    except (TunerError, BrokenExecutor, WorkerLostError):
        raise
    except CancelledError:
        raise TunerError(f"the executor dropped a trial; was it shut down? {GOES_ON}") from None
    except Exception as error:
        if _is_lost_worker(error):
            raise WorkerLostError from None
        raise TunerError(
            f"a worker cannot be given a trial to run: {type(error).__name__}: {error} (workers need tuner installed, "
            "and an objective given in Python must be picklable)"
        ) from error


def _is_lost_worker(error: Exception) -> bool:
    """Whether Dask gave a task up, as one worker after the other died of it."""
    distributed = sys.modules.get("distributed")  # whose task it was has it imported
    return distributed is not None and isinstance(error, distributed.KilledWorker)


@dataclass(slots=True)
class Losses:
    """Counts workers that die, over all pools of a run: too many in a row end it."""

    _in_a_row: int = 0
    _has_started: bool = False
    """Whether there ever was a worker: later ones that die before they begin were killed, and could start."""
    _failed_starts: int = 0

    def reset(self) -> None:
        """A trial has ended."""
        self._in_a_row, self._has_started = 0, True

    def started(self) -> None:
        """A task has come back."""
        self._has_started = True

    def count(self) -> None:
        """A worker has died.

        Raises:
            TunerError: they die too often.
        """
        self._in_a_row += 1
        if self._in_a_row >= LOST_IN_A_ROW:
            raise TunerError(
                f"worker processes died {self._in_a_row} times in a row (killed, or out of memory?)"
            )

    def count_start(self, greeting: Future[None]) -> None:
        """A pool broke: were its workers ever there?

        Raises:
            TunerError: none ever started.
        """
        if greeting.done() and greeting.exception() is None:
            self._has_started = True
        if not self._has_started:
            self._failed_starts += 1
            if self._failed_starts >= FAILED_STARTS:
                raise TunerError(CANNOT_START)


def one_thread() -> threadpool_limits:
    """Let this process use one BLAS or OpenMP thread from now on; as a context, until its end.

    As many workers as cores: more threads in each would only get in each other's way.
    """
    import scipy.linalg  # noqa: F401, PLC0415 - it has a BLAS of its own, and only what is loaded is limited

    return threadpool_limits(1)


@contextlib.contextmanager
def _foreign(executor: Executor, _workers: int) -> Iterator[Pool]:
    yield Pool(executor, is_renewable=False, patience=LEAVE_SECONDS)


@contextlib.contextmanager
def _threads(workers: int) -> Iterator[Pool]:
    executor, is_left = ThreadPoolExecutor(workers, thread_name_prefix="trial"), threading.Event()

    def leave() -> bool:
        is_left.set()
        return False

    try:
        yield Pool(executor, is_renewable=True, leave=leave)
    finally:
        executor.shutdown(wait=not is_left.is_set(), cancel_futures=True)


@contextlib.contextmanager
def _processes(workers: int, *, is_gentle: bool) -> Iterator[Pool]:
    # a fork would copy open database connections
    context = multiprocessing.get_context("spawn") if is_gentle else _Harsh()
    _start_resource_tracker()
    with (
        _one_thread_each(),
        _OwnProcesses(workers, mp_context=context, initializer=_start_process) as executor,
    ):
        try:
            yield Pool(executor, is_renewable=True, hurry=executor.hurry, leave=executor.leave)
        finally:
            executor.shutdown(cancel_futures=True)


def _start_resource_tracker() -> None:
    """Start the process that `multiprocessing` cleans up by, so that a closed terminal does not end it."""
    if not hasattr(signal, "pthread_sigmask"):
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # which it inherits
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _HarshProcess(SpawnProcess):
    """A process that its pool ends at once."""

    def terminate(self) -> None:
        self.kill()


class _Harsh(SpawnContext):
    Process = _HarshProcess


class _OwnProcesses(ProcessPoolExecutor):
    """Processes that SIGTERM ends in order, each with its trial given back. They are signalled in Python's own way.

    Python has public ones from 3.14 on: `terminate_workers` and `kill_workers`.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(run_task, fn, *args, **kwargs)

    def hurry(self) -> None:
        for process in self._all():
            if process.pid is not None:
                with contextlib.suppress(ProcessLookupError):  # the pool's own thread has just seen its end
                    os.kill(process.pid, signal.SIGTERM)

    def leave(self) -> bool:
        processes = self._all()
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        return True

    def _all(self) -> list[BaseProcess]:
        return [process for process in (self._processes or {}).values() if process.is_alive()]


def _start_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the run
    end_in_order()
    threading.Thread(target=_die_with_parent, name="parent watch", daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let processes that start meanwhile use one BLAS or OpenMP thread, also in libraries they load later."""
    names = [f"{library}_NUM_THREADS" for library in ("OMP", "OPENBLAS", "MKL")]
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _scheduler(where: str) -> str:
    """`HOST:PORT` of `dask://HOST:PORT`, if Dask is there to go to it."""
    try:
        parts = urlsplit(where)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port or parts.path.strip("/") or parts.query or parts.username:
        raise DefinitionError(f"a Dask scheduler is given as dask://HOST:PORT; got {where!r}")
    try:
        import distributed  # noqa: F401, PLC0415 - an extra, and slow to import
    except ImportError:
        raise MissingDependencyError(f"{where} needs Dask: pip install 'tuner[dask]'") from None
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextlib.contextmanager
def _dask(scheduler: str, _workers: int) -> Iterator[Pool]:
    from distributed import Client  # noqa: PLC0415 - an extra

    try:
        client = Client(f"tcp://{scheduler}", timeout=CONNECT_SECONDS, set_as_default=False, name="tuner")
    except (OSError, TimeoutError):
        raise TunerError(f"no Dask scheduler answers at {scheduler} within {CONNECT_SECONDS:.0f} s") from None
    with client:
        # each task is a trial of its own, however alike two of them look; what fails is not to be tried again blindly
        executor = client.get_executor(pure=False, retries=0)
        check = _DaskCheck(client, scheduler)
        run_on_all = functools.partial(_run_on_dask, client)
        yield Pool(executor, is_renewable=True, patience=LEAVE_SECONDS, check=check, run_on_all=run_on_all)


def _run_on_dask(client: Client, task: Callable[[], None]) -> None:
    """Run a task beside those that keep the workers busy. Of workers that do not answer nobody needs it."""
    with contextlib.suppress(OSError, TimeoutError):
        client.run(task, on_error="ignore")


class _DaskCheck:
    """Complains about a cluster that has been without any worker for long: nothing would ever come of waiting."""

    def __init__(self, client: Client, scheduler: str) -> None:
        self._client, self._scheduler = client, scheduler
        self._empty_since: float | None = None

    def __call__(self) -> None:
        with contextlib.suppress(OSError):  # a lost scheduler shows in the futures
            if self._client.nthreads():
                self._empty_since = None
                return
        now = time.monotonic()
        if self._empty_since is None:
            self._empty_since = now
            _log.warning("the Dask cluster at %s has no workers; waiting for some", self._scheduler)
        if now - self._empty_since > EMPTY_SECONDS:
            raise TunerError(
                f"the Dask cluster at {self._scheduler} has had no workers for {EMPTY_SECONDS:.0f} s "
                "(did they die? see their logs); the same command goes on once there are some"
            )


@contextlib.contextmanager
def _sigint_held() -> Iterator[None]:
    """Hold Ctrl-C back while a process starts: it inherits that, until it is ready to leave Ctrl-C to the parent."""
    with interruptions_held():  # a mask alone does not do it here: the signal goes to another thread
        if not hasattr(signal, "pthread_sigmask"):
            yield
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

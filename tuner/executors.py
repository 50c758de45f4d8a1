"""Where trials run: processes or threads of this machine, a Dask cluster, or any `concurrent.futures.Executor`.

What we need of an Executor is its interface and this:

- Where its workers are other processes, what is submitted goes there and back by pickle: our functions, the database's
  URL, and an objective given in Python. `tuner` must be installed there, and the database be reachable under its URL.
- It is used as it is and stays open: who made it shuts it down. Its workers keep to one BLAS thread from then on.
- A run is stopped through the database, so cancelling is not needed, nor are events that reach the workers.
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
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from threadpoolctl import threadpool_limits

from tuner.errors import DefinitionError, MissingDependencyError, TunerError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["GOES_ON", "OpenPool", "Pool", "Where", "find_executor", "is_lost_worker", "one_thread", "submit"]

_log = logging.getLogger(__name__)

Where: TypeAlias = str | Executor
"""`processes`, `threads`, `dask://HOST:PORT`, or an Executor of the user's own."""

CONNECT_SECONDS = 10.0
"""How long Dask's scheduler may take to answer."""

EMPTY_SECONDS = 120.0
"""How long a Dask cluster may be without any worker."""

LEAVE_SECONDS = 20.0
"""How long a stopped run waits for trials on workers that live on without it."""

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
    leave: Callable[[], bool] = lambda: False
    """Do not wait for the workers any more, whatever they do. True where that has ended them."""


OpenPool: TypeAlias = Callable[[int], AbstractContextManager[Pool]]
"""Opens a pool for so many trials at once."""


def find_executor(where: Where) -> OpenPool:
    """What opens the executor that `where` names.

    Raises:
        DefinitionError: there is none of this name.
        MissingDependencyError: it is Dask, which is not installed.
    """
    if isinstance(where, Executor):
        return functools.partial(_foreign, where)
    if where == "processes":
        return _processes
    if where == "threads":
        return _threads
    if isinstance(where, str) and where.startswith("dask:"):
        return functools.partial(_dask, _scheduler(where))
    raise DefinitionError(
        f"executor must be processes, threads, dask://HOST:PORT or an Executor in Python; got {where!r}"
    )


def is_lost_worker(error: Exception) -> bool:
    """Whether Dask gave a task up, as one worker after the other died of it."""
    distributed = sys.modules.get("distributed")  # whose task it was has it imported
    return distributed is not None and isinstance(error, distributed.KilledWorker)


def submit(
    pool: Pool, running: dict[Future[Any], str], name: str, task: Callable[..., Any], *arguments: object
) -> Future[Any]:
    """Submit a task and note it in `running`, with no Ctrl-C in between: a task nobody knows of is not waited for."""
    try:
        with _sigint_held():
            future = pool.executor.submit(task, *arguments)
            running[future] = name
            return future
    except BrokenExecutor:
        raise
    except RuntimeError as error:  # it was shut down
        raise TunerError(f"the executor takes no work: {error} {GOES_ON}") from None


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
def _processes(workers: int) -> Iterator[Pool]:
    context = multiprocessing.get_context("spawn")  # a fork would copy open database connections
    with (
        _one_thread_each(),
        ProcessPoolExecutor(workers, mp_context=context, initializer=_start_process) as executor,
    ):
        try:
            yield Pool(executor, is_renewable=True, leave=functools.partial(_kill, executor))
        finally:
            executor.shutdown(cancel_futures=True)


def _kill(executor: ProcessPoolExecutor) -> bool:
    """End the processes as they are. Python has no public way before 3.14."""
    processes = list((executor._processes or {}).values())
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    return True


def _start_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the run
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
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
        yield Pool(executor, is_renewable=True, patience=LEAVE_SECONDS, check=_DaskCheck(client, scheduler))


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
    with _interrupts_postponed():
        if not hasattr(signal, "pthread_sigmask"):
            yield
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _interrupts_postponed() -> Iterator[None]:
    """Let handlers of signals wait for the block's end. A mask alone does not: the signal goes to another thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[Callable[..., Any], int, FrameType | None]] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: handler for number, handler in before.items() if callable(handler)}
    for number in handlers:
        signal.signal(
            number, lambda number, frame: came.append((handlers[signal.Signals(number)], number, frame))
        )
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for handler, got, frame in came[:1]:
            handler(got, frame)

"""Caviar: many models at once. Worker loops on any `concurrent.futures.Executor`.

The parent decides which study is next and shows progress; a worker runs one trial of it and comes back. Studies take
turns, so that the arms of a comparison meet the machine's moods alike. Within a study at most `per_study` trials run at
once: one, and every choice sees all results before it, whatever the number of workers.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.context import SpawnContext
from typing import Literal, Protocol, TypeAlias

from threadpoolctl import threadpool_limits

from objectives.epoch import Objective
from tuner.ask_tell import AskTell
from tuner.errors import DefinitionError, TunerError
from tuner.trial_run import Function, Outcome, run_trial

__all__ = ["ExecutorName", "OpenStudy", "run_studies"]

ExecutorName: TypeAlias = Literal["processes", "threads"]

FAILURES_IN_A_ROW = 5
"""So many trials in a row that end in an exception stop the run: the next would too."""

LOST_POOLS = 10
"""So often in a row a pool of worker processes may die without a single trial's end."""


class OpenStudy(Protocol):
    """How a worker opens a study by name; picklable for workers in other processes."""

    def __call__(self, name: str) -> tuple[AskTell, Objective | Function]:
        """The study to ask and tell, and what to train."""


class _Flag(Protocol):
    def is_set(self) -> bool: ...

    def set(self) -> None: ...


class _SharedFlag:
    """A flag that processes share. An `Event` has a lock: who is killed while holding it would stop all others."""

    def __init__(self, context: SpawnContext) -> None:
        self._byte = context.RawValue("b", 0)

    def is_set(self) -> bool:
        return bool(self._byte.value)

    def set(self) -> None:
        self._byte.value = 1


@dataclass(slots=True)
class _Worker:
    """What a worker keeps between two trials: opened studies, with their caches of finished trials."""

    open_study: OpenStudy
    stop: _Flag
    studies: dict[str, tuple[AskTell, Objective | Function]] = field(default_factory=dict)

    def run(self, name: str) -> Outcome | None:
        try:
            if name not in self.studies:
                self.studies[name] = self.open_study(name)
            return run_trial(*self.studies[name], stopping=self.stop.is_set)
        except TunerError:
            raise
        except Exception as error:  # noqa: BLE001
            # as text: whatever this is, it may not survive the way to another process
            raise TunerError(
                f"{name}: a worker failed: {''.join(traceback.format_exception(error))}"
            ) from None


_here = threading.local()
"""The worker of this thread: set once by the executor's initializer, which can hand over nothing else."""


def _start_worker(open_study: OpenStudy, stop: _Flag) -> None:
    _here.worker = _Worker(open_study, stop)


def _start_process(open_study: OpenStudy, stop: _Flag, started: _Flag) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which tells us through `stop`
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, name="parent watch", daemon=True).start()
    threadpool_limits(1)  # as many workers as cores: more threads in each only get in each other's way
    _start_worker(open_study, stop)
    started.set()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_one(name: str) -> Outcome | None:
    worker: _Worker = _here.worker
    return worker.run(name)


def run_studies(
    names: Sequence[str],
    open_study: OpenStudy,
    *,
    workers: int = 1,
    per_study: int = 1,
    executor: ExecutorName = "processes",
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> None:
    """Run studies until each has used up its budget.

    Args:
        names: the studies, in the order of their turns.
        open_study: opens one in a worker.
        workers: how many trials run at once.
        per_study: how many of them may be of the same study.
        executor: what the workers are.
        on_outcome: called in this thread with each trial's end.

    Raises:
        DefinitionError: `workers` is below 1.
        TunerError: too many trials of a study failed in a row; the text has the last reason.
        KeyboardInterrupt: passed on, after the running trials were given back.
    """
    if workers < 1:
        raise DefinitionError(f"workers must be at least 1; got {workers}")
    turns = _Turns(names, per_study)
    pools = _Pools(open_study, executor, on_outcome)
    lost = 0  # pools in a row from which nothing came
    while True:
        try:
            pools.run(turns, workers)
            break
        except _PoolBrokenError as broken:
            lost = 0 if broken.progress else lost + 1
            if lost >= LOST_POOLS:
                raise TunerError(
                    f"worker processes died {lost} times in a row (killed, or out of memory?)"
                ) from None
            turns.restart()
            # one at a time, so that a trial that kills its worker takes no other with it again
            with contextlib.suppress(_PoolBrokenError):
                pools.run(_Turns(broken.studies, 1), 1, outcomes=len(broken.studies))
    turns.raise_failures()


class _PoolBrokenError(Exception):
    """A worker process died and took its pool with it. `studies` are those whose trials were running."""

    def __init__(self, studies: list[str], progress: bool) -> None:
        super().__init__(studies)
        self.studies = studies
        self.progress = progress


@dataclass(slots=True)
class _Pools:
    """Runs studies in a pool of workers until there is nothing to run, or a number of outcomes has come."""

    open_study: OpenStudy
    executor: ExecutorName
    on_outcome: Callable[[Outcome], None]

    def run(self, turns: _Turns, workers: int, *, outcomes: int | None = None) -> None:
        running: dict[Future[Outcome | None], str] = {}
        ended = 0
        with _executor(self.executor, workers, self.open_study) as (pool, stop, started):
            try:
                while outcomes is None or ended < outcomes:
                    while len(running) < workers and (name := turns.next()) is not None:
                        with _sigint_held():
                            running[pool.submit(_run_one, name)] = name
                    if not running:
                        return
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        outcome = future.result()
                        turns.ended(running.pop(future), outcome)
                        if outcome is not None:
                            ended += 1
                            self.on_outcome(outcome)
            except BrokenProcessPool:
                if not started.is_set():
                    raise TunerError(
                        "worker processes cannot start. A script that runs studies must begin its work under "
                        "`if __name__ == '__main__':`, as every process imports it"
                    ) from None
                raise _PoolBrokenError(list(running.values()), ended > 0) from None
            except BaseException:
                stop.set()
                raise


@contextlib.contextmanager
def _sigint_held() -> Iterator[None]:
    """Hold Ctrl-C back while a process starts: it inherits that, until it is ready to leave Ctrl-C to the parent."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Turns:
    """Whose turn it is: round and round among the studies that have budget and room."""

    def __init__(self, names: Sequence[str], per_study: int) -> None:
        self._waiting = deque(names)
        self._per_study = per_study
        self._running = dict.fromkeys(names, 0)
        self._failures = dict.fromkeys(names, 0)
        self._full: set[str] = set()
        self._stopped: dict[str, str] = {}

    def next(self) -> str | None:
        """The next study, or None where all are finished or full of running trials."""
        for _ in range(len(self._waiting)):
            name = self._waiting[0]
            self._waiting.rotate(-1)
            if name not in self._full and self._running[name] < self._per_study:
                self._running[name] += 1
                return name
        return None

    def ended(self, name: str, outcome: Outcome | None) -> None:
        """A trial of the study has ended, or there was none to run. Too many failures in a row stop the study."""
        self._running[name] -= 1
        if outcome is None:
            self._full.add(name)
            return
        if outcome.state is None:  # given back, or its lease lost: there may be something to run again
            self._full.discard(name)
        self._failures[name] = self._failures[name] + 1 if outcome.is_error else 0
        if self._failures[name] >= FAILURES_IN_A_ROW:
            self._full.add(name)
            self._stopped[name] = (
                f"{name}: stopped, as {FAILURES_IN_A_ROW} trials in a row failed; "
                f"the last (trial {outcome.number}) with {outcome.failure} "
                f"(traceback: tuner trials {name} --last 1 --format json; they count in the budget: "
                "begin afresh under another name)"
            )

    def restart(self) -> None:
        """Nothing is running any more, and what was may have to run again."""
        self._running = dict.fromkeys(self._running, 0)
        self._full = set(self._stopped)

    def raise_failures(self) -> None:
        """Raise TunerError with a line for each study that was stopped."""
        if self._stopped:
            raise TunerError("\n".join(self._stopped.values()))


@contextlib.contextmanager
def _executor(
    kind: ExecutorName, workers: int, open_study: OpenStudy
) -> Iterator[tuple[Executor, _Flag, _Flag]]:
    """The pool, what tells its workers to stop, and what tells that one of them has started."""
    stop: _Flag
    started: _Flag
    pool: Executor
    if kind == "threads":
        stop, started = threading.Event(), threading.Event()
        pool = ThreadPoolExecutor(workers, initializer=_start_worker, initargs=(open_study, stop))
    else:
        context = multiprocessing.get_context("spawn")  # a fork would copy open database connections
        stop, started = _SharedFlag(context), _SharedFlag(context)
        initargs = (open_study, stop, started)
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_process, initargs=initargs)
    with _one_thread_each(), pool:
        try:
            yield pool, stop, started
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


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

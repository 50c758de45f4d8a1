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
"""So often a pool of worker processes is replaced after one of them died."""


class OpenStudy(Protocol):
    """How a worker opens a study by name; picklable for workers in other processes."""

    def __call__(self, name: str) -> tuple[AskTell, Objective | Function]:
        """The study to ask and tell, and what to train."""


class _Stop(Protocol):
    def is_set(self) -> bool: ...

    def set(self) -> None: ...


@dataclass(slots=True)
class _Worker:
    """What a worker keeps between two trials: opened studies, with their caches of finished trials."""

    open_study: OpenStudy
    stop: _Stop
    studies: dict[str, tuple[AskTell, Objective | Function]] = field(default_factory=dict)

    def run(self, name: str) -> Outcome | None:
        if name not in self.studies:
            self.studies[name] = self.open_study(name)
        return run_trial(*self.studies[name], stopping=self.stop.is_set)


_here = threading.local()
"""The worker of this thread: set once by the executor's initializer, which can hand over nothing else."""


def _start_worker(open_study: OpenStudy, stop: _Stop) -> None:
    _here.worker = _Worker(open_study, stop)


def _start_process(open_study: OpenStudy, stop: _Stop) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which tells us through `stop`
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, name="parent watch", daemon=True).start()
    threadpool_limits(1)  # as many workers as cores: more threads in each only get in each other's way
    _start_worker(open_study, stop)


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
    for _ in range(LOST_POOLS):
        with contextlib.suppress(
            BrokenProcessPool
        ):  # a worker was killed; its trial is taken over by the next
            _run_pool(_Turns(names, per_study), open_study, workers, executor, on_outcome)
            return
    raise TunerError(f"worker processes died {LOST_POOLS} times (killed, or out of memory?); giving up")


def _run_pool(
    turns: _Turns,
    open_study: OpenStudy,
    workers: int,
    executor: ExecutorName,
    on_outcome: Callable[[Outcome], None],
) -> None:
    running: dict[Future[Outcome | None], str] = {}
    with _executor(executor, workers, open_study) as (pool, stop):
        try:
            while True:
                while len(running) < workers and (name := turns.next()) is not None:
                    running[pool.submit(_run_one, name)] = name
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    outcome = future.result()
                    turns.ended(running.pop(future), outcome)
                    if outcome is not None:
                        on_outcome(outcome)
        except BaseException:
            stop.set()
            raise


class _Turns:
    """Whose turn it is: the study with the fewest trials begun, among those with budget and room."""

    def __init__(self, names: Sequence[str], per_study: int) -> None:
        self._waiting = deque(names)
        self._per_study = per_study
        self._running = dict.fromkeys(names, 0)
        self._failures = dict.fromkeys(names, 0)
        self._full: set[str] = set()

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
        """A trial of the study has ended, or there was none to run.

        Raises:
            TunerError: too many failed in a row.
        """
        self._running[name] -= 1
        if outcome is None:
            self._full.add(name)
            return
        if outcome.state is None:  # given back, or its lease lost: there may be something to run again
            self._full.discard(name)
        self._failures[name] = self._failures[name] + 1 if outcome.is_error else 0
        if self._failures[name] >= FAILURES_IN_A_ROW:
            raise TunerError(
                f"{name}: stopped, as {FAILURES_IN_A_ROW} trials in a row failed; "
                f"the last (trial {outcome.number}) with {outcome.failure}"
            )


@contextlib.contextmanager
def _executor(kind: ExecutorName, workers: int, open_study: OpenStudy) -> Iterator[tuple[Executor, _Stop]]:
    stop: _Stop
    pool: Executor
    if kind == "threads":
        stop = threading.Event()
        pool = ThreadPoolExecutor(workers, initializer=_start_worker, initargs=(open_study, stop))
    else:
        context = multiprocessing.get_context("spawn")  # a fork would copy open database connections
        stop = context.Event()
        pool = ProcessPoolExecutor(
            workers, mp_context=context, initializer=_start_process, initargs=(open_study, stop)
        )
    with pool:
        try:
            yield pool, stop
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

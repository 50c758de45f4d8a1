"""An orderly end at SIGTERM, which stops containers and services, and at SIGHUP, which a closed terminal sends.

In a program's main thread they are raised as Ctrl-C is. They reach the worker processes of a pool too, where they are
sent to the whole group: such a process lets its trial come to the end of its epoch and gives it back; where that takes
longer than `GRACE_SECONDS`, it leaves the training where it is and gives the trial back as it was. Whoever sends these
signals kills what is still there some seconds later.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

__all__ = [
    "Terminated",
    "WorkerLostError",
    "end_in_order",
    "interruptible",
    "is_ending",
    "raise_at_termination",
    "run_task",
    "signals",
    "terminations_raised",
]

GRACE_SECONDS = 5.0
"""So long a worker process that is to end may take to end its epoch."""

LAST_SECONDS = 20.0
"""So long it may then take to give its trial back, as a service may not answer at once; then it is no more."""

ECHO_SECONDS = 2.0
"""Within so many seconds another signal is the same news again: a closed terminal often sends two."""

EXIT_CODE = 128 + signal.SIGTERM

T = TypeVar("T")


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: as Ctrl-C, but whoever sent it does not wait for long."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(number)
        self.number = number


class WorkerLostError(Exception):
    """A worker has ended, and with it a task."""


def signals() -> list[signal.Signals]:
    """The signals that this process is not to ignore: `nohup` lets it ignore SIGHUP."""
    known = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    return [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]


def raise_at_termination() -> None:
    """From now on raise Terminated in the main thread, which must call this."""
    handler = _Raise()
    for number in signals():
        signal.signal(number, handler)


@contextlib.contextmanager
def terminations_raised() -> Iterator[None]:
    """Raise Terminated meanwhile, and end the process with it, where the program does nothing else about the signals.

    Elsewhere than in the main thread it is left to the program, too.

    Raises:
        SystemExit: a signal came.
    """
    is_main = threading.current_thread() is threading.main_thread()
    numbers = [n for n in signals() if signal.getsignal(n) is signal.SIG_DFL] if is_main else []
    handler = _Raise()
    for number in numbers:
        signal.signal(number, handler)
    try:
        yield
    except Terminated as terminated:
        if terminated.number in numbers:
            raise SystemExit(128 + terminated.number) from None
        raise
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


class _Raise:
    """The handler that raises."""

    def __init__(self) -> None:
        self._heard = float("-inf")

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._heard > ECHO_SECONDS:
            self._heard = now
            raise Terminated(number)


class _Process:
    """A worker process, whose tasks its main thread runs."""

    def __init__(self) -> None:
        self.is_ending = self.is_overdue = self.is_training = False
        self._began = threading.Event()

    def end_in_order(self) -> None:
        # the thread is there before it is needed: a handler that starts one may wait for a lock of its own thread
        threading.Thread(target=self._leave, name="end", daemon=True).start()
        for number in signals():
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not self.is_ending:
            self.is_ending = True
            self._began.set()
        elif self.is_overdue and self.is_training:
            raise Terminated(number)

    def _leave(self) -> None:
        self._began.wait()
        time.sleep(GRACE_SECONDS)
        self.is_overdue = True
        if self.is_training:
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGTERM)
        time.sleep(LAST_SECONDS)
        os._exit(EXIT_CODE)


_process = _Process()


def end_in_order() -> None:
    """Make this a worker process that the signals end in order. For its main thread, which runs all tasks."""
    _process.end_in_order()


def is_ending() -> bool:
    """Whether this worker process was told to end: a trial is to be given back after its epoch."""
    return _process.is_ending


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Mark training: only there does a worker process that is overdue raise, as only its trial needs to be given back.

    Raises:
        Terminated: it is overdue.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _process.is_training = True
    try:
        if _process.is_overdue:
            raise Terminated
        yield
    finally:
        _process.is_training = False


def run_task(task: Callable[..., T], *arguments: object, **named: object) -> T:
    """Run a task in a worker process; one that is to end takes none, but ends.

    Raises:
        WorkerLostError: the process is overdue and has left the task.
    """
    if _process.is_ending:
        os._exit(EXIT_CODE)
    try:
        return task(*arguments, **named)
    except Terminated:
        raise WorkerLostError from None

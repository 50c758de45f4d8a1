"""An orderly end at Ctrl-C, at SIGTERM, which stops containers, and at SIGHUP, which a closed terminal sends.

In a program's main thread the latter two are raised as Ctrl-C is. A loop that keeps workers busy holds all three back
until it is at a point to stop at (`interruptions_held`): raised just anywhere they get lost now and then, in a library
that takes every exception for one of its own (as NumPy's comparisons do), or leave a lock locked for ever.

SIGTERM and SIGHUP reach the worker processes of a pool too, where they are sent to the whole group: such a process lets
its trial come to the end of its epoch and gives it back; where that takes longer than `GRACE_SECONDS`, it leaves the
training where it is and gives the trial back as it was. Whoever sends these signals kills what is still there some
seconds later.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, wait
from types import FrameType
from typing import Any, TypeVar

__all__ = [
    "Terminated",
    "WorkerLostError",
    "end_in_order",
    "interruptible",
    "interruptions_held",
    "is_ending",
    "pause",
    "raise_at_termination",
    "raise_held",
    "run_task",
    "terminations_raised",
    "wait_for",
]

GRACE_SECONDS = 5.0
"""So long a worker process that is to end may take to end its epoch."""

LAST_SECONDS = 20.0
"""So long it may then take to give its trial back, as a service may not answer at once; then it is no more."""

ECHO_SECONDS = 2.0
"""Within so many seconds another signal is the same news again: a closed terminal often sends two."""

HELD_SECONDS = 0.1
"""So long what is held may have to wait in `pause` and `wait_for`."""

EXIT_CODE = 128 + signal.SIGTERM

T = TypeVar("T")


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: as Ctrl-C, but whoever sent it does not wait for long."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(number)
        self.number = number


class WorkerLostError(Exception):
    """A worker has ended, and with it a task."""


def _signals() -> list[signal.Signals]:
    """The signals that this process is not to ignore: `nohup` lets it ignore SIGHUP."""
    known = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    return [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]


def raise_at_termination() -> None:
    """From now on raise Terminated in the main thread, which must call this."""
    handler = _Raise()
    for number in _signals():
        signal.signal(number, handler)


@contextlib.contextmanager
def terminations_raised() -> Iterator[None]:
    """Raise Terminated meanwhile, and end the process with it, where the program does nothing else about the signals.

    Elsewhere than in the main thread it is left to the program, too.

    Raises:
        SystemExit: a signal came.
    """
    is_main = threading.current_thread() is threading.main_thread()
    numbers = [n for n in _signals() if signal.getsignal(n) is signal.SIG_DFL] if is_main else []
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


class _Hold:
    """What is held back in the main thread, whose handlers are the whole process's."""

    def __init__(self) -> None:
        self.depth = 0
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._came: dict[int, FrameType | None] = {}
        self._pressed = float("-inf")

    def begin(self) -> None:
        """Note signals from now on, where they would do something."""
        self._handlers = {}
        for number in (signal.SIGINT, *_signals()):
            if callable(handler := signal.getsignal(number)):
                self._handlers[number] = handler
                signal.signal(number, self._note)

    def end(self) -> None:
        """Let signals do again what they did before, and do now what those that were noted are to do."""
        left, raised = dict(self._handlers), None
        while left:
            try:
                for number, handler in list(left.items()):
                    signal.signal(number, handler)
                    del left[number]
            except BaseException as error:  # noqa: BLE001 - of a handler that is back already
                raised = error
        if raised is not None:
            self._came.clear()
            raise raised
        self.handle()

    def handle(self) -> None:
        """Do what those that were noted are to do; where one raises, it speaks for the others."""
        came, self._came = self._came, {}
        for number in sorted(came, key=lambda number: number == signal.SIGINT):  # the others are in a hurry
            self._handlers[number](number, came[number])

    def _note(self, number: int, frame: FrameType | None) -> None:
        is_again = number in self._came and time.monotonic() - self._pressed > ECHO_SECONDS
        if number not in self._came:
            self._pressed = time.monotonic()
        self._came[number] = frame
        if is_again and number == signal.SIGINT:
            self._handlers[number](number, frame)


_hold = _Hold()


@contextlib.contextmanager
def interruptions_held() -> Iterator[None]:
    """Hold Ctrl-C and the other signals back until `raise_held`, or to the end of the outermost such block.

    Where that does not come for `ECHO_SECONDS`, as something hangs, another Ctrl-C is raised at once. Elsewhere than in
    the main thread, where none are raised, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    depth = _hold.depth
    try:
        _hold.depth = depth + 1
        if not depth:
            _hold.begin()
        yield
    finally:
        _hold.depth = depth
        if not depth:
            _hold.end()


def raise_held() -> None:
    """Here is a point to stop at: raise what was held back.

    Raises:
        KeyboardInterrupt: Ctrl-C came.
        Terminated: SIGTERM or SIGHUP came.
    """
    if _hold.depth and threading.current_thread() is threading.main_thread():
        _hold.handle()


def pause(seconds: float) -> None:
    """Sleep; what is held back is raised meanwhile, as `raise_held` does."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0.0:
        raise_held()
        time.sleep(min(left, HELD_SECONDS))
    raise_held()


def wait_for(
    futures: Collection[Future[T]], seconds: float | None = None, return_when: str = ALL_COMPLETED
) -> set[Future[T]]:
    """Wait as `concurrent.futures.wait` does; what is held back is raised meanwhile, as `raise_held` does.

    Args:
        futures: what for.
        seconds: how long at most; None: for as long as it takes.
        return_when: `ALL_COMPLETED` or `FIRST_COMPLETED`.

    Returns:
        Those that are done.
    """
    until = time.monotonic() + (math.inf if seconds is None else seconds)
    while True:
        raise_held()
        left = until - time.monotonic()
        done, others = wait(futures, timeout=max(0.0, min(left, HELD_SECONDS)), return_when=return_when)
        if not others or (done and return_when == FIRST_COMPLETED) or left <= HELD_SECONDS:
            return done


class _Process:
    """A worker process, whose tasks its main thread runs."""

    def __init__(self) -> None:
        self.is_ending = self.is_overdue = self.is_training = False
        self._began = threading.Event()

    def end_in_order(self) -> None:
        # the thread is there before it is needed: a handler that starts one may wait for a lock of its own thread
        threading.Thread(target=self._leave, name="end", daemon=True).start()
        for number in _signals():
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

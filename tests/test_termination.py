"""Ctrl-C and SIGTERM, held back until there is a point to stop at."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future
from types import FrameType

import pytest

from tuner.termination import Terminated, interruptions_held, pause, raise_held, terminations_raised, wait_for


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # handlers run between two steps of the interpreter


@contextlib.contextmanager
def stopped(by: type[BaseException] = KeyboardInterrupt) -> Iterator[pytest.ExceptionInfo[BaseException]]:
    """The block is left by this exception, wherever in it."""
    with pytest.raises(by) as error:
        yield error


@pytest.fixture(autouse=True)
def _handlers_are_as_before() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = (signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL)
    before = [signal.signal(number, handler) for number, handler in zip(numbers, handlers, strict=True)]
    try:
        yield
        assert tuple(signal.getsignal(number) for number in numbers) == handlers
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_what_is_held_is_raised_where_there_is_a_point_to_stop_at() -> None:
    reached = []
    with stopped(), interruptions_held():
        raise_held()
        send(signal.SIGINT)
        reached.append("after the signal")
        raise_held()
        reached.append("after the point")
    assert reached == ["after the signal"]


@pytest.mark.parametrize(
    "point",
    [
        lambda: pause(60.0),
        lambda: wait_for([Future()]),
        lambda: wait_for([Future()], 60.0, FIRST_COMPLETED),
    ],
)
def test_waiting_is_such_a_point(point: Callable[[], object]) -> None:
    threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
    with stopped(), interruptions_held():
        point()


def test_so_is_the_end_of_the_block() -> None:
    reached = []
    with stopped():
        with interruptions_held(), interruptions_held():
            send(signal.SIGINT)
            reached.append("the end")
        reached.append("behind it")
    assert reached == ["the end"]


def test_a_second_ctrl_c_does_not_wait() -> None:
    reached = []
    with stopped(), interruptions_held():
        send(signal.SIGINT)
        reached.append("after the first")
        send(signal.SIGINT)
        reached.append("after the second")
    assert reached == ["after the first"]


def test_a_closed_terminals_second_signal_is_no_more_news_than_the_first() -> None:
    reached = []
    with stopped(SystemExit) as ended, terminations_raised(), interruptions_held():
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            send(number)
        reached.append("after all")
        raise_held()
    assert ended.value.args == (128 + signal.SIGTERM,)
    assert reached == ["after all"]


def test_a_handler_that_raises_nothing_does_not_stop_a_loop() -> None:
    heard: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        heard.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        with interruptions_held():
            send(signal.SIGINT)
            assert heard == []
            raise_held()
            assert heard == [signal.SIGINT]
            raise_held()
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]


def test_other_threads_hold_and_raise_nothing() -> None:
    raised: list[BaseException] = []

    def elsewhere() -> None:
        try:
            with interruptions_held():
                pause(0.05)
        except BaseException as error:  # noqa: BLE001
            raised.append(error)

    with stopped(Terminated):
        before = signal.signal(signal.SIGTERM, _terminate)
        try:
            with interruptions_held():
                send(signal.SIGTERM)
                thread = threading.Thread(target=elsewhere)
                thread.start()
                thread.join()
                assert raised == []
        finally:
            signal.signal(signal.SIGTERM, before)


def _terminate(number: int, _frame: FrameType | None) -> None:
    raise Terminated(number)


def test_waiting_ends_with_what_it_is_for() -> None:
    early, late = Future[None](), Future[None]()
    early.set_result(None)
    assert wait_for([early, late], 10.0, FIRST_COMPLETED) == {early}
    assert wait_for([early, late], 0.0) == {early}
    assert wait_for([], 10.0) == set()
    threading.Timer(0.2, late.set_result, [None]).start()
    assert wait_for([early, late]) == {early, late}

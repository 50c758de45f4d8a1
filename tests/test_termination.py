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
from typing import Any

import pytest

import tuner.termination
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
    "wait",
    [
        lambda: pause(30.0),
        lambda: wait_for([Future()], 30.0),
        lambda: wait_for([Future()], 30.0, FIRST_COMPLETED),
    ],
)
def test_waiting_is_such_a_point(wait: Callable[[], object]) -> None:
    reached = []
    with stopped(), interruptions_held():
        threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
        wait()
        reached.append("after waiting")
    assert reached == []


def test_so_is_the_end_of_the_block() -> None:
    reached = []
    with stopped():
        with interruptions_held(), interruptions_held():
            send(signal.SIGINT)
            reached.append("the end")
        reached.append("behind it")
    assert reached == ["the end"]


def test_another_ctrl_c_does_not_wait_where_something_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    reached = []
    with stopped(), interruptions_held():
        send(signal.SIGINT)
        send(signal.SIGINT)
        reached.append("after an echo")
        monkeypatch.setattr(tuner.termination, "ECHO_SECONDS", 0.0)
        send(signal.SIGINT)
        reached.append("after another")
    assert reached == ["after an echo"]


def test_where_the_other_one_is_lost_it_is_still_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner.termination, "ECHO_SECONDS", 0.0)
    reached = []
    with stopped(), interruptions_held():
        send(signal.SIGINT)
        with contextlib.suppress(KeyboardInterrupt):
            send(signal.SIGINT)
        reached.append("after both")
        raise_held()
        reached.append("after the point")
    assert reached == ["after both"]


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_who_is_in_a_hurry_has_the_word(first: signal.Signals) -> None:
    reached = []
    with stopped(SystemExit) as ended, terminations_raised(), interruptions_held():
        send(first)
        send(signal.SIGINT if first is signal.SIGTERM else signal.SIGTERM)
        send(signal.SIGTERM)
        reached.append("after all")
        raise_held()
    assert ended.value.args == (128 + signal.SIGTERM,)
    assert reached == ["after all"]


def test_a_signal_that_means_something_else_takes_no_other_away() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGHUP, lambda number, _frame: heard.append(number))
    try:
        with stopped(), interruptions_held():
            send(signal.SIGINT)
            send(signal.SIGHUP)
            raise_held()
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert heard == [signal.SIGHUP]


def test_ctrl_c_while_handlers_are_put_back_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    put_back, sent = signal.signal, []

    def interrupted(number: int, handler: Any) -> Any:
        before = put_back(number, handler)
        if handler is signal.default_int_handler and not sent:
            sent.append(number)
            send(signal.SIGINT)
        return before

    with stopped(), monkeypatch.context() as patch, interruptions_held():
        patch.setattr(signal, "signal", interrupted)
    assert sent
    with interruptions_held():  # which begins anew
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler


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
